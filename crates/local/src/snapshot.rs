//! One consistent snapshot of all documents, and how each write changes it: plain data and pure functions. They take
//! the part of an API server: they assign UIDs, resource versions and generations.

#[cfg(test)]
pub(crate) mod tests;

use jiff::Timestamp;
use rollora_api::{
    adapters::{AdaptersFile, AdaptersText, ContentHash, content_hash},
    metadata::ObjectMeta,
    names::INTENT_ANNOTATION,
    operator_directives::OperatorDirectives,
    rewrite::InferenceModelRewrite,
    rollout::{
        Intent, IntentPending, Rollout, RolloutStatus,
        validate::{FieldError, immutable_changes},
    },
};
use rollora_operator::ports::{Precondition, ResourceVersion, WriteOutcome};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc};

/// Number of events that are kept; older ones are dropped.
const MAX_EVENTS: usize = 50;

/// All documents at one moment. It is cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct StoreSnapshot {
    /// The last valid Rollout, with its status.
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) rewrites: Arc<Vec<InferenceModelRewrite>>,
    /// The last valid adapters file.
    pub(crate) adapters: AdaptersContent,
    pub(crate) directives: DirectivesContent,
    /// The last events, oldest first.
    pub(crate) events: Arc<VecDeque<EventRecord>>,
    /// Problems of the current content of the input files.
    pub(crate) problems: FileProblems,
}

/// The adapters file, as text and parsed.
#[derive(Debug, Clone)]
pub(crate) struct AdaptersContent {
    /// The whole file, which may be a ConfigMap that contains the user's part.
    pub(crate) text: Arc<AdaptersText>,
    pub(crate) file: Arc<AdaptersFile>,
}

/// The operator directives, as text and parsed; `None` before the operator has written any.
#[derive(Debug, Clone, Default)]
pub(crate) struct DirectivesContent {
    pub(crate) text: Option<Arc<str>>,
    pub(crate) parsed: Option<Arc<OperatorDirectives>>,
}

/// Problems of the two input files, with file, line and fix; `None` if a file is valid.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileProblems {
    pub(crate) rollout: Option<String>,
    pub(crate) adapters: Option<String>,
}

/// An event of the Rollout, possibly repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRecord {
    /// Time of the last occurrence.
    pub at: Timestamp,
    /// Number of occurrences in a row.
    pub count: u32,
    /// Whether the event needs a person's attention.
    pub warning: bool,
    /// Reason in CamelCase, as in a Kubernetes event.
    pub reason: String,
    /// What happened, as a sentence for people.
    pub message: String,
}

impl StoreSnapshot {
    /// Hash of the adapters file and the operator directives.
    pub(crate) fn hash(&self) -> ContentHash {
        content_hash(self.adapters.text.inner(), self.directives.text.as_deref())
    }

    /// Returns the Rollout with another status; a conflict if `version` is not the current one.
    pub(crate) fn with_status(
        &self,
        version: &ResourceVersion,
        status: &RolloutStatus,
    ) -> Result<Rollout, WriteOutcome> {
        if resource_version(&self.rollout.metadata) != *version {
            return Err(WriteOutcome::Conflict);
        }
        let mut rollout = Rollout::clone(&self.rollout);
        rollout.status = Some(status.clone());
        increment_resource_version(&mut rollout.metadata);
        Ok(rollout)
    }

    /// Returns the rewrites with `rewrite` created or replaced, and its new version.
    pub(crate) fn with_rewrite(
        &self,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
        new_uid: &str,
        now: Timestamp,
    ) -> Result<(Vec<InferenceModelRewrite>, ResourceVersion), WriteOutcome> {
        let mut rewrites = Vec::clone(&self.rewrites);
        let old = rewrites
            .iter()
            .position(|old| old.metadata.name == rewrite.metadata.name && old.group() == rewrite.group());
        let mut rewrite = rewrite.clone();
        match (precondition, old) {
            (Precondition::Absent, Some(_)) | (Precondition::Unchanged(_), None) => Err(WriteOutcome::Conflict),
            (Precondition::Absent, None) => {
                rewrite.metadata.uid = Some(new_uid.to_owned());
                rewrite.metadata.creation_timestamp = Some(now);
                rewrite.metadata.generation = Some(1);
                rewrite.metadata.resource_version = Some("1".to_owned());
                let version = resource_version(&rewrite.metadata);
                rewrites.push(rewrite);
                Ok((rewrites, version))
            }
            (Precondition::Unchanged(version), Some(index)) => {
                let old = &mut rewrites[index];
                if resource_version(&old.metadata) != *version {
                    return Err(WriteOutcome::Conflict);
                }
                let generation = old.metadata.generation.unwrap_or(0) + i64::from(old.spec != rewrite.spec);
                rewrite.metadata.generation = Some(generation);
                rewrite.metadata.uid.clone_from(&old.metadata.uid);
                rewrite.metadata.creation_timestamp = old.metadata.creation_timestamp;
                rewrite.metadata.resource_version.clone_from(&old.metadata.resource_version);
                increment_resource_version(&mut rewrite.metadata);
                let version = resource_version(&rewrite.metadata);
                *old = rewrite;
                Ok((rewrites, version))
            }
        }
    }

