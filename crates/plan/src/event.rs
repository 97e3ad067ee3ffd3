//! What people are told.

/// Something that happened to a Rollout, said once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutEvent {
    /// Whether a person should look.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: String,
    /// What happened, in words.
    pub message: String,
}
