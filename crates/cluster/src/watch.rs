//! One watch: complete lists first, then changes, over every outage.
//!
//! Invariants: what was told last stays true until something newer is told. An outage is told as an error, and changes
//! nothing else. Whoever may not watch any more begins with a list again when they may: else nothing would tell that they do.

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

/// How long one watch call lasts. A connection that died without a word is noticed a little later than this.
const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// Objects in one part of a list.
const PAGE_SIZE: u32 = 500;

/// What a watch tells.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WatchEvent<K> {
    /// Everything there is, in place of all that was told before.
    Reset(Vec<K>),
    /// One object is new or was changed.
    Apply(K),
    /// One object is gone; this is what it was last.
    Delete(K),
}

impl<K> WatchEvent<K> {
    /// The same news of something else.
    pub(crate) fn map<T>(self, mut read: impl FnMut(K) -> T) -> WatchEvent<T> {
        match self {
            Self::Reset(all) => WatchEvent::Reset(all.into_iter().map(read).collect()),
            Self::Apply(object) => WatchEvent::Apply(read(object)),
            Self::Delete(object) => WatchEvent::Delete(read(object)),
        }
    }
}

/// A watch. It never ends.
pub(crate) type WatchStream<K> = Pin<Box<dyn Stream<Item = Result<WatchEvent<K>, ApiError>> + Send>>;

/// What is watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WatchOptions {
    /// A label selector.
    pub(crate) label_selector: Option<String>,
    /// A field selector.
    pub(crate) field_selector: Option<String>,
    /// Objects in one part of a list, where they may be large.
    pub(crate) page_size: Option<u32>,
}

/// Watches what `api` gives. `resource` and `namespace` are what errors speak of.
pub(crate) fn watch<K>(
    api: Api<K>,
    selection: &WatchOptions,
    resource: String,
    namespace: Option<String>,
) -> WatchStream<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch_mapped(api, selection, resource, namespace, Some)
}

/// The same, of which only what is read is kept, from the first object of a list on: what there is of a kind may be far
/// more than anybody here needs. Objects of which nothing is read are not told.
pub(crate) fn watch_mapped<K, T>(
    api: Api<K>,
    selection: &WatchOptions,
    resource: String,
    namespace: Option<String>,
    read: impl Fn(K) -> Option<T> + Send + 'static,
) -> WatchStream<T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    T: Send + 'static,
{
    let config = watcher::Config {
        label_selector: selection.label_selector.clone(),
        field_selector: selection.field_selector.clone(),
        ..watcher::Config::default().timeout(WATCH_TIMEOUT_SECONDS).page_size(selection.page_size.unwrap_or(PAGE_SIZE))
    };
    let begin = move || watcher::watcher(api.clone(), config.clone()).backoff(WatchBackoff::default());
    let state = (begin().boxed(), Vec::new(), (resource, namespace), (begin, read));
    Box::pin(stream::unfold(state, |(mut events, mut listed, words, (begin, read))| async move {
        loop {
            let event = events.next().await?;
            let news = event
                .map_err(|error| to_api_error(&error, &words))
                .map(|event| collect_event(event, &mut listed, &read));
            if let Some(news) = news.transpose() {
                if matches!(news, Err(ApiError::Forbidden(_))) {
                    let pause = stream::once(tokio::time::sleep(MAX_BACKOFF)).filter_map(|()| std::future::ready(None));
                    events = pause.chain(begin()).boxed();
                }
                return Some((news, (events, listed, words, (begin, read))));
            }
        }
    }))
}

/// Watches all objects of a kind. Each is read when it comes: as JSON it is many times as large.
pub(crate) fn watch_all<T: Send + 'static>(
    cluster: &Cluster,
    scope: &Scope,
    kind: ResourceKind,
    read: impl Fn(DynamicObject) -> T + Send + 'static,
) -> WatchStream<T> {
    let (api, namespace) = (scope.dynamic_api(cluster.kube_client(), kind), scope.namespace().map(str::to_owned));
    watch_mapped(api, &WatchOptions::default(), kind.group_resource(), namespace, move |object| Some(read(object)))
}

