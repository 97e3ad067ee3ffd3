//! `spec` of a Rollout.
//!
//! With the feature `kube` the types carry the schema and the rules of the custom resource. Enums are closed in the
//! schema of the spec: a value that this version cannot act on is refused when it is written, not when it is needed.
//! Later versions may add values, so clients must accept ones that they do not know.

#![cfg_attr(
    feature = "kube",
    allow(unreachable_pub, reason = "`KubeSchema` repeats the types, as public as they are, inside of functions"),
    allow(clippy::duplicated_attributes, reason = "every printed column says its type again")
)]

use crate::{
    duration::GatewayDuration,
    names::{AdapterId, ModelName},
    rewrite::PoolRef,
};
use serde::{Deserialize, Serialize};

/// What a person wants of one client-facing model name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(kube::CustomResource, kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    kube(
        group = "rollora.dev",
        version = "v1alpha1",
        kind = "Rollout",
        root = "RolloutResource",
        doc = "Moves the traffic of one client-facing model name from one LoRA adapter to the next, step by step.",
        namespaced,
        // `ro` is Argo's, whose plural is the same.
        shortname = "lro",
        status = "super::status::RolloutStatus",
        derive = "PartialEq",
        // With both adapters a line is as long as a terminal is wide: what most Rollouts are called after, and what it
        // waits for, only with `-o wide`.
        printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
        printcolumn(name = "Step", type_ = "string", json_path = ".status.summary.step"),
        printcolumn(name = "Weight", type_ = "string", json_path = ".status.summary.weight"),
        printcolumn(name = "Stable", type_ = "string", json_path = ".status.revision.stable"),
        printcolumn(name = "Desired", type_ = "string", json_path = ".status.revision.desired"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
        printcolumn(name = "Model", type_ = "string", json_path = ".spec.model", priority = 1),
        printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    ),
    x_kube(
        validation = Rule::new("self.model == oldSelf.model")
            .message("spec.model cannot be changed: make another Rollout"),
        validation = Rule::new("self.poolRef == oldSelf.poolRef")
            .message("spec.poolRef cannot be changed: make another Rollout"),
        validation = Rule::new(
            "has(self.rewriteRef) == has(oldSelf.rewriteRef) \
             && (!has(self.rewriteRef) || self.rewriteRef == oldSelf.rewriteRef)"
        )
        .message("spec.rewriteRef cannot be changed: make another Rollout"),
        validation = Rule::new("!has(self.adapter.id) || self.adapter.id != self.model")
            .message("spec.adapter.id: an adapter cannot have the name that clients send"),
        validation = Rule::new(
            "!has(self.adapter.follow) || size(self.adapter.follow.pattern.split('*')) != 2 \
             || !(self.model.startsWith(self.adapter.follow.pattern.split('*')[0]) \
             && self.model.endsWith(self.adapter.follow.pattern.split('*')[1]) \
             && size(self.model) >= size(self.adapter.follow.pattern) - 1)"
        )
        .message("spec.adapter.follow.pattern matches the model itself: write a pattern that only versions match"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutSpec {
    /// The name that clients send. Immutable.
    pub model: ModelName,
    /// The InferencePool whose servers hold the adapters. Immutable.
    pub pool_ref: PoolRef,
    /// Which adapter should serve the name: exactly one of `follow` and `id`.
    pub adapter: AdapterChoice,
    /// The ConfigMap that lists the adapters.
    pub adapters_ref: AdaptersRef,
    /// The rewrite that carries the weights; the Rollout's name where absent. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_ref: Option<RewriteRef>,
    /// Who executes the rewrite: never found out, always said. More kinds may be added.
    #[serde(default)]
    pub router: RouterKind,
    /// What counts as having an adapter. More proofs may be added.
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
#[cfg_attr(feature = "kube", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    x_kube(
        validation = Rule::new("has(self.follow) != has(self.id)").message("write exactly one of follow and id"),
        validation = Rule::new("!has(self.source) || has(self.id)").message("source goes with id"),
        validation = Rule::new(
            "!(has(self.id) && has(oldSelf.id) && self.id == oldSelf.id && has(self.source) && has(oldSelf.source)) \
             || self.source == oldSelf.source"
        )
        .message("the source of an id cannot be changed: new weights need a new id"),
    )
)]
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
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    pub source: Option<String>,
}

