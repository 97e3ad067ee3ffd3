//! Events about Rollouts, as `kubectl describe` shows them.
//!
//! kube's own recorder takes events of one reason for repetitions of each other and keeps the words of the first; here
//! the words are what matters, so only the same words are a repetition.

use crate::{
    CachedClient,
    api_error::{ApiError, ApiRequest},
    cached_client::write::with_write_timeout,
    resource_kind,
};
use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use rollora_api::rollout::Rollout;
use serde_json::json;
use std::{collections::VecDeque, time::Duration};
use tokio::sync::mpsc;

/// Words that the API server takes.
const MAX_NOTE_BYTES: usize = 1024;
/// How long the same words are counted as one event.
const SERIES_WINDOW: Duration = Duration::from_mins(6);
/// Events that wait to be told.
const WAITING: usize = 1024;
/// Events that are remembered for that.
const MAX_RECENT: usize = 256;
/// Who tells, as events name it.
const CONTROLLER: &str = "rollora.dev/operator";

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventDetails<'a> {
    /// Whether a person should look.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'a str,
    /// In words.
    pub message: &'a str,
}

/// Where what is to be told goes in. Nobody waits until it is told.
#[derive(Debug)]
pub struct EventRecorder {
    instance: String,
    now: fn() -> Timestamp,
    queue: mpsc::Sender<Event>,
}

/// Tells it, one after the other.
#[derive(Debug)]
pub struct EventPublisher {
    client: CachedClient,
    queue: mpsc::Receiver<Event>,
    recent: RecentEvents,
}

/// What was told a while ago.
#[derive(Debug, Default)]
struct RecentEvents(VecDeque<RecentEvent>);

/// An event that was told.
#[derive(Debug, Clone)]
struct RecentEvent {
    subject: (String, String),
    note: String,
    name: String,
    last_seen: Timestamp,
    count: i32,
}

/// Why something is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING} others wait for the API server to take them: this one is dropped, the log has it")]
pub struct EventQueueFull;

/// Both ends. `instance` is this process's name.
pub fn event_recorder(
    documents: &CachedClient,
    instance: &str,
    now: fn() -> Timestamp,
) -> (EventRecorder, EventPublisher) {
    let (sender, queue) = mpsc::channel(WAITING);
    let events = EventRecorder { instance: instance.to_owned(), now, queue: sender };
    (events, EventPublisher { client: documents.clone(), queue, recent: RecentEvents::default() })
}

impl EventRecorder {
    /// Has a [`Teller`] tell something of a Rollout.
    pub fn record(&self, rollout: &Rollout, notice: EventDetails<'_>) -> Result<(), EventQueueFull> {
        self.queue.try_send(self.build_event(rollout, notice, (self.now)())).map_err(|_| EventQueueFull)
    }

    fn build_event(&self, rollout: &Rollout, notice: EventDetails<'_>, now: Timestamp) -> Event {
        let metadata = &rollout.metadata;
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", metadata.name, now.as_nanosecond())),
                namespace: metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(truncate_note(notice.message)),
            reason: Some(notice.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(resource_kind::ROLLOUT.api_version()),
                kind: Some(resource_kind::ROLLOUT.name.to_owned()),
                name: Some(metadata.name.clone()),
                namespace: metadata.namespace.clone(),
                uid: metadata.uid.clone(),
                resource_version: metadata.resource_version.clone(),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

impl EventPublisher {
    /// Tells until everybody who could want something told is gone.
    pub async fn run(mut self) {
        while let Some(event) = self.queue.recv().await {
            let (namespace, name) = (event.metadata.namespace.clone(), event.metadata.name.clone());
            // What cannot be told is an error to log, nothing more.
            if let Err(error) = self.publish(event).await {
                tracing::warn!(namespace, event = name, "an event could not be told: {error}");
            }
        }
    }

    async fn publish(&mut self, event: Event) -> Result<(), ApiError> {
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.kube_client(), &namespace);
        let resource = resource_kind::EVENT.group_resource();
        let request = |verb| ApiRequest { verb, resource: &resource, namespace: Some(&namespace) };
        let _place = self.client.acquire_write_permit().await;
        let told = RecentEvent::of(&event);
        if let Some((name, count)) = self.recent.count_repeat(&told) {
            let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(told.last_seen) } });
            let (params, patch) = (PatchParams::default(), Patch::Merge(series));
            match with_write_timeout(api.patch(&name, &params, &patch), request("patch")).await {
                // Events are forgotten after a while: then it is told anew.
                Err(ApiError::NotFound(_)) => {}
                ended => return ended.map(drop),
            }
        }
        with_write_timeout(api.create(&PostParams::default(), &event), request("create")).await?;
        self.recent.remember(told);
        Ok(())
    }
}

impl RecentEvents {
    /// The event that said the same a while ago, and how often it is said now.
    fn count_repeat(&mut self, told: &RecentEvent) -> Option<(String, i32)> {
        self.0.retain(|event| event.last_seen + SERIES_WINDOW > told.last_seen);
        let same = self.0.iter_mut().find(|event| event.is_repeat_of(told))?;
        same.count += 1;
        same.last_seen = told.last_seen;
        Some((same.name.clone(), same.count))
    }

    fn remember(&mut self, told: RecentEvent) {
        self.0.retain(|other| !other.is_repeat_of(&told));
        if self.0.len() >= MAX_RECENT {
            self.0.pop_front();
        }
        self.0.push_back(told);
    }
}

impl RecentEvent {
    fn of(event: &Event) -> Self {
        let regarding = event.regarding.as_ref().and_then(|regarding| regarding.uid.clone());
        Self {
            subject: (regarding.unwrap_or_default(), event.reason.clone().unwrap_or_default()),
            note: event.note.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            last_seen: event.event_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            count: 1,
        }
    }

    fn is_repeat_of(&self, other: &Self) -> bool {
        self.subject == other.subject && self.note == other.note
    }
}

/// The words, cut where the API server would refuse them.
fn truncate_note(words: &str) -> String {
    if words.len() <= MAX_NOTE_BYTES {
        return words.to_owned();
    }
    let mut end = MAX_NOTE_BYTES - '…'.len_utf8();
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    let (start, _) = words.split_at(end);
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_words_are_cut_between_characters() {
        assert_eq!(truncate_note("short"), "short");
        let long = truncate_note(&"ä".repeat(1000));
        assert!(long.len() <= MAX_NOTE_BYTES && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn the_same_words_about_the_same_are_one_event_for_a_while() {
        let told = |name: &str, note: &str, seconds: i64| RecentEvent {
            subject: ("uid".to_owned(), "Progressing".to_owned()),
            note: note.to_owned(),
            name: name.to_owned(),
            last_seen: Timestamp::from_second(seconds).unwrap(),
            count: 1,
        };
        let mut past = RecentEvents::default();
        assert_eq!(past.count_repeat(&told("a", "words", 0)), None);
        past.remember(told("a", "words", 0));
        assert_eq!(past.count_repeat(&told("b", "others", 1)), None);
        assert_eq!(past.count_repeat(&told("c", "words", 300)), Some(("a".to_owned(), 2)));
        assert_eq!(past.count_repeat(&told("d", "words", 600)), Some(("a".to_owned(), 3)));
        assert_eq!(past.count_repeat(&told("e", "words", 961)), None, "that was too long ago");
        for number in 0..=MAX_RECENT {
            past.remember(told("f", &number.to_string(), 1000));
        }
        assert_eq!(past.0.len(), MAX_RECENT);
    }
}
