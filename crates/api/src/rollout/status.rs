//! The `status` of a Rollout. Phase and message are for people; tools read the conditions.
//!
//! With the feature `kube` the types also carry the schema of the custom resource. Unlike in the spec, enums are plain
//! strings there: a newer operator may write values that an older CustomResourceDefinition does not know.

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

/// Observed state of a Rollout, written by the operator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// `metadata.generation` that this status was computed from.
    pub observed_generation: Option<i64>,
    /// Version of the adapters file that this status was computed from.
    pub observed_adapters: Option<ObservedAdapters>,
    /// Summary of the conditions, for people: Pending, Progressing, Paused, Held, RollingBack, RolledBack, Succeeded,
    /// Invalid. More values may be added.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub phase: Phase,
    /// When `phase` last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub phase_since: Option<jiff::Timestamp>,
    /// What the Rollout waits for, on which server or router, and since or until when.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub message: String,
    /// Values of the `kubectl get` columns, derived from the other fields.
    pub summary: StatusSummary,
    /// Current revision: the desired adapter and the stable one.
    pub revision: Revision,
    /// `spec.strategy.steps` as they were when the revision began. Later edits take effect with the next revision.
    #[cfg_attr(feature = "kube", schemars(length(max = 50)))]
    pub steps: Vec<Step>,
    /// Total that `setWeight` in `steps` is a share of.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 1_000_000)))]
    pub total_weight: i32,
    /// Current position in `steps`.
    pub step: Option<StepStatus>,
    /// Weights that the routers should apply.
    pub weights: TrafficWeights,
    /// InferenceModelRewrite that carries the weights.
    pub rewrite: Option<RewriteIdentity>,
    /// Which servers have loaded the adapter.
    pub residency: Residency,
    /// Which routers apply the weights.
    pub routers: RouterStatus,
    /// Adapters that lost their last weight, with their cleanup. At most 10, or 50 while more than 10 are unfinished.
    #[cfg_attr(feature = "kube", schemars(length(max = 50)))]
    pub retired: Vec<RetiredAdapter>,
    /// Adapters that failed and are not tried again. At most 10.
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub rejected: Vec<RejectedAdapter>,
    /// Which managed ids the servers may load, and the pilot server, as written under the ConfigMap key `rollora.yaml`.
    pub admission: AdmissionStatus,
    /// Last intent that the operator consumed, and its outcome.
    pub last_action: Option<LastAction>,
    /// Revisions that ended, newest first. At most 10.
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub history: Vec<PastRevision>,
    /// Conditions of the Rollout, sorted by type.
    #[cfg_attr(feature = "kube", schemars(schema_with = "crate::schema::conditions"))]
    pub conditions: Vec<Condition>,
}

impl RolloutStatus {
    /// Computes the values of the `kubectl get` columns from the other fields.
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

/// Values of the `kubectl get` columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct StatusSummary {
    /// Number of finished steps out of all steps, for example `2/5`.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub step: String,
    /// Weight of the desired adapter out of the total weight, for example `10/100`.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub weight: String,
}

/// Version of the adapters file that a status was computed from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ObservedAdapters {
    /// `metadata.resourceVersion` of the ConfigMap.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub resource_version: String,
    /// Hash of the adapters file and of the key `rollora.yaml` next to it.
    pub hash: ContentHash,
}

/// Summary of the conditions in one word, for people. More values may be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// The desired adapter is not listed, not admitted or not resident yet, or the pool has no Ready server.
    #[default]
    Pending,
    /// The rollout advances through its steps.
    Progressing,
    /// The current step is a pause, or `spec.paused` is true.
    Paused,
    /// A server lost the adapter, or a step failed with `onFailure: Hold`.
    Held,
    /// All traffic is moving back to stable.
    RollingBack,
    /// All traffic is back on stable.
    RolledBack,
    /// The desired adapter has 100 % of the traffic, confirmed by the routers.
    Succeeded,
    /// The Rollout, or an object that it refers to, is not valid. The operator changes nothing.
    Invalid,
}

