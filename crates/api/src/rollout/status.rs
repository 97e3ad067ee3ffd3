//! `status` of a Rollout. Phase and message are for people; tools read conditions.
//!
//! With the feature `kube` the types carry the schema of the custom resource. Enums are plain words there, unlike those
//! of the spec: a newer operator may write values that an older definition does not know.

use super::{
    intent::IntentKind,
    spec::{RouterKind, Step},
};
use crate::{
    adapters::ContentHash,
    condition::Condition,
    names::{AdapterId, Sequence},
};
use serde::{Deserialize, Serialize};

/// How far a Rollout is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// The generation of the spec that this speaks of.
    pub observed_generation: Option<i64>,
    /// The adapters file that this speaks of.
    pub observed_adapters: Option<ObservedAdapters>,
    /// Derived from the conditions, for people: Pending, Progressing, Paused, Held, RollingBack, RolledBack, Succeeded,
    /// Invalid. An open-ended list.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub phase: Phase,
    /// Since when the phase is this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub phase_since: Option<jiff::Timestamp>,
    /// What it waits for, on whom, since when, until when.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub message: String,
    /// What the columns of `kubectl get` show; derived from the rest.
    pub summary: StatusSummary,
    /// Which adapters it is about.
    pub revision: Revision,
    /// The steps as they were when this revision began; an edit in the middle takes effect next time.
    #[cfg_attr(feature = "kube", schemars(length(max = 50)))]
    pub steps: Vec<Step>,
    /// What `setWeight` in `steps` is out of.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 1_000_000)))]
    pub total_weight: i32,
    /// Where it stands in `steps`.
    pub step: Option<StepStatus>,
    /// The weights that should be in force.
    pub weights: TrafficWeights,
    /// The rewrite that carries them.
    pub rewrite: Option<RewriteIdentity>,
    /// Who has the adapter.
    pub residency: Residency,
    /// Who routes by the weights.
    pub routers: RouterStatus,
    /// Ids that lost their weight and are on their way out; at most 10, or 50 where more than 10 have to wait.
    #[cfg_attr(feature = "kube", schemars(length(max = 50)))]
    pub retired: Vec<RetiredAdapter>,
    /// Ids that failed; at most 10.
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub rejected: Vec<RejectedAdapter>,
    /// The governed ids and the one pilot, as the operator's key says.
    pub admission: AdmissionStatus,
    /// The last intent that was consumed.
    pub last_action: Option<LastAction>,
    /// Revisions that ended, newest first; at most 10.
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub history: Vec<PastRevision>,
    /// Conditions, sorted by type.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::conditions"))]
    pub conditions: Vec<Condition>,
}

impl RolloutStatus {
    /// What the columns show of the rest.
    pub fn summarize(&self) -> StatusSummary {
        let index = self.step.as_ref().map(|step| step.index);
        let desired = self.revision.desired.as_ref();
        let weight = self.weights.desired.iter().find(|target| Some(&target.id) == desired).map_or(0, |t| t.weight);
        let total: i32 = self.weights.desired.iter().map(|target| target.weight).sum();
        StatusSummary {
            step: index.map(|index| format!("{index}/{}", self.steps.len())).unwrap_or_default(),
            weight: if total > 0 { format!("{weight}/{total}") } else { String::new() },
        }
    }
}

/// What the columns of `kubectl get` show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct StatusSummary {
    /// Steps that are done, of all: `2/5`.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub step: String,
    /// The desired adapter's weight, of all: `10/100`.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub weight: String,
}

/// The adapters file that a status speaks of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ObservedAdapters {
    /// The ConfigMap's version.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub resource_version: String,
    /// The hash of its content.
    pub hash: ContentHash,
}

/// A word for people. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The adapter is not listed, not admitted or not resident yet, or there is no Ready server.
    #[default]
    Pending,
    /// Steps go on.
    Progressing,
    /// In a pause, or `spec.paused`.
    Paused,
    /// A server lost the adapter, or a failure with `onFailure: Hold`.
    Held,
    /// All traffic is on its way back to stable.
    RollingBack,
    /// All traffic is back on stable.
    RolledBack,
    /// The desired adapter has 100 %, proven at the routers.
    Succeeded,
    /// The Rollout or what it refers to is not valid; nothing is done.
    Invalid,
}

/// Which adapters a rollout is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Revision {
    /// Rises with every desired adapter.
    pub number: i64,
    /// The adapter that last succeeded; none before the first install.
    pub stable: Option<AdapterId>,
    /// The adapter that is wanted.
    pub desired: Option<AdapterId>,
}

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Index into `steps`; their number when all are done.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 50)))]
    pub index: i32,
    /// How far the step is: AwaitingResidency, AwaitingRouters, Pausing, Held, Done. An open-ended list.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub state: StepState,
    /// When it began.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub entered_at: jiff::Timestamp,
    /// Time in this step in which the operator could observe; deadlines count this only. Milliseconds.
    #[serde(default)]
    pub observed_millis: i64,
    /// When `observedMillis` was last added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub observed_at: Option<jiff::Timestamp>,
}

/// How far a step is. An open-ended list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepState {
    /// Waits for the adapter to be admitted and resident.
    AwaitingResidency,
    /// The weights are written; routers are asked.
    AwaitingRouters,
    /// In a pause.
    Pausing,
    /// The weight was taken back because a server lost the adapter.
    Held,
    /// Done.
    Done,
}

