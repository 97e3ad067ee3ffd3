//! Events about Rollouts, as `kubectl describe` shows them.
//!
//! kube's own recorder takes events of one reason for repetitions of each other and keeps the words of the first; here
//! the words are what matters, so only the same words are a repetition.

use crate::{
    Documents,
    answer::{ApiError, Request},
    documents::write::write,
    kinds,
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
const LONGEST_NOTE: usize = 1024;
/// How long the same words are counted as one event.
const SERIES: Duration = Duration::from_mins(6);
/// Events that wait to be told.
const WAITING: usize = 1024;
/// Events that are remembered for that.
const REMEMBERED: usize = 256;
/// Who tells, as events name it.
const CONTROLLER: &str = "rollora.dev/operator";

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice<'a> {
    /// Whether a person should look.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'a str,
    /// In words.
    pub message: &'a str,
}

/// Where what is to be told goes in. Nobody waits until it is told.
#[derive(Debug)]
pub struct Events {
    instance: String,
    now: fn() -> Timestamp,
    queue: mpsc::Sender<Event>,
}

/// Tells it, one after the other.
#[derive(Debug)]
pub struct Teller {
    documents: Documents,
    queue: mpsc::Receiver<Event>,
    past: Told,
}

/// What was told a while ago.
#[derive(Debug, Default)]
struct Told(VecDeque<Past>);

/// An event that was told.
#[derive(Debug, Clone)]
struct Past {
    about: (String, String),
    note: String,
    name: String,
    last: Timestamp,
    count: i32,
}

/// Why something is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{WAITING} others wait for the API server to take them: this one is dropped, the log has it")]
pub struct TooMuchToTell;

/// Both ends. `instance` is this process's name.
pub fn events(documents: &Documents, instance: &str, now: fn() -> Timestamp) -> (Events, Teller) {
    let (sender, queue) = mpsc::channel(WAITING);
    let events = Events { instance: instance.to_owned(), now, queue: sender };
    (events, Teller { documents: documents.clone(), queue, past: Told::default() })
}

impl Events {
    /// Has a [`Teller`] tell something of a Rollout.
    pub fn tell(&self, rollout: &Rollout, notice: Notice<'_>) -> Result<(), TooMuchToTell> {
        self.queue.try_send(self.event(rollout, notice, (self.now)())).map_err(|_| TooMuchToTell)
    }

    fn event(&self, rollout: &Rollout, notice: Notice<'_>, now: Timestamp) -> Event {
        let metadata = &rollout.metadata;
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", metadata.name, now.as_nanosecond())),
                namespace: metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(shortened(notice.message)),
            reason: Some(notice.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(kinds::ROLLOUT.api_version()),
                kind: Some(kinds::ROLLOUT.name.to_owned()),
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

impl Teller {
    /// Tells until everybody who could want something told is gone.
    pub async fn run(mut self) {
        while let Some(event) = self.queue.recv().await {
            let (namespace, name) = (event.metadata.namespace.clone(), event.metadata.name.clone());
            // What cannot be told is an error to log, nothing more.
            if let Err(error) = self.tell(event).await {
                tracing::warn!(namespace, event = name, "an event could not be told: {error}");
            }
        }
    }

    async fn tell(&mut self, event: Event) -> Result<(), ApiError> {
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.documents.client(), &namespace);
        let resource = kinds::EVENT.resource();
        let request = |verb| Request { verb, resource: &resource, namespace: Some(&namespace) };
        let _place = self.documents.place().await;
        let told = Past::of(&event);
        if let Some((name, count)) = self.past.repeated(&told) {
            let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(told.last) } });
            let (params, patch) = (PatchParams::default(), Patch::Merge(series));
            match write(api.patch(&name, &params, &patch), request("patch")).await {
                // Events are forgotten after a while: then it is told anew.
                Err(ApiError::NotFound(_)) => {}
                ended => return ended.map(drop),
            }
        }
        write(api.create(&PostParams::default(), &event), request("create")).await?;
        self.past.remember(told);
        Ok(())
    }
}

impl Told {
    /// The event that said the same a while ago, and how often it is said now.
    fn repeated(&mut self, told: &Past) -> Option<(String, i32)> {
        self.0.retain(|event| event.last + SERIES > told.last);
        let same = self.0.iter_mut().find(|event| event.is_same(told))?;
        same.count += 1;
        same.last = told.last;
        Some((same.name.clone(), same.count))
    }

    fn remember(&mut self, told: Past) {
        self.0.retain(|other| !other.is_same(&told));
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(told);
    }
}

impl Past {
    fn of(event: &Event) -> Self {
        let regarding = event.regarding.as_ref().and_then(|regarding| regarding.uid.clone());
        Self {
            about: (regarding.unwrap_or_default(), event.reason.clone().unwrap_or_default()),
            note: event.note.clone().unwrap_or_default(),
            name: event.metadata.name.clone().unwrap_or_default(),
            last: event.event_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            count: 1,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.about == other.about && self.note == other.note
    }
}

/// The words, cut where the API server would refuse them.
fn shortened(words: &str) -> String {
    if words.len() <= LONGEST_NOTE {
        return words.to_owned();
    }
    let mut end = LONGEST_NOTE - '…'.len_utf8();
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
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"ä".repeat(1000));
        assert!(long.len() <= LONGEST_NOTE && long.ends_with('…'), "{}", long.len());
    }

    #[test]
    fn the_same_words_about_the_same_are_one_event_for_a_while() {
        let told = |name: &str, note: &str, seconds: i64| Past {
            about: ("uid".to_owned(), "Progressing".to_owned()),
            note: note.to_owned(),
            name: name.to_owned(),
            last: Timestamp::from_second(seconds).unwrap(),
            count: 1,
        };
        let mut past = Told::default();
        assert_eq!(past.repeated(&told("a", "words", 0)), None);
        past.remember(told("a", "words", 0));
        assert_eq!(past.repeated(&told("b", "others", 1)), None);
        assert_eq!(past.repeated(&told("c", "words", 300)), Some(("a".to_owned(), 2)));
        assert_eq!(past.repeated(&told("d", "words", 600)), Some(("a".to_owned(), 3)));
        assert_eq!(past.repeated(&told("e", "words", 961)), None, "that was too long ago");
        for number in 0..=REMEMBERED {
            past.remember(told("f", &number.to_string(), 1000));
        }
        assert_eq!(past.0.len(), REMEMBERED);
    }
}
