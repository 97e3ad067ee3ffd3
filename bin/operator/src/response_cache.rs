//! Answers of pods, shared: several Rollouts in a pool ask the same, and no pod is asked more than once a second.
//!
//! An answer is at most so old when it is used, and says when it was asked for: whoever wants to know of something that
//! happened after that asks again when it may. Whoever could not be asked counts as asked: it is not asked more often
//! because it is away. What nobody asked for again is forgotten, so that memory follows what is under way, not what
//! there is.

use rollora_cluster::{ConnectionReuse, HttpClientError};
use rollora_operator::ports::RESPONSE_TTL;
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex as Turn, time::Instant};

/// How long it is remembered that somebody asked: whoever asks within this asks again and again.
const SLOT_TTL: Duration = Duration::from_secs(3);
/// After so many questions a connection is kept for the next one. A start asks every pod there is two or three times, and
/// a connection to each would take more memory than all else.
const KEEP_ALIVE_AFTER: u32 = 4;

/// A server: the UID of its pod, and a port.
type PodPort = (String, u16);

/// The answers to one question.
#[derive(Debug)]
pub(crate) struct ResponseCache<T>(Mutex<HashMap<PodPort, Arc<CacheSlot<T>>>>);

/// Whoever holds the turn asks; the others wait for what it hears.
#[derive(Debug)]
struct CacheSlot<T> {
    state: Turn<SlotState<T>>,
    last_requested: Mutex<Instant>,
}

#[derive(Debug)]
struct SlotState<T> {
    requests: u32,
    response: Option<CachedResponse<T>>,
}

/// What somebody said.
#[derive(Debug)]
pub(crate) struct CachedResponse<T> {
    /// When it was asked for.
    pub(crate) requested_at: Instant,
    /// What it is.
    pub(crate) result: Result<Arc<T>, HttpClientError>,
}

impl<T> CachedResponse<T> {
    fn is_fresh(&self) -> bool {
        self.requested_at.elapsed() < RESPONSE_TTL
    }
}

impl<T> Clone for CachedResponse<T> {
    fn clone(&self) -> Self {
        Self { requested_at: self.requested_at, result: self.result.clone() }
    }
}

impl<T> Default for ResponseCache<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> ResponseCache<T> {
    /// The last answer where it is good yet, else another one.
    pub(crate) async fn get<F: Future<Output = Result<T, HttpClientError>>>(
        &self,
        uid: &str,
        port: u16,
        ask: impl FnOnce(ConnectionReuse) -> F,
    ) -> CachedResponse<T> {
        let slot = self.slot((uid.to_owned(), port), Instant::now());
        let mut turn = slot.state.lock().await;
        if let Some(answer) = turn.response.as_ref().filter(|answer| answer.is_fresh()) {
            return answer.clone();
        }
        let again = if turn.requests < KEEP_ALIVE_AFTER { ConnectionReuse::Close } else { ConnectionReuse::KeepAlive };
        turn.requests = turn.requests.saturating_add(1);
        let at = Instant::now();
        let answer = CachedResponse { requested_at: at, result: ask(again).await.map(Arc::new) };
        turn.response = Some(answer.clone());
        answer
    }

    /// Forgets what nobody asks for any more, and every answer that does not stand any more: a start asks tens of
    /// thousands of pods, each of which may have many adapters to tell of.
    pub(crate) fn evict_expired(&self) {
        let mut known = self.slots();
        known.retain(|_, slot| slot.last_requested().elapsed() < SLOT_TTL);
        // Whoever has the turn brings another answer.
        for mut turn in known.values().filter_map(|slot| slot.state.try_lock().ok()) {
            turn.response = turn.response.take().filter(CachedResponse::is_fresh);
        }
        let room = 2 * known.len();
        known.shrink_to(room);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<PodPort, Arc<CacheSlot<T>>>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, whom: PodPort, now: Instant) -> Arc<CacheSlot<T>> {
        let mut known = self.slots();
        if let Some(slot) = known.get(&whom) {
            *slot.last_requested() = now;
            return Arc::clone(slot);
        }
        let turn = Turn::new(SlotState { requests: 0, response: None });
        let slot = Arc::new(CacheSlot { state: turn, last_requested: Mutex::new(now) });
        known.insert(whom, Arc::clone(&slot));
        slot
    }
}

impl<T> CacheSlot<T> {
    fn last_requested(&self) -> MutexGuard<'_, Instant> {
        self.last_requested.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    struct CountingSource {
        cache: ResponseCache<u32>,
        count: AtomicU32,
    }

    impl CountingSource {
        async fn ask(&self) -> Result<u32, HttpClientError> {
            self.ask_with(Ok).await
        }

        async fn ask_with(
            &self,
            say: impl FnOnce(u32) -> Result<u32, HttpClientError>,
        ) -> Result<u32, HttpClientError> {
            let question = |_| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                say(self.count.fetch_add(1, Ordering::Relaxed) + 1)
            };
            self.cache.get("uid", 8080, question).await.result.map(|answer| *answer)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_that_ask_at_once_share_one_answer() {
        let asked = CountingSource::default();
        let (a, b, c) = tokio::join!(asked.ask(), asked.ask(), asked.ask());
        assert_eq!([a, b, c], [Ok(1), Ok(1), Ok(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_more_than_once_a_second_away_or_not() {
        let asked = CountingSource::default();
        let away = HttpClientError::Unreachable("away".to_owned());
        assert_eq!(asked.ask_with(|_| Err(away.clone())).await, Err(away.clone()));
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(asked.ask().await, Err(away));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(asked.ask().await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_when_it_was_asked_for() {
        let answers = ResponseCache::<u32>::default();
        let start = Instant::now();
        let slowly = |_| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(1)
        };
        assert_eq!(
            answers.get("uid", 8080, slowly).await.requested_at,
            start,
            "what happened while it answered may be missing"
        );
        assert_eq!(answers.get("uid", 8080, slowly).await.requested_at, start, "it is the same answer");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_any_more_is_forgotten() {
        let asked = CountingSource::default();
        asked.ask().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        asked.cache.get("other", 8080, |_| async { Ok(0) }).await.result.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        asked.cache.evict_expired();
        let known = asked.cache.slots();
        assert_eq!(known.keys().map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), ["other"]);
        assert!(
            known.values().all(|slot| slot.state.try_lock().unwrap().response.is_none()),
            "its answer is too old by now"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_kept_to_whom_is_asked_again_and_again() {
        let answers = ResponseCache::<u32>::default();
        let first = [ConnectionReuse::Close; KEEP_ALIVE_AFTER as usize];
        for expected in first.into_iter().chain([ConnectionReuse::KeepAlive, ConnectionReuse::KeepAlive]) {
            answers
                .get("uid", 8080, |again| async move {
                    assert_eq!(again, expected);
                    Ok(0)
                })
                .await
                .result
                .unwrap();
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
    }
}