/// Adapters of one rollout: the desired one and the stable one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Revision {
    /// Revision number. Increases with every change of the desired adapter.
    pub number: i64,
    /// Adapter that last succeeded. Absent before the first success.
    pub stable: Option<AdapterId>,
    /// Adapter that should serve the model name.
    pub desired: Option<AdapterId>,
}

/// Position of a rollout in its steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Index into `steps`, from 0. Equals the number of steps when all are done.
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 50)))]
    pub index: i32,
    /// State of the step: AwaitingResidency, AwaitingRouters, Pausing, Held, Done. More values may be added.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub state: StepState,
    /// When the step began.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub entered_at: jiff::Timestamp,
    /// Milliseconds of this step in which the operator could observe the servers and routers. Only these count toward
    /// `progressDeadline`.
    #[serde(default)]
    pub observed_millis: i64,
    /// When `observedMillis` was last increased.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub observed_at: Option<jiff::Timestamp>,
}

/// State of a step. More values may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepState {
    /// Waits until the adapter is admitted and resident.
    AwaitingResidency,
    /// The weights are written. Waits until every router applies them.
    AwaitingRouters,
    /// The step is a pause that has not ended.
    Pausing,
    /// The adapter's weight is 0 because a server lost the adapter.
    Held,
    /// The rollout, or the rollback, is complete.
    Done,
}

/// Weights that the routers should apply.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficWeights {
    /// Every adapter that has weight, stable first.
    #[cfg_attr(feature = "kube", schemars(length(max = 16)))]
    pub desired: Vec<TargetWeight>,
    /// Increases with every change of the weights. Also written as an annotation of the rewrite.
    pub sequence: Sequence,
    /// When `desired` last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub changed_at: Option<jiff::Timestamp>,
    /// Highest sequence that was read back from the rewrite. From then on, other weights in the rewrite are an edit by
    /// another writer.
    pub applied: Sequence,
    /// When `applied` was first read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub applied_at: Option<jiff::Timestamp>,
    /// When edits by other writers were reverted; the last 3 at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(with = "Vec<crate::schema::Time>", length(max = 16)))]
    pub overwritten: Vec<jiff::Timestamp>,
}

/// Weight of one adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TargetWeight {
    /// Id of the adapter.
    pub id: AdapterId,
    /// Weight of the adapter, 1 to 1,000,000.
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1_000_000)))]
    pub weight: i32,
}

/// Identity of the InferenceModelRewrite that carries the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RewriteIdentity {
    /// API group of the rewrite: `llm-d.ai` or `inference.networking.x-k8s.io`.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub group: String,
    /// Name of the rewrite.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub name: String,
    /// UID of the rewrite, which changes when it is deleted and created again.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub uid: String,
}

/// Which servers have loaded the desired adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Residency {
    /// Number of Ready servers that have the desired adapter.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub resident: i32,
    /// Number of Ready servers in the pool.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub ready: i32,
    /// Ready servers that lack the desired adapter, each with the reason. At most 10.
    #[cfg_attr(feature = "kube", schemars(length(max = 10), inner(length(max = 32768))))]
    pub missing: Vec<String>,
    /// When a Ready server was first observed without an adapter that has weight. Absent while no server lacks one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub lost_since: Option<jiff::Timestamp>,
    /// Only with `residency: Registered`: ids that were under `ensureNotExist` when the adapters file was last read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 100)))]
    pub unlisted: Vec<AdapterId>,
    /// Only with `residency: Registered`: ids that were listed again within the last three minutes. They do not count
    /// as resident, because a server may still unload them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 100)))]
    pub relisted: Vec<RelistedAdapter>,
}

/// An id that was unlisted and is listed again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RelistedAdapter {
    /// Id of the adapter.
    pub id: AdapterId,
    /// When the operator first found the id listed again.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub at: jiff::Timestamp,
}

/// Which routers apply the weights.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct RouterStatus {
    /// Which component applies the rewrite, from `spec.router`.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub kind: RouterKind,
    /// Number of routers that report the rule that the operator wrote.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub proven: i32,
    /// Number of all routers of the pool.
    #[cfg_attr(feature = "kube", schemars(range(min = 0)))]
    pub total: i32,
}

