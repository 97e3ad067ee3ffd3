//! Condition types and reasons of an InferenceModelRewrite. Upstream defines the type `Accepted` with the reasons
//! `Accepted` and `Pending`, but does not write it.

/// The rewrite's pool exists, and at least one of its rules is active.
pub const ACCEPTED: &str = "Accepted";
/// At least one rule of the rewrite has no effect on a model, because another rewrite's rule is active for it.
pub const CONFLICTED: &str = "Conflicted";

/// Reasons of these conditions.
pub mod reason {
    /// At least one rule of the rewrite is active, or the rewrite has no rules.
    pub const ACCEPTED: &str = "Accepted";
    /// The namespace has no InferencePool of the name in `spec.poolRef`.
    pub const PENDING: &str = "Pending";
    /// Another rewrite's rule is active instead.
    pub const SHADOWED_BY: &str = "ShadowedBy";
    /// Every rule of the rewrite is active.
    pub const NO_CONFLICT: &str = "NoConflict";
}
