//! Shared responses of pods: several Rollouts of a pool need the same ones, and each pod is polled at most once a
//! second.
//!
//! A response is used only within that time, and has the time of its request: a caller that needs to know about a later
//! change requests again when the time is over. A failed request counts too, so that an unreachable pod is not polled
//! more often. Responses that are not requested again are evicted, so that memory follows the running rollouts and not
//! the size of the fleet.

use rollora_cluster::{ConnectionReuse, HttpClientError};
use rollora_operator::ports::RESPONSE_TTL;
use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

/// Time after its last request for which a slot is kept: a caller that polls repeatedly asks again within it.
const SLOT_TTL: Duration = Duration::from_secs(3);
/// Number of requests to a pod after which its connection is kept. A start polls every pod two or three times, and a
/// connection to each would need more memory than everything else.
const KEEP_ALIVE_AFTER: u32 = 4;

/// UID of a pod, and a port of it.
type PodPort = (String, u16);

/// Responses of one kind of request, by pod and port.
#[derive(Debug)]
pub(crate) struct ResponseCache<T>(Mutex<HashMap<PodPort, Arc<CacheSlot<T>>>>);

/// Slot of one pod and port. The task that holds the lock of the state sends the request; others wait for its response.
#[derive(Debug)]
struct CacheSlot<T> {
    state: AsyncMutex<SlotState<T>>,
    last_requested: Mutex<Instant>,
}

#[derive(Debug)]
struct SlotState<T> {
    requests: u32,
    response: Option<CachedResponse<T>>,
}

/// Result of one request to a pod.
#[derive(Debug)]
pub(crate) struct CachedResponse<T> {
    /// When the request began; later changes may be missing in the response.
    pub(crate) requested_at: Instant,
    /// The parsed body, or why there is none.
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
    /// Returns the last response while it is fresh, else the result of `request`.
    pub(crate) async fn get<F: Future<Output = Result<T, HttpClientError>>>(
        &self,
        uid: &str,
        port: u16,
        request: impl FnOnce(ConnectionReuse) -> F,
    ) -> CachedResponse<T> {
        let slot = self.slot((uid.to_owned(), port), Instant::now());
        let mut state = slot.state.lock().await;
        if let Some(response) = state.response.as_ref().filter(|response| response.is_fresh()) {
            return response.clone();
        }
        let reuse = if state.requests < KEEP_ALIVE_AFTER { ConnectionReuse::Close } else { ConnectionReuse::KeepAlive };
        state.requests = state.requests.saturating_add(1);
        let requested_at = Instant::now();
        let response = CachedResponse { requested_at, result: request(reuse).await.map(Arc::new) };
        state.response = Some(response.clone());
        response
    }

    /// Evicts unused slots, and all responses that are not fresh anymore: a start polls tens of thousands of pods, each
    /// of which may have many adapters.
    pub(crate) fn evict_expired(&self) {
        let mut slots = self.slots();
        slots.retain(|_, slot| slot.last_requested().elapsed() < SLOT_TTL);
        // A locked slot is waiting for a new response, which replaces the old one.
        for mut state in slots.values().filter_map(|slot| slot.state.try_lock().ok()) {
            state.response = state.response.take().filter(CachedResponse::is_fresh);
        }
        let capacity = 2 * slots.len();
        slots.shrink_to(capacity);
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<PodPort, Arc<CacheSlot<T>>>> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, pod_port: PodPort, now: Instant) -> Arc<CacheSlot<T>> {
        let mut slots = self.slots();
        if let Some(slot) = slots.get(&pod_port) {
            *slot.last_requested() = now;
            return Arc::clone(slot);
        }
        let state = AsyncMutex::new(SlotState { requests: 0, response: None });
        let slot = Arc::new(CacheSlot { state, last_requested: Mutex::new(now) });
        slots.insert(pod_port, Arc::clone(&slot));
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
        async fn request(&self) -> Result<u32, HttpClientError> {
            self.request_with(Ok).await
        }

        async fn request_with(
            &self,
            respond: impl FnOnce(u32) -> Result<u32, HttpClientError>,
        ) -> Result<u32, HttpClientError> {
            let counted_request = |_| async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                respond(self.count.fetch_add(1, Ordering::Relaxed) + 1)
            };
            self.cache.get("uid", 8080, counted_request).await.result.map(|response| *response)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_requests_share_one_response() {
        let source = CountingSource::default();
        let (a, b, c) = tokio::join!(source.request(), source.request(), source.request());
        assert_eq!([a, b, c], [Ok(1), Ok(1), Ok(1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn pod_is_polled_once_a_second_even_if_unreachable() {
        let source = CountingSource::default();
        let unreachable = HttpClientError::Unreachable("unreachable".to_owned());
        assert_eq!(source.request_with(|_| Err(unreachable.clone())).await, Err(unreachable.clone()));
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(source.request().await, Err(unreachable));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(source.request().await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn response_has_the_time_of_its_request() {
        let cache = ResponseCache::<u32>::default();
        let start = Instant::now();
        let slow_request = |_| async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            Ok(1)
        };
        assert_eq!(
            cache.get("uid", 8080, slow_request).await.requested_at,
            start,
            "changes during the request may be missing"
        );
        assert_eq!(cache.get("uid", 8080, slow_request).await.requested_at, start, "the cached response is reused");
    }

    #[tokio::test(start_paused = true)]
    async fn unused_slots_and_old_responses_are_evicted() {
        let source = CountingSource::default();
        source.request().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        source.cache.get("other", 8080, |_| async { Ok(0) }).await.result.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        source.cache.evict_expired();
        let slots = source.cache.slots();
        assert_eq!(slots.keys().map(|(uid, _)| uid.as_str()).collect::<Vec<_>>(), ["other"]);
        assert!(
            slots.values().all(|slot| slot.state.try_lock().unwrap().response.is_none()),
            "the response is not fresh anymore"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn connection_is_kept_after_repeated_requests() {
        let cache = ResponseCache::<u32>::default();
        let first = [ConnectionReuse::Close; KEEP_ALIVE_AFTER as usize];
        for expected in first.into_iter().chain([ConnectionReuse::KeepAlive, ConnectionReuse::KeepAlive]) {
            cache
                .get("uid", 8080, |reuse| async move {
                    assert_eq!(reuse, expected);
                    Ok(0)
                })
                .await
                .result
                .unwrap();
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
    }
}