/// The weights that should be in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficWeights {
    /// Every target that has weight, stable first.
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub desired: Vec<TargetWeight>,
    /// Rises with every change; stamped on the rewrite.
    pub sequence: Sequence,
    /// When `desired` last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub changed_at: Option<jiff::Timestamp>,
    /// The highest sequence that was seen in the rewrite: a difference from then on is somebody else's edit.
    pub applied: Sequence,
    /// When that was seen first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub applied_at: Option<jiff::Timestamp>,
    /// When edits by others were put back; at most the last 3.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(with = "Vec<crate::schema::Time>", length(max = 16)))]
    pub overwritten: Vec<jiff::Timestamp>,
}

/// One target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TargetWeight {
    /// The adapter.
    pub id: AdapterId,
    /// Its weight; 1 to 1,000,000.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1_000_000)))]
    pub weight: i32,
}

/// The rewrite that carries the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RewriteIdentity {
    /// Its API group.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub group: String,
    /// Its name.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub name: String,
    /// Its UID.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub uid: String,
}

/// Who has the adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Residency {
    /// Ready servers that have the desired adapter.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub resident: i32,
    /// Ready servers.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub ready: i32,
    /// Ready servers that lack it, each with the reason; at most 10.
    #[cfg_attr(feature = "kube", schemars(length(max = 10), inner(length(max = 32768))))]
    pub missing: Vec<String>,
    /// Since when a Ready server lacks an adapter that has weight.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub lost_since: Option<jiff::Timestamp>,
    /// Where `residency` is Registered: ids that the adapters file unlisted when it was last read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 100)))]
    pub unlisted: Vec<AdapterId>,
    /// Where `residency` is Registered: ids that were unlisted and are listed again, for as long as that counts against
    /// them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 100)))]
    pub relisted: Vec<RelistedAdapter>,
}

/// An id that was unlisted and is listed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RelistedAdapter {
    /// The adapter.
    pub id: AdapterId,
    /// When it was first seen to be listed again.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub at: jiff::Timestamp,
}

/// Who routes by the weights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RouterStatus {
    /// Who executes the rewrite.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub kind: RouterKind,
    /// Routers that have the rule that was written.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub proven: i32,
    /// All routers.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub total: i32,
}

/// An id that lost its weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RetiredAdapter {
    /// The adapter.
    pub id: AdapterId,
    /// When it lost its last weight.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub since: jiff::Timestamp,
    /// How far its retirement is: Waiting, Unlisting, Unloading, Gone, StillInUse, Relisted, Returning, Suggested, Kept.
    /// An open-ended list.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub state: RetirementState,
    /// Whether it had all requests once: then it comes back at once, not by steps.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_stable: bool,
    /// Why it is there, in words.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub reason: String,
}

/// How far a retirement is. An open-ended list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetirementState {
    /// Routers, quiet, delay, references: the reason names what is missing.
    Waiting,
    /// The edit of the adapters file is on its way.
    Unlisting,
    /// The file unlists it; servers still unload.
    Unloading,
    /// No server has it.
    Gone,
    /// Somebody still uses it or names it.
    StillInUse,
    /// A person put it back.
    Relisted,
    /// The edit is left to a person.
    Suggested,
    /// The policy keeps it.
    Kept,
    /// It is wanted again after it was unlisted: it is listed again, then waits for residency like any other.
    Returning,
}

/// An id that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RejectedAdapter {
    /// The adapter.
    pub id: AdapterId,
    /// Why, in words.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub reason: String,
}

/// What a Rollout adds to the operator's key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct AdmissionStatus {
    /// Governed ids that every server may load.
    #[cfg_attr(feature = "kube", schemars(length(max = 10_000)))]
    pub admitted: Vec<AdapterId>,
    /// Rejected ids that were admitted before: no server loads them any more, and those that have them keep them until
    /// nobody can reach them and they have been quiet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub retained: Vec<AdapterId>,
    /// The one server that tries the desired adapter first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pilot: Option<crate::operator_directives::Pilot>,
    /// Where ids were tried before another took their place: there each is tried again, should it come back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub past_pilots: Vec<crate::operator_directives::Pilot>,
}

impl AdmissionStatus {
    /// Whether servers may have this id because of the Rollout.
    pub fn permits(&self, id: &AdapterId) -> bool {
        self.admitted.contains(id) || self.retained.contains(id)
    }
}

/// The last intent that was consumed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LastAction {
    /// The intent's id.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub id: String,
    /// What was asked: promote, promote-full, abort, retry. An open-ended list.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub verb: IntentKind,
    /// Who asked, where that is known. Said by the client, not proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub claimed_by: Option<String>,
    /// When it was consumed.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub at: jiff::Timestamp,
    /// Whether it was done, and if not, why: begins with `done: ` or `refused: `.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub outcome: String,
}

impl LastAction {
    /// What was done, or why it was refused.
    pub fn outcome(&self) -> Result<&str, &str> {
        match self.outcome.strip_prefix("refused: ") {
            Some(reason) => Err(reason),
            None => Ok(self.outcome.strip_prefix("done: ").unwrap_or(&self.outcome)),
        }
    }
}

/// A revision that ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PastRevision {
    /// Its number.
    pub revision: i64,
    /// The adapter that was wanted.
    pub id: AdapterId,
    /// How it ended: the reason of a condition.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub outcome: String,
    /// When.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub at: jiff::Timestamp,
}
