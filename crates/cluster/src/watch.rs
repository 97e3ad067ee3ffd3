//! One watch: complete lists first, then changes, with retries after every outage.
//!
//! Invariants: the last delivered state stays valid until a newer one is delivered. An outage is delivered as an error
//! and changes nothing else. After a missing permission the watch restarts with a list, because nothing else would show
//! that the permission was granted again.

use crate::{
    Cluster, Scope,
    api_error::{ApiError, ApiRequest},
    resource_kind::ResourceKind,
};
use futures_util::{Stream, StreamExt, stream};
use kube::{
    Api, Resource, ResourceExt,
    core::DynamicObject,
    runtime::{
        WatchStreamExt,
        utils::Backoff,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, pin::Pin, time::Duration};
use tokio::time::Instant;

/// Duration of one watch call. A connection that broke silently is noticed shortly after this.
const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// Number of objects in one page of a list.
const PAGE_SIZE: u32 = 500;

/// One change that a watch delivers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WatchEvent<K> {
    /// All objects; replaces everything delivered before.
    Reset(Vec<K>),
    /// An object was created or changed.
    Apply(K),
    /// An object was deleted; holds its last state.
    Delete(K),
}

impl<K> WatchEvent<K> {
    /// Converts the objects of the event.
    pub(crate) fn map<T>(self, mut read: impl FnMut(K) -> T) -> WatchEvent<T> {
        match self {
            Self::Reset(all) => WatchEvent::Reset(all.into_iter().map(read).collect()),
            Self::Apply(object) => WatchEvent::Apply(read(object)),
            Self::Delete(object) => WatchEvent::Delete(read(object)),
        }
    }
}

/// Stream of one watch, which never ends.
pub(crate) type WatchStream<K> = Pin<Box<dyn Stream<Item = Result<WatchEvent<K>, ApiError>> + Send>>;

/// Selection of the watched objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WatchOptions {
    /// Kubernetes label selector; `None` selects all objects.
    pub(crate) label_selector: Option<String>,
    /// Kubernetes field selector; `None` selects all objects.
    pub(crate) field_selector: Option<String>,
    /// Number of objects in one page of a list, if they may be large.
    pub(crate) page_size: Option<u32>,
}

/// Watches the objects of `api`. `resource` and `namespace` are for error messages.
pub(crate) fn watch<K>(
    api: Api<K>,
    options: &WatchOptions,
    resource: String,
    namespace: Option<String>,
) -> WatchStream<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch_mapped(api, options, resource, namespace, Some)
}

/// Watches the objects of `api`, and converts each one with `read` as it arrives, because all objects of a kind may be
/// far more than is needed. Objects for which `read` returns `None` are not delivered.
pub(crate) fn watch_mapped<K, T>(
    api: Api<K>,
    options: &WatchOptions,
    resource: String,
    namespace: Option<String>,
    read: impl Fn(K) -> Option<T> + Send + 'static,
) -> WatchStream<T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let config = watcher::Config {
        label_selector: options.label_selector.clone(),
        field_selector: options.field_selector.clone(),
        ..watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS).page_size(options.page_size.unwrap_or(PAGE_SIZE))
    };
    let start = move || watcher::watcher(api.clone(), config.clone()).backoff(WatchBackoff::default());
    let state = (start().boxed(), Vec::new(), (resource, namespace), (start, read));
    Box::pin(stream::unfold(state, |(mut events, mut listed, request_names, (start, read))| async move {
        loop {
            let raw_event = events.next().await?;
            let event = raw_event
                .map_err(|error| to_api_error(&error, &request_names))
                .map(|raw_event| collect_event(raw_event, &mut listed, &read));
            if let Some(event) = event.transpose() {
                if matches!(event, Err(ApiError::Forbidden(_))) {
                    let delay = stream::once(tokio::time::sleep(MAX_BACKOFF)).filter_map(|()| std::future::ready(None));
                    events = delay.chain(start()).boxed();
                }
                return Some((event, (events, listed, request_names, (start, read))));
            }
        }
    }))
}

/// Watches all objects of a kind, and converts each one as it arrives: as JSON it is many times as large.
pub(crate) fn watch_all<T: Send + 'static>(
    cluster: &Cluster,
    scope: &Scope,
    kind: ResourceKind,
    read: impl Fn(DynamicObject) -> T + Send + 'static,
) -> WatchStream<T> {
    let (api, namespace) = (scope.dynamic_api(cluster.kube_client(), kind), scope.namespace().map(str::to_owned));
    watch_mapped(api, &WatchOptions::default(), kind.group_resource(), namespace, move |object| Some(read(object)))
}

/// Collects the pages of a list into one event.
fn collect_event<K: Resource, T>(
    event: Event<K>,
    listed: &mut Vec<T>,
    read: impl Fn(K) -> Option<T>,
) -> Option<WatchEvent<T>> {
    match event.modify(|object| object.managed_fields_mut().clear()) {
        Event::Init => {
            listed.clear();
            None
        }
        Event::InitApply(object) => {
            listed.extend(read(object));
            None
        }
        Event::InitDone => Some(WatchEvent::Reset(std::mem::take(listed))),
        Event::Apply(object) => read(object).map(WatchEvent::Apply),
        Event::Delete(object) => read(object).map(WatchEvent::Delete),
    }
}