impl AdapterChoice {
    /// The pattern or id that the Rollout governs.
    pub fn managed_pattern(&self) -> Option<&str> {
        let follow = self.follow.as_ref().map(|follow| follow.pattern.as_str());
        follow.or_else(|| self.id.as_ref().map(AdapterId::as_str))
    }
}

/// Follow the highest listed id that matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Follow {
    /// An id in which `*` stands once for the version.
    #[cfg_attr(feature = "kube", schemars(length(max = 253), regex(pattern = r"^[^*]*[*][^*]*$")))]
    pub pattern: String,
    /// How versions compare. More ways may be added.
    #[serde(default)]
    pub order: VersionOrder,
}

/// How versions compare. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum VersionOrder {
    /// Digits and dots only, compared number by number; others are ignored with an event.
    #[default]
    Numeric,
}

/// The ConfigMap (on one machine: the file) that lists the adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    x_kube(validation = Rule::new("self.key != 'rollora.yaml'").message("rollora.yaml belongs to Rollora"))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdaptersRef {
    /// The ConfigMap's name.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// The key in its data.
    #[serde(default = "default_adapters_key")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub key: String,
}

fn default_adapters_key() -> String {
    "configmap.yaml".to_owned()
}

/// The rewrite that carries the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RewriteRef {
    /// The InferenceModelRewrite's name.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}

/// Who executes the rewrite. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum RouterKind {
    /// `rollora-ext-proc` (on one machine: the gateway).
    #[default]
    ExtProc,
    /// An endpoint picker of the Gateway API inference extension or llm-d.
    EndpointPicker,
}

/// What counts as having an adapter. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ResidencyProof {
    /// A completion with the adapter was answered; needs the sidecar.
    #[default]
    Verified,
    /// `/v1/models` lists it.
    Registered,
}

/// The steps, and what to do when one fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    x_kube(
        validation = Rule::new("self.steps.all(step, !has(step.setWeight) || step.setWeight <= self.totalWeight)")
            .message("setWeight must be from 0 to totalWeight"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Strategy {
    /// In order; at most 50. After the last the adapter has all the weight.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 50)))]
    pub steps: Vec<Step>,
    /// What `setWeight` is out of: 1 to 1,000,000.
    #[serde(default = "default_total_weight")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1_000_000)))]
    pub total_weight: i32,
    /// How long a step that is not a pause may take, counting only time in which the operator could observe.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: GatewayDuration,
    /// What to do when a step fails. More answers may be added.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// A request header whose value keeps a client on one version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "kube",
        schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))
    )]
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
#[cfg_attr(feature = "kube", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    x_kube(
        validation = Rule::new("has(self.setWeight) != has(self.pause)")
            .message("write exactly one of setWeight and pause"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// Give the new adapter this much of `totalWeight`: 0 to `totalWeight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 1_000_000)))]
    pub set_weight: Option<i32>,
    /// Wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

/// A pause, timed or until somebody promotes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pause {
    /// How long; until somebody promotes where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<GatewayDuration>,
}

/// What to do when a step fails. An open-ended list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum OnFailure {
    /// Give all traffic back to stable.
    #[default]
    Rollback,
    /// Stay and say so.
    Hold,
}

/// What becomes of the old adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cleanup {
    /// Whether it is unloaded. More policies may be added.
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
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum CleanupPolicy {
    /// Move its entry to `ensureNotExist`.
    #[default]
    Unload,
    /// Say which edit a person should make.
    Suggest,
    /// Leave it.
    Keep,
}
