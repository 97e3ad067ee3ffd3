//! `spec` of a Rollout.

use crate::{
    duration::GatewayDuration,
    names::{AdapterId, ModelName},
    rewrite::PoolRef,
};
use serde::{Deserialize, Serialize};

/// What a person wants of one client-facing model name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutSpec {
    /// The name that clients send. Immutable.
    pub model: ModelName,
    /// The InferencePool whose servers hold the adapters. Immutable.
    pub pool_ref: PoolRef,
    /// Which adapter should serve the name.
    pub adapter: AdapterChoice,
    /// The ConfigMap that lists the adapters.
    pub adapters_ref: AdaptersRef,
    /// The rewrite that carries the weights; the Rollout's name where absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_ref: Option<RewriteRef>,
    /// Who executes the rewrite.
    #[serde(default)]
    pub router: RouterKind,
    /// What counts as having an adapter.
    #[serde(default)]
    pub residency: ResidencyProof,
    /// The steps, and what to do when one fails.
    #[serde(default)]
    pub strategy: Strategy,
    /// What becomes of the old adapter.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// Stops steps and cleanup; never an abort or a move for safety.
    #[serde(default)]
    pub paused: bool,
}

/// Which adapter should serve the name: exactly one of `follow` and `id`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterChoice {
    /// The highest listed version of a pattern: editing the adapters file is the release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Follow>,
    /// Exactly this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AdapterId>,
    /// With `id`: where it comes from; the operator then lists the adapter itself. Immutable per id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// Follow the highest listed id that matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Follow {
    /// An id in which `*` stands once for the version.
    pub pattern: String,
    /// How versions compare.
    #[serde(default)]
    pub order: VersionOrder,
}

/// How versions compare. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionOrder {
    /// Digits and dots only, compared number by number; others are ignored with an event.
    #[default]
    Numeric,
}

/// The ConfigMap (on one machine: the file) that lists the adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdaptersRef {
    /// The ConfigMap's name.
    pub name: String,
    /// The key in its data.
    #[serde(default = "default_adapters_key")]
    pub key: String,
}

fn default_adapters_key() -> String {
    "configmap.yaml".to_owned()
}

/// The rewrite that carries the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RewriteRef {
    /// The InferenceModelRewrite's name.
    pub name: String,
}

/// Who executes the rewrite. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouterKind {
    /// `rollora-ext-proc` (on one machine: the gateway).
    #[default]
    ExtProc,
    /// An endpoint picker of the Gateway API inference extension or llm-d.
    EndpointPicker,
}

/// What counts as having an adapter. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResidencyProof {
    /// A completion with the adapter was answered; needs the sidecar.
    #[default]
    Verified,
    /// `/v1/models` lists it.
    Registered,
}

/// The steps, and what to do when one fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Strategy {
    /// In order; at most 50. After the last the adapter has all the weight.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// What `setWeight` is out of: 1 to 1,000,000.
    #[serde(default = "default_total_weight")]
    pub total_weight: i32,
    /// How long a step that is not a pause may take, counting only time in which the operator could observe.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: GatewayDuration,
    /// What to do when a step fails.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// A request header whose value keeps a client on one version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_header: Option<String>,
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            total_weight: default_total_weight(),
            progress_deadline: default_progress_deadline(),
            on_failure: OnFailure::default(),
            sticky_header: None,
        }
    }
}

fn default_total_weight() -> i32 {
    100
}

fn default_progress_deadline() -> GatewayDuration {
    GatewayDuration::from_secs(1800)
}

/// One step: exactly one of its fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// Give the new adapter this much of `totalWeight`: 0 to `totalWeight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_weight: Option<i32>,
    /// Wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

/// A pause, timed or until somebody promotes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pause {
    /// How long; until somebody promotes where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<GatewayDuration>,
}

/// What to do when a step fails. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnFailure {
    /// Give all traffic back to stable.
    #[default]
    Rollback,
    /// Stay and say so.
    Hold,
}

/// What becomes of the old adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cleanup {
    /// Whether it is unloaded.
    #[serde(default)]
    pub policy: CleanupPolicy,
    /// How long it stays at least after it lost its last weight.
    #[serde(default = "default_delay")]
    pub delay: GatewayDuration,
    /// How long nobody must have used it.
    #[serde(default = "default_quiet_for")]
    pub quiet_for: GatewayDuration,
}

impl Default for Cleanup {
    fn default() -> Self {
        Self { policy: CleanupPolicy::default(), delay: default_delay(), quiet_for: default_quiet_for() }
    }
}

fn default_delay() -> GatewayDuration {
    GatewayDuration::from_secs(300)
}

fn default_quiet_for() -> GatewayDuration {
    GatewayDuration::from_secs(120)
}

/// Whether a retired adapter is unloaded. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CleanupPolicy {
    /// Move its entry to `ensureNotExist`.
    #[default]
    Unload,
    /// Say which edit a person should make.
    Suggest,
    /// Leave it.
    Keep,
}
