//! Kubernetes events that a decision publishes.

/// One event about a Rollout, published when it happens and not repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutEvent {
    /// Whether the type is `Warning`, which asks for attention, instead of `Normal`.
    pub warning: bool,
    /// The CamelCase reason, usually of [`rollora_api::condition::reason`].
    pub reason: String,
    /// What happened, on which object, and what to do.
    pub message: String,
}