fn to_api_error(error: &watcher::Error, (resource, namespace): &(String, Option<String>)) -> ApiError {
    let request = |verb| ApiRequest { verb, resource, namespace: namespace.as_deref() };
    let error = match error {
        watcher::Error::InitialListFailed(error) => ApiError::of(error, request("list")),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            ApiError::of(error, request("watch"))
        }
        watcher::Error::WatchError(status) => ApiError::of(&kube::Error::Api(status.clone()), request("watch")),
        watcher::Error::NoResourceVersion => {
            ApiError::Unavailable(format!("{}: the response has no resource version", request("watch")))
        }
    };
    // A watch writes nothing, so every failure can be retried.
    match error {
        ApiError::Unknown(message) => ApiError::Unavailable(message),
        error => error,
    }
}

/// Delays between failed attempts: they double, up to a few seconds.
///
/// kube resets its backoff when an attempt begins. This one resets when nothing has failed for a while.
#[derive(Debug)]
struct WatchBackoff {
    delay: Duration,
    last_failure: Option<Instant>,
}

const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(3);
/// Longer than the maximum delay and the attempt after it.
const BACKOFF_RESET: Duration = Duration::from_secs(10);

impl Default for WatchBackoff {
    fn default() -> Self {
        Self { delay: INITIAL_BACKOFF, last_failure: None }
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last_failure.replace(Instant::now()).is_some_and(|failed| failed.elapsed() > BACKOFF_RESET) {
            self.delay = INITIAL_BACKOFF;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(MAX_BACKOFF);
        // Jitter: replicas that lost the same API server must not reconnect all at the same time.
        Some(delay.mul_f64(rand::random_range(0.5..1.0)))
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::{
        api::core::v1::ConfigMap,
        apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta},
    };

    fn object(name: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            managed_fields: Some(vec![ManagedFieldsEntry::default()]),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    #[test]
    fn only_converted_objects_are_delivered() {
        let mut listed = Vec::new();
        let read = |object: ConfigMap| object.metadata.name.filter(|name| name != "other");
        let mut collect = |event| collect_event(event, &mut listed, read);
        for event in [Event::Init, Event::InitApply(object("other")), Event::InitApply(object("a"))] {
            assert_eq!(collect(event), None);
        }
        assert_eq!(collect(Event::InitDone), Some(WatchEvent::Reset(vec!["a".to_owned()])));
        assert_eq!(collect(Event::Apply(object("other"))), None);
        assert_eq!(collect(Event::Delete(object("a"))), Some(WatchEvent::Delete("a".to_owned())));
    }

    fn describe(event: Option<WatchEvent<ConfigMap>>) -> String {
        let name = |object: &ConfigMap| {
            assert!(object.managed_fields().is_empty(), "managed fields are large and not used");
            object.name_any()
        };
        match event {
            None => "nothing".to_owned(),
            Some(WatchEvent::Reset(objects)) => {
                format!("all: {}", objects.iter().map(name).collect::<Vec<_>>().join(" "))
            }
            Some(WatchEvent::Apply(object)) => format!("apply: {}", name(&object)),
            Some(WatchEvent::Delete(object)) => format!("delete: {}", name(&object)),
        }
    }

    #[test]
    fn list_is_delivered_when_complete() {
        let mut listed = Vec::new();
        let mut describe_event = |event| describe(collect_event(event, &mut listed, Some));
        assert_eq!(describe_event(Event::Init), "nothing");
        assert_eq!(describe_event(Event::InitApply(object("a"))), "nothing");
        assert_eq!(describe_event(Event::Init), "nothing");
        assert_eq!(describe_event(Event::InitApply(object("b"))), "nothing");
        assert_eq!(describe_event(Event::InitApply(object("c"))), "nothing");
        assert_eq!(describe_event(Event::InitDone), "all: b c", "an interrupted list is dropped");
        assert_eq!(describe_event(Event::Apply(object("d"))), "apply: d");
        assert_eq!(describe_event(Event::Delete(object("b"))), "delete: b");
        assert_eq!(describe_event(Event::Init), "nothing");
        assert_eq!(describe_event(Event::InitDone), "all: ");
    }

    #[tokio::test(start_paused = true)]
    async fn backoff_doubles_and_resets_after_a_quiet_time() {
        let mut backoff = WatchBackoff::default();
        let mut delays = Vec::new();
        for _ in 0..8 {
            let delay = backoff.next().unwrap();
            delays.push(delay);
            tokio::time::sleep(delay).await;
            // A try that begins has not succeeded.
            backoff.reset();
        }
        assert!(delays[0] <= INITIAL_BACKOFF && delays[7] <= MAX_BACKOFF && delays[7] >= MAX_BACKOFF / 2, "{delays:?}");
        tokio::time::sleep(BACKOFF_RESET).await;
        assert!(backoff.next().unwrap() <= INITIAL_BACKOFF);
    }
}
