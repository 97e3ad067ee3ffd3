//! What a person asks of a Rollout once: the annotation `rollora.dev/intent`, consumed exactly once.

use serde::{Deserialize, Serialize};

/// One wish, with what the person saw when they said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Unique; the status remembers the last one that was consumed.
    pub id: String,
    /// What to do.
    pub verb: Verb,
    /// `status.revision.number` that the person saw.
    pub revision: i64,
    /// `status.step.index` that the person saw; `promote` is refused when the step has moved on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
}

/// What to do. An open-ended list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// End the pause that the person saw.
    Promote,
    /// Skip all steps that are left; the gates stay.
    PromoteFull,
    /// Give all traffic back to stable.
    Abort,
    /// Try a rejected adapter again.
    Retry,
}
