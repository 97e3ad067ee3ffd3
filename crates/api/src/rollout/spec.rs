//! The `spec` of a Rollout.
//!
//! With the feature `kube` the types also carry the schema and the CEL rules of the custom resource. Their doc comments
//! are the descriptions that `kubectl explain` prints.
//!
//! Enums are closed in the schema of the spec: the API server rejects a value that this version cannot act on. Later
//! versions may add values, so clients must accept values that they do not know.

#![cfg_attr(
    feature = "kube",
    allow(unreachable_pub, reason = "`KubeSchema` repeats the types inside functions and keeps their visibility"),
    allow(clippy::duplicated_attributes, reason = "every printer column repeats its type")
)]

use crate::{
    duration::GatewayDuration,
    names::{AdapterId, ModelName},
    rewrite::PoolRef,
};
use serde::{Deserialize, Serialize};

/// Desired state: which adapter serves one client-facing model name, and how traffic moves to it.
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
        // The two adapter columns fill the width of a terminal. The model, which usually repeats the Rollout's name,
        // and the message are shown only with `-o wide`.
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
            .message("spec.model cannot be changed: create another Rollout"),
        validation = Rule::new("self.poolRef == oldSelf.poolRef")
            .message("spec.poolRef cannot be changed: create another Rollout"),
        validation = Rule::new(
            "has(self.rewriteRef) == has(oldSelf.rewriteRef) \
             && (!has(self.rewriteRef) || self.rewriteRef == oldSelf.rewriteRef)"
        )
        .message("spec.rewriteRef cannot be changed: create another Rollout"),
        validation = Rule::new("!has(self.adapter.id) || self.adapter.id != self.model")
            .message("spec.adapter.id: an adapter id cannot equal spec.model, the name that clients send"),
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
    /// Model name that clients send in requests. Immutable.
    pub model: ModelName,
    /// InferencePool whose servers load the adapters. Immutable.
    pub pool_ref: PoolRef,
    /// Which adapter serves the model name. Exactly one of `follow` and `id` must be set.
    pub adapter: AdapterChoice,
    /// ConfigMap that lists the adapters of the pool.
    pub adapters_ref: AdaptersRef,
    /// InferenceModelRewrite that carries the traffic weights. Defaults to the one with the Rollout's own name.
    /// Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_ref: Option<RewriteRef>,
    /// Which component applies the rewrite to requests: `ExtProc` (default) or `EndpointPicker`. Not auto-detected.
    /// More values may be added.
    #[serde(default)]
    pub router: RouterKind,
    /// Proof that a server has loaded an adapter: `Verified` (default) or `Registered`. More values may be added.
    #[serde(default)]
    pub residency: ResidencyProof,
    /// Steps of a rollout, and what happens when a step fails.
    #[serde(default)]
    pub strategy: Strategy,
    /// What happens to an adapter after it lost its last weight.
    #[serde(default)]
    pub cleanup: Cleanup,
    /// Stops steps and cleanup. Abort, and the return of traffic to stable on a failure, still work. Defaults to false.
    #[serde(default)]
    pub paused: bool,
}

/// Which adapter serves the model name. Exactly one of `follow` and `id` must be set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    x_kube(
        validation = Rule::new("has(self.follow) != has(self.id)").message("write exactly one of follow and id"),
        validation = Rule::new("!has(self.source) || has(self.id)")
            .message("source requires id: add id, or remove source"),
        validation = Rule::new(
            "!(has(self.id) && has(oldSelf.id) && self.id == oldSelf.id && has(self.source) && has(oldSelf.source)) \
             || self.source == oldSelf.source"
        )
        .message("the source of an id cannot be changed: new weights need a new id"),
    )
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterChoice {
    /// Follows the highest listed version that matches a pattern: listing a new version in the adapters file starts a
    /// rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Follow>,
    /// Id of one fixed adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<AdapterId>,
    /// Path or hub name of the adapter `id`. When set, the operator adds the entry to the adapters file itself. The
    /// source of an id cannot be changed. Requires `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    pub source: Option<String>,
}

impl AdapterChoice {
    /// Returns the pattern or id that the Rollout manages, or `None` if the spec is invalid and names neither.
    pub fn managed_pattern(&self) -> Option<&str> {
        let follow = self.follow.as_ref().map(|follow| follow.pattern.as_str());
        follow.or_else(|| self.id.as_ref().map(AdapterId::as_str))
    }
}