/// Puts a list together from its parts.
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
            ApiError::Unavailable(format!("{}: the answer has no version", request("watch")))
        }
    };
    // Nothing was written: whatever broke, asking again helps.
    match error {
        ApiError::Unknown(words) => ApiError::Unavailable(words),
        error => error,
    }
}

/// Pauses between tries that fail: they double, up to a few seconds.
///
/// kube takes the beginning of every try for a success. What counts here is that nothing failed for a while.
#[derive(Debug)]
struct WatchBackoff {
    delay: Duration,
    last_failure: Option<Instant>,
}

const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(3);
/// Longer than a pause and the try after it.
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
        let pause = self.delay;
        self.delay = (pause * 2).min(MAX_BACKOFF);
        // Replicas that lost the same API server do not come back to it all at once.
        Some(pause.mul_f64(rand::random_range(0.5..1.0)))
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
    fn of_what_is_told_only_what_is_read_is_kept() {
        let mut listed = Vec::new();
        let read = |object: ConfigMap| object.metadata.name.filter(|name| name != "other");
        let mut told = |event| collect_event(event, &mut listed, read);
        for event in [Event::Init, Event::InitApply(object("other")), Event::InitApply(object("a"))] {
            assert_eq!(told(event), None);
        }
        assert_eq!(told(Event::InitDone), Some(WatchEvent::Reset(vec!["a".to_owned()])));
        assert_eq!(told(Event::Apply(object("other"))), None);
        assert_eq!(told(Event::Delete(object("a"))), Some(WatchEvent::Delete("a".to_owned())));
    }

    fn describe(news: Option<WatchEvent<ConfigMap>>) -> String {
        let name = |object: &ConfigMap| {
            assert!(object.managed_fields().is_empty(), "they are large, and nobody reads them");
            object.name_any()
        };
        match news {
            None => "nothing".to_owned(),
            Some(WatchEvent::Reset(objects)) => {
                format!("all: {}", objects.iter().map(name).collect::<Vec<_>>().join(" "))
            }
            Some(WatchEvent::Apply(object)) => format!("apply: {}", name(&object)),
            Some(WatchEvent::Delete(object)) => format!("delete: {}", name(&object)),
        }
    }

    #[test]
    fn a_list_is_told_when_it_is_complete() {
        let mut listed = Vec::new();
        let mut told = |event| describe(collect_event(event, &mut listed, Some));
        assert_eq!(told(Event::Init), "nothing");
        assert_eq!(told(Event::InitApply(object("a"))), "nothing");
        assert_eq!(told(Event::Init), "nothing");
        assert_eq!(told(Event::InitApply(object("b"))), "nothing");
        assert_eq!(told(Event::InitApply(object("c"))), "nothing");
        assert_eq!(told(Event::InitDone), "all: b c", "a list that broke off is forgotten");
        assert_eq!(told(Event::Apply(object("d"))), "apply: d");
        assert_eq!(told(Event::Delete(object("b"))), "delete: b");
        assert_eq!(told(Event::Init), "nothing");
        assert_eq!(told(Event::InitDone), "all: ");
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_and_begin_again_when_nothing_failed_for_a_while() {
        let mut pauses = WatchBackoff::default();
        let mut taken = Vec::new();
        for _ in 0..8 {
            let pause = pauses.next().unwrap();
            taken.push(pause);
            tokio::time::sleep(pause).await;
            // A try that begins has not succeeded.
            pauses.reset();
        }
        assert!(taken[0] <= INITIAL_BACKOFF && taken[7] <= MAX_BACKOFF && taken[7] >= MAX_BACKOFF / 2, "{taken:?}");
        tokio::time::sleep(BACKOFF_RESET).await;
        assert!(pauses.next().unwrap() <= INITIAL_BACKOFF);
    }
}