/// Adapter that lost its last weight, and the state of its cleanup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RetiredAdapter {
    /// Id of the adapter.
    pub id: AdapterId,
    /// When the adapter lost its last weight.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub since: jiff::Timestamp,
    /// State of the cleanup: Waiting, Unlisting, Unloading, Gone, StillInUse, Relisted, Returning, Suggested, Kept.
    /// More values may be added.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub state: RetirementState,
    /// Whether the adapter was stable before. If it becomes desired again, it then gets all traffic immediately instead
    /// of in steps.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_stable: bool,
    /// Why the cleanup is in this state, and what it waits for.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub reason: String,
}

/// State of the cleanup of a retired adapter. More values may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetirementState {
    /// Waits for the routers, for the end of its use, for the delay, or until no object names it; the reason says
    /// which.
    Waiting,
    /// The edit of the adapters file is being written.
    Unlisting,
    /// The adapters file has the entry under `ensureNotExist`; some servers have not unloaded it yet.
    Unloading,
    /// No server has the adapter loaded.
    Gone,
    /// Requests still use the adapter, or an object still names it.
    StillInUse,
    /// A person moved the entry back to `ensureExist`.
    Relisted,
    /// A person must make the edit of the adapters file; the operator only suggests it.
    Suggested,
    /// The policy is `Keep`: the entry stays.
    Kept,
    /// The adapter was unlisted and is desired again: its entry moves back, and it then waits for residency like any
    /// other adapter.
    Returning,
}

/// Adapter that failed and is not tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RejectedAdapter {
    /// Id of the adapter.
    pub id: AdapterId,
    /// Why the adapter was rejected.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub reason: String,
}

/// Part of the ConfigMap key `rollora.yaml` that belongs to this Rollout: which managed ids the servers may load.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct AdmissionStatus {
    /// Managed ids that every server may load.
    #[cfg_attr(feature = "kube", schemars(length(max = 10_000)))]
    pub admitted: Vec<AdapterId>,
    /// Rejected ids that were admitted before. No server loads them any more; servers that have them keep them until no
    /// router sends requests to them and they have been idle.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub retained: Vec<AdapterId>,
    /// Pilot: the one server that loads the desired adapter first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pilot: Option<crate::operator_directives::Pilot>,
    /// Pilots of earlier desired adapters. An adapter that becomes desired again is tried on its earlier pilot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "kube", schemars(length(max = 10)))]
    pub past_pilots: Vec<crate::operator_directives::Pilot>,
}

impl AdmissionStatus {
    /// Returns whether servers may have `id` loaded because of this Rollout: it is admitted or retained.
    pub fn permits(&self, id: &AdapterId) -> bool {
        self.admitted.contains(id) || self.retained.contains(id)
    }
}

/// Last intent that the operator consumed, and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LastAction {
    /// Id of the intent.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub id: String,
    /// Requested action: promote, promote-full, abort, retry. More values may be added.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::OpenEnum"))]
    pub verb: IntentKind,
    /// Person who requested the action, as stated by the client. Not authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(max = 1024)))]
    pub claimed_by: Option<String>,
    /// When the operator consumed the intent.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub at: jiff::Timestamp,
    /// Result: `done: ` and what was done, or `refused: ` and the reason.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub outcome: String,
}

impl LastAction {
    /// Returns what was done, or as an error why the intent was refused.
    pub fn outcome(&self) -> Result<&str, &str> {
        match self.outcome.strip_prefix("refused: ") {
            Some(reason) => Err(reason),
            None => Ok(self.outcome.strip_prefix("done: ").unwrap_or(&self.outcome)),
        }
    }
}

/// Revision that ended, with its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PastRevision {
    /// Number of the revision.
    pub revision: i64,
    /// Desired adapter of the revision.
    pub id: AdapterId,
    /// How the revision ended, as a condition reason such as `Aborted` or `Superseded`.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub outcome: String,
    /// When the revision ended.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub at: jiff::Timestamp,
}
