//! Answers of pods, shared: several Rollouts in a pool ask the same, and no pod is asked more than once a second.
//!
//! An answer is at most so old when it is used, and says when it was asked for: whoever wants to know of something that
//! happened after that asks again when it may. Whoever could not be asked counts as asked: it is not asked more often
//! because it is away. What nobody asked for again is forgotten, so that memory follows what is under way, not what
//! there is.

use rollora_cluster::{Again, AskError};
use rollora_operator::ports::ANSWER_STANDS;
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex as Turn, time::Instant};

/// How long it is remembered that somebody asked: whoever asks within this asks again and again.
const REMEMBERED: Duration = Duration::from_secs(3);
/// After so many questions a connection is kept for the next one. A start asks every pod there is two or three times, and
/// a connection to each would take more memory than all else.
const KEPT_AFTER: u32 = 4;

/// A server: the UID of its pod, and a port.
type Whom = (String, u16);

/// The answers to one question.
#[derive(Debug)]
pub(crate) struct Answers<T>(Mutex<HashMap<Whom, Arc<Slot<T>>>>);

/// Whoever holds the turn asks; the others wait for what it hears.
#[derive(Debug)]
struct Slot<T> {
    turn: Turn<Turns<T>>,
    asked: Mutex<Instant>,
}

#[derive(Debug)]
struct Turns<T> {
    count: u32,
    last: Option<Answer<T>>,
}

/// What somebody said.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// When it was asked for.
    pub(crate) at: Instant,
    /// What it is.
    pub(crate) said: Result<Arc<T>, AskError>,
}

impl<T> Answer<T> {
    fn stands(&self) -> bool {
        self.at.elapsed() < ANSWER_STANDS
    }
}

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self { at: self.at, said: self.said.clone() }
    }
}

impl<T> Default for Answers<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Answers<T> {
    /// The last answer where it is good yet, else another one.
    pub(crate) async fn get<F: Future<Output = Result<T, AskError>>>(
        &self,
        uid: &str,
        port: u16,
        ask: impl FnOnce(Again) -> F,
    ) -> Answer<T> {
        let slot = self.slot((uid.to_owned(), port), Instant::now());
        let mut turn = slot.turn.lock().await;
        if let Some(answer) = turn.last.as_ref().filter(|answer| answer.stands()) {
            return answer.clone();
        }
        let again = if turn.count < KEPT_AFTER { Again::Maybe } else { Again::Soon };
        turn.count = turn.count.saturating_add(1);
        let at = Instant::now();
        let answer = Answer { at, said: ask(again).await.map(Arc::new) };
        turn.last = Some(answer.clone());
        answer
    }

    /// Forgets what nobody asks for any more, and every answer that does not stand any more: a start asks tens of
    /// thousands of pods, each of which may have many adapters to tell of.
    pub(crate) fn sweep(&self) {
        let mut known = self.known();
        known.retain(|_, slot| slot.asked().elapsed() < REMEMBERED);
        // Whoever has the turn brings another answer.
        for mut turn in known.values().filter_map(|slot| slot.turn.try_lock().ok()) {
            turn.last = turn.last.take().filter(Answer::stands);
        }
        let room = 2 * known.len();
        known.shrink_to(room);
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Whom, Arc<Slot<T>>>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, whom: Whom, now: Instant) -> Arc<Slot<T>> {
        let mut known = self.known();
        if let Some(slot) = known.get(&whom) {
            *slot.asked() = now;
            return Arc::clone(slot);
        }
        let turn = Turn::new(Turns { count: 0, last: None });
        let slot = Arc::new(Slot { turn, asked: Mutex::new(now) });
        known.insert(whom, Arc::clone(&slot));
        slot
    }
}

impl<T> Slot<T> {
    fn asked(&self) -> MutexGuard<'_, Instant> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Debug, Default)]
    struct Asked {
        answers: Answers<u32>,
        count: AtomicU32,
    }

    impl Asked {
        async fn ask(&self) -> Result<u32, AskError> {
            self.ask_as(Ok).await
        }

        async fn ask_as(&self, say: impl FnOnce(u32) -> Result<u32, AskError>) -> Result<u32, AskError> {
            let question = |_| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                say(self.count.fetch_add(1, Ordering::Relaxed) + 1)
            };
            self.answers.get("uid", 8080, question).await.said.map(|answer| *answer)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn several_that_ask_at_once_share_one_answer() {
        let asked = Asked::default();
        let (a, b, c) = tokio::join!(asked.ask(), asked.ask(), asked.ask());
        assert_eq!([a, b, c], [Ok(1), Ok(1), Ok(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_more_than_once_a_second_away_or_not() {
        let asked = Asked::default();
        let away = AskError::Unreachable("away".to_owned());
        assert_eq!(asked.ask_as(|_| Err(away.clone())).await, Err(away.clone()));
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(asked.ask().await, Err(away));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(asked.ask().await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_when_it_was_asked_for() {
        let answers = Answers::<u32>::default();
        let start = Instant::now();
        let slowly = |_| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(1)
        };
        assert_eq!(answers.get("uid", 8080, slowly).await.at, start, "what happened while it answered may be missing");
        assert_eq!(answers.get("uid", 8080, slowly).await.at, start, "it is the same answer");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asks_for_any_more_is_forgotten() {
        let asked = Asked::default();
        asked.ask().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        asked.answers.get("other", 8080, |_| async { Ok(0) }).await.said.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        asked.answers.sweep();
        let known = asked.answers.known();
        assert_eq!(known.keys().map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), ["other"]);
        assert!(
            known.values().all(|slot| slot.turn.try_lock().unwrap().last.is_none()),
            "its answer is too old by now"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_kept_to_whom_is_asked_again_and_again() {
        let answers = Answers::<u32>::default();
        let first = [Again::Maybe; KEPT_AFTER as usize];
        for expected in first.into_iter().chain([Again::Soon, Again::Soon]) {
            answers
                .get("uid", 8080, |again| async move {
                    assert_eq!(again, expected);
                    Ok(0)
                })
                .await
                .said
                .unwrap();
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
    }
}
