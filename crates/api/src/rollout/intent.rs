//! What a person asks of a Rollout once: the annotation `rollora.dev/intent`, consumed exactly once.

use super::Rollout;
use crate::names::INTENT_ANNOTATION;
use serde::{Deserialize, Serialize};

/// One wish, with what the person saw when they said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Unique; the status remembers the last one that was consumed.
    pub id: String,
    /// What to do.
    pub verb: IntentKind,
    /// `status.revision.number` that the person saw.
    pub revision: i64,
    /// `status.step.index` that the person saw; `promote` is refused when the step has moved on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Who asks, as they say themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
}

/// Why a wish is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{}` was asked before and is not answered yet: wait for it, or abort", self.0.cli_name())]
pub struct IntentPending(pub IntentKind);

/// An annotation that is no wish.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {INTENT_ANNOTATION} cannot be read: {0}")]
pub struct IntentParseError(String);

impl Intent {
    /// Whether it may be written on `rollout`: one that was not consumed yet may be replaced only by an abort.
    pub fn check_allowed(&self, rollout: &Rollout) -> Result<(), IntentPending> {
        match Self::pending(rollout) {
            Ok(Some(pending)) if self.verb != IntentKind::Abort => Err(IntentPending(pending.verb)),
            _ => Ok(()),
        }
    }

    /// What was asked and not consumed yet, or why that cannot be read.
    pub fn pending(rollout: &Rollout) -> Result<Option<Self>, IntentParseError> {
        let Some(text) = rollout.metadata.annotations.get(INTENT_ANNOTATION) else { return Ok(None) };
        let asked: Self = serde_json::from_str(text).map_err(|error| IntentParseError(error.to_string()))?;
        let last = rollout.status.as_ref().and_then(|status| status.last_action.as_ref());
        Ok(last.is_none_or(|last| last.id != asked.id).then_some(asked))
    }
}

/// What to do. An open-ended list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntentKind {
    /// End the pause that the person saw.
    Promote,
    /// Skip all steps that are left; the gates stay.
    PromoteFull,
    /// Give all traffic back to stable.
    Abort,
    /// Try a rejected adapter again.
    Retry,
}

impl IntentKind {
    /// As people type it.
    pub fn cli_name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::PromoteFull => "promote --full",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }
}