    /// Returns the Rollout with an intent in its annotation.
    pub(crate) fn with_intent(&self, intent: &Intent) -> Result<Rollout, IntentPending> {
        intent.check_allowed(&self.rollout)?;
        let mut rollout = Rollout::clone(&self.rollout);
        let text = serde_json::json!(intent).to_string();
        rollout.metadata.annotations.insert(INTENT_ANNOTATION.to_owned(), text);
        increment_resource_version(&mut rollout.metadata);
        Ok(rollout)
    }

    /// Returns the events with one more. A repetition of the last one increases its count.
    pub(crate) fn with_event(&self, event: EventRecord) -> VecDeque<EventRecord> {
        let mut events = VecDeque::clone(&self.events);
        match events.back_mut() {
            Some(last) if last.reason == event.reason && last.message == event.message => {
                last.count = last.count.saturating_add(1);
                last.at = event.at;
            }
            _ => events.push_back(event),
        }
        while events.len() > MAX_EVENTS {
            events.pop_front();
        }
        events
    }
}

/// Creates the document of a Rollout that was not stored before.
pub(crate) fn new_rollout(file: &Rollout, uid: &str, now: Timestamp) -> Rollout {
    let mut rollout = user_fields(file);
    rollout.metadata.uid = Some(uid.to_owned());
    rollout.metadata.creation_timestamp = Some(now);
    rollout.metadata.generation = Some(1);
    rollout.metadata.resource_version = Some("1".to_owned());
    rollout
}

/// Returns the stored Rollout with the content of the file, or `None` if that changes nothing. Fails if an immutable
/// field differs.
pub(crate) fn updated_rollout(stored: &Rollout, file: &Rollout) -> Result<Option<Rollout>, Vec<FieldError>> {
    let errors = immutable_field_errors(stored, file);
    if !errors.is_empty() {
        return Err(errors);
    }
    let file = user_fields(file);
    let mut rollout = stored.clone();
    rollout.metadata.labels = file.metadata.labels;
    rollout.metadata.annotations = file.metadata.annotations;
    if let Some(intent) = stored.metadata.annotations.get(INTENT_ANNOTATION) {
        rollout.metadata.annotations.insert(INTENT_ANNOTATION.to_owned(), intent.clone());
    }
    if rollout.spec != file.spec {
        rollout.spec = file.spec;
        rollout.metadata.generation = Some(rollout.metadata.generation.unwrap_or(0) + 1);
    }
    if rollout == *stored {
        return Ok(None);
    }
    increment_resource_version(&mut rollout.metadata);
    Ok(Some(rollout))
}

/// Keeps what a user may set in the file: no status, no metadata that the store assigns, and no intent.
fn user_fields(file: &Rollout) -> Rollout {
    let mut annotations = file.metadata.annotations.clone();
    annotations.remove(INTENT_ANNOTATION);
    Rollout {
        api_version: file.api_version.clone(),
        kind: file.kind.clone(),
        metadata: ObjectMeta {
            annotations,
            labels: file.metadata.labels.clone(),
            ..ObjectMeta::named(file.metadata.name.clone())
        },
        spec: file.spec.clone(),
        status: None,
    }
}

/// Lists changes of fields that the file may not change.
fn immutable_field_errors(stored: &Rollout, file: &Rollout) -> Vec<FieldError> {
    let name = &stored.metadata.name;
    let renamed = (file.metadata.name != *name).then(|| FieldError {
        path: "metadata.name".to_owned(),
        message: format!("cannot be changed: restore `{name}`, or start another Rollout with its own --state"),
    });
    renamed.into_iter().chain(immutable_changes(&stored.spec, &file.spec)).collect()
}

pub(crate) fn resource_version(metadata: &ObjectMeta) -> ResourceVersion {
    ResourceVersion(metadata.resource_version.clone().unwrap_or_default())
}

fn increment_resource_version(metadata: &mut ObjectMeta) {
    let version: u64 = metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0);
    metadata.resource_version = Some((version + 1).to_string());
}
