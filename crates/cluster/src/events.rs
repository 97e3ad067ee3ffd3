//! Kubernetes events about Rollouts, as `kubectl describe` shows them.
//!
//! kube's own recorder merges events with the same reason and keeps the note of the first one. Here the note is what
//! matters, so only events with the same note are merged into a series.

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

/// Maximum length of a note that the API server accepts.
const MAX_NOTE_BYTES: usize = 1024;
/// Time within which a repeated note extends the series of the earlier event.
const SERIES_WINDOW: Duration = Duration::from_mins(6);
/// Capacity of the queue of events to publish.
const QUEUE_CAPACITY: usize = 1024;
/// Number of events that are remembered to detect repetitions.
const MAX_RECENT: usize = 256;
/// Value of `reportingController` in every event.
const CONTROLLER: &str = "rollora.dev/operator";

/// Content of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventDetails<'a> {
    /// Type `Warning` instead of `Normal`: a person should check the Rollout.
    pub warning: bool,
    /// Reason in CamelCase, for machines.
    pub reason: &'a str,
    /// Note for people; it is truncated to 1024 bytes.
    pub message: &'a str,
}

/// Sending end of the event queue; recording never blocks.
#[derive(Debug)]
pub struct EventRecorder {
    instance: String,
    now: fn() -> Timestamp,
    queue: mpsc::Sender<Event>,
}

/// Receiving end of the event queue; publishes events one after the other.
#[derive(Debug)]
pub struct EventPublisher {
    client: CachedClient,
    queue: mpsc::Receiver<Event>,
    recent: RecentEvents,
}

/// Published events of the last minutes, oldest first.
#[derive(Debug, Default)]
struct RecentEvents(VecDeque<RecentEvent>);

#[derive(Debug, Clone)]
struct RecentEvent {
    subject: (String, String),
    note: String,
    name: String,
    last_seen: Timestamp,
    count: i32,
}

/// The event queue is full, so an event was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("event dropped: {QUEUE_CAPACITY} events wait for the API server; see the log for its message")]
pub struct EventQueueFull;

/// Creates the two ends of an event queue. `instance` is the value of `reportingInstance`.
pub fn event_recorder(
    client: &CachedClient,
    instance: &str,
    now: fn() -> Timestamp,
) -> (EventRecorder, EventPublisher) {
    let (sender, queue) = mpsc::channel(QUEUE_CAPACITY);
    let events = EventRecorder { instance: instance.to_owned(), now, queue: sender };
    (events, EventPublisher { client: client.clone(), queue, recent: RecentEvents::default() })
}

impl EventRecorder {
    /// Queues an event about a Rollout for the [`EventPublisher`].
    ///
    /// # Errors
    /// [`EventQueueFull`] if the event was dropped.
    pub fn record(&self, rollout: &Rollout, details: EventDetails<'_>) -> Result<(), EventQueueFull> {
        self.queue.try_send(self.build_event(rollout, details, (self.now)())).map_err(|_| EventQueueFull)
    }

    fn build_event(&self, rollout: &Rollout, details: EventDetails<'_>, now: Timestamp) -> Event {
        let metadata = &rollout.metadata;
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", metadata.name, now.as_nanosecond())),
                namespace: metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(truncate_note(details.message)),
            reason: Some(details.reason.to_owned()),
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
            type_: Some(if details.warning { "Warning" } else { "Normal" }.to_owned()),
            ..Event::default()
        }
    }
}

impl EventPublisher {
    /// Publishes queued events until all recorders are dropped.
    pub async fn run(mut self) {
        while let Some(event) = self.queue.recv().await {
            let (namespace, name) = (event.metadata.namespace.clone(), event.metadata.name.clone());
            // An event that cannot be published is logged and dropped.
            if let Err(error) = self.publish(event).await {
                tracing::warn!(namespace, event = name, "cannot publish an event: {error}");
            }
        }
    }

    async fn publish(&mut self, event: Event) -> Result<(), ApiError> {
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.kube_client(), &namespace);
        let resource = resource_kind::EVENT.group_resource();
        let request = |verb| ApiRequest { verb, resource: &resource, namespace: Some(&namespace) };
        let _permit = self.client.acquire_write_permit().await;
        let recent_event = RecentEvent::of(&event);
        if let Some((name, count)) = self.recent.count_repeat(&recent_event) {
            let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(recent_event.last_seen) } });
            let (params, patch) = (PatchParams::default(), Patch::Merge(series));
            match with_write_timeout(api.patch(&name, &params, &patch), request("patch")).await {
                // The API server deletes events after a while: create a new one.
                Err(ApiError::NotFound(_)) => {}
                result => return result.map(drop),
            }
        }
        with_write_timeout(api.create(&PostParams::default(), &event), request("create")).await?;
        self.recent.remember(recent_event);
        Ok(())
    }
}

impl RecentEvents {
    /// Extends the series of an earlier event with the same note. Returns the name of that event and the new count.
    fn count_repeat(&mut self, event: &RecentEvent) -> Option<(String, i32)> {
        self.0.retain(|other| other.last_seen + SERIES_WINDOW > event.last_seen);
        let earlier = self.0.iter_mut().find(|other| other.is_repeat_of(event))?;
        earlier.count += 1;
        earlier.last_seen = event.last_seen;
        Some((earlier.name.clone(), earlier.count))
    }

    fn remember(&mut self, event: RecentEvent) {
        self.0.retain(|other| !other.is_repeat_of(&event));
        if self.0.len() >= MAX_RECENT {
            self.0.pop_front();
        }
        self.0.push_back(event);
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

/// Truncates the note at a character boundary to the length that the API server accepts.
fn truncate_note(note: &str) -> String {
    if note.len() <= MAX_NOTE_BYTES {
        return note.to_owned();
    }
    let mut end = MAX_NOTE_BYTES - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    let (start, _) = note.split_at(end);
    format!("{start}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_note_is_truncated_between_characters() {
        assert_eq!(truncate_note("short"), "short");
        let long = truncate_note(&"ä".repeat(1000));
        assert!(long.len() <= MAX_NOTE_BYTES && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn same_note_extends_the_series_within_its_window() {
        let event = |name: &str, note: &str, seconds: i64| RecentEvent {
            subject: ("uid".to_owned(), "Progressing".to_owned()),
            note: note.to_owned(),
            name: name.to_owned(),
            last_seen: Timestamp::from_second(seconds).unwrap(),
            count: 1,
        };
        let mut recent = RecentEvents::default();
        assert_eq!(recent.count_repeat(&event("a", "note", 0)), None);
        recent.remember(event("a", "note", 0));
        assert_eq!(recent.count_repeat(&event("b", "others", 1)), None);
        assert_eq!(recent.count_repeat(&event("c", "note", 300)), Some(("a".to_owned(), 2)));
        assert_eq!(recent.count_repeat(&event("d", "note", 600)), Some(("a".to_owned(), 3)));
        assert_eq!(recent.count_repeat(&event("e", "note", 961)), None, "the series window has passed");
        for number in 0..=MAX_RECENT {
            recent.remember(event("f", &number.to_string(), 1000));
        }
        assert_eq!(recent.0.len(), MAX_RECENT);
    }
}
