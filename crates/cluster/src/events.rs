//! Events about Rollouts, as `kubectl describe` shows them.
//!
//! kube's own recorder takes events of one reason for repetitions of each other and keeps the words of the first; here
//! the words are what matters, so only the same words are a repetition.

use crate::{
    Cluster,
    answer::{ApiError, Request},
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
use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Words that the API server takes.
const LONGEST_NOTE: usize = 1024;
/// How long the same words are counted as one event.
const SERIES: Duration = Duration::from_mins(6);
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

/// Tells people.
#[derive(Debug)]
pub struct Events {
    cluster: Cluster,
    instance: String,
    now: fn() -> Timestamp,
    past: Mutex<VecDeque<Past>>,
}

/// An event that was told.
#[derive(Debug, Clone)]
struct Past {
    about: (String, String),
    note: String,
    name: String,
    last: Timestamp,
    count: i32,
}

impl Events {
    /// `instance` is this process's name.
    pub fn new(cluster: &Cluster, instance: &str, now: fn() -> Timestamp) -> Self {
        Self { cluster: cluster.clone(), instance: instance.to_owned(), now, past: Mutex::default() }
    }

    /// Tells of a Rollout. What cannot be told is an error to log, nothing more.
    pub async fn tell(&self, rollout: &Rollout, notice: Notice<'_>) -> Result<(), ApiError> {
        let metadata = &rollout.metadata;
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.cluster.client(), &namespace);
        let resource = kinds::EVENT.resource();
        let request = |verb| Request { verb, resource: &resource, namespace: Some(&namespace) };
        let note = shortened(notice.message);
        let now = (self.now)();
        let about = (metadata.uid.clone().unwrap_or_default(), notice.reason.to_owned());
        if let Some((name, count)) = self.repeated(&about, &note, now) {
            let series = json!({ "series": { "count": count, "lastObservedTime": MicroTime(now) } });
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(series)).await;
            match patched.map_err(|error| ApiError::of(&error, request("patch"))) {
                // Events are forgotten after a while: then it is told anew.
                Err(ApiError::NotFound(_)) => {}
                ended => return ended.map(drop),
            }
        }
        let event = self.event(rollout, notice, &note, now);
        let name = event.metadata.name.clone().unwrap_or_default();
        let made = api.create(&PostParams::default(), &event).await;
        made.map_err(|error| ApiError::of(&error, request("create")))?;
        self.remember(Past { about, note, name, last: now, count: 1 });
        Ok(())
    }

    fn event(&self, rollout: &Rollout, notice: Notice<'_>, note: &str, now: Timestamp) -> Event {
        let metadata = &rollout.metadata;
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}", metadata.name, now.as_nanosecond())),
                namespace: metadata.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some("Reconcile".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note.to_owned()),
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

    /// The event that said the same a while ago, and how often it is said now.
    fn repeated(&self, about: &(String, String), note: &str, now: Timestamp) -> Option<(String, i32)> {
        let mut past = self.past();
        past.retain(|event| event.last + SERIES > now);
        let same = past.iter_mut().find(|event| event.about == *about && event.note == note)?;
        same.count += 1;
        same.last = now;
        Some((same.name.clone(), same.count))
    }

    fn remember(&self, event: Past) {
        let mut past = self.past();
        past.retain(|other| other.about != event.about || other.note != event.note);
        if past.len() >= REMEMBERED {
            past.pop_front();
        }
        past.push_back(event);
    }

    fn past(&self) -> std::sync::MutexGuard<'_, VecDeque<Past>> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
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
}