/// Follows the highest listed id that matches a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Follow {
    /// Adapter id in which exactly one `*` stands for the version, for example `chat-v*`. It must not match
    /// `spec.model`.
    #[cfg_attr(feature = "kube", schemars(length(max = 253), regex(pattern = r"^[^*]*[*][^*]*$")))]
    pub pattern: String,
    /// How versions are compared. `Numeric` (default) is the only value; more may be added.
    #[serde(default)]
    pub order: VersionOrder,
}

/// How versions are compared. More values may be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum VersionOrder {
    /// Versions of digits and dots, compared number by number. Other versions are ignored, and an event reports them.
    #[default]
    Numeric,
}

/// ConfigMap (for `rollora local`: the file) that lists the adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "kube",
    x_kube(validation = Rule::new("self.key != 'rollora.yaml'").message("the key rollora.yaml is reserved for Rollora"))
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdaptersRef {
    /// Name of the ConfigMap, in the Rollout's namespace.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
    /// Key in the ConfigMap's data that holds the adapters file. Defaults to `configmap.yaml`; `rollora.yaml` is
    /// reserved for the operator.
    #[serde(default = "default_adapters_key")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub key: String,
}

fn default_adapters_key() -> String {
    "configmap.yaml".to_owned()
}

/// InferenceModelRewrite that carries the traffic weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RewriteRef {
    /// Name of the InferenceModelRewrite, in the Rollout's namespace.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}

/// Which component applies the rewrite to requests. More values may be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum RouterKind {
    /// `rollora-ext-proc` (for `rollora local`: its gateway).
    #[default]
    ExtProc,
    /// Endpoint picker of the Gateway API inference extension or of llm-d.
    EndpointPicker,
}

/// Proof that a server has loaded an adapter. More values may be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ResidencyProof {
    /// The server has answered a completion with the adapter. Requires the sidecar.
    #[default]
    Verified,
    /// The server lists the adapter in `/v1/models`.
    Registered,
}

/// Steps of a rollout, and what happens when a step fails.
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
    /// Steps in their order, at most 50. After the last step the adapter has all traffic, whatever the last weight was.
    /// A revision uses the steps as they were when it began.
    #[serde(default)]
    #[cfg_attr(feature = "kube", schemars(length(max = 50)))]
    pub steps: Vec<Step>,
    /// Total that `setWeight` is a share of, 1 to 1,000,000. Defaults to 100.
    #[serde(default = "default_total_weight")]
    #[cfg_attr(feature = "kube", schemars(range(min = 1, max = 1_000_000)))]
    pub total_weight: i32,
    /// How long a step that is not a pause may take. Only time in which the operator could observe the servers and
    /// routers counts. Defaults to 30m.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: GatewayDuration,
    /// What happens when a step fails: `Rollback` (default) or `Hold`. More values may be added.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// Name of a request header. Requests with the same value of this header stay on one version.
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

/// One step. Exactly one of `setWeight` and `pause` must be set.
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
    /// Weight of the new adapter, 0 to `totalWeight`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(range(min = 0, max = 1_000_000)))]
    pub set_weight: Option<i32>,
    /// Pause before the next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
}

/// Pause of a rollout: for a time, or until a person promotes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pause {
    /// Length of the pause. If absent, the pause lasts until a person promotes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<GatewayDuration>,
}

/// What happens when a step fails. More values may be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum OnFailure {
    /// Moves all traffic back to the stable adapter.
    #[default]
    Rollback,
    /// Keeps the current weights and reports the failure.
    Hold,
}

/// What happens to an adapter after it lost its last weight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cleanup {
    /// Whether a retired adapter is unloaded: `Unload` (default), `Suggest` or `Keep`. More values may be added.
    #[serde(default)]
    pub policy: CleanupPolicy,
    /// Minimum time between the loss of the last weight and the unlisting. Defaults to 5m.
    #[serde(default = "default_delay")]
    pub delay: GatewayDuration,
    /// How long the adapter must be unused before it is unlisted. Defaults to 2m.
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

/// Whether a retired adapter is unloaded. More values may be added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum CleanupPolicy {
    /// Moves its entry to `ensureNotExist`, which makes the servers unload it.
    #[default]
    Unload,
    /// Reports which edit of the adapters file a person should make.
    Suggest,
    /// Leaves the entry in `ensureExist`.
    Keep,
}
