//! Intents: actions that a person requests through the annotation `rollora.dev/intent`. The operator consumes each
//! exactly once.

use super::Rollout;
use crate::names::INTENT_ANNOTATION;
use serde::{Deserialize, Serialize};

/// One requested action, with the revision and the step that the person saw when they requested it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Intent {
    /// Unique id. `status.lastAction` holds the id of the last intent that was consumed.
    pub id: String,
    /// Action that the person requests.
    pub verb: IntentKind,
    /// `status.revision.number` that the person saw.
    pub revision: i64,
    /// `status.step.index` that the person saw. `promote` is refused if the Rollout is in another step by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Person who requests the action, as stated by the client. Not authenticated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_by: Option<String>,
}

/// Refusal of an intent while an earlier one is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("`{}` was requested before and is still pending: wait for its outcome, or abort", self.0.cli_name())]
pub struct IntentPending(pub IntentKind);

/// Error of an annotation that cannot be parsed as an intent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {INTENT_ANNOTATION} cannot be parsed ({0}): remove it, and request the action with `rollora`")]
pub struct IntentParseError(String);

impl Intent {
    /// Checks that this intent may be written on `rollout`: only an abort may replace an intent that is still pending.
    pub fn check_allowed(&self, rollout: &Rollout) -> Result<(), IntentPending> {
        match Self::pending(rollout) {
            Ok(Some(pending)) if self.verb != IntentKind::Abort => Err(IntentPending(pending.verb)),
            _ => Ok(()),
        }
    }

    /// Returns the intent of `rollout` that is not consumed yet, or why the annotation cannot be parsed.
    pub fn pending(rollout: &Rollout) -> Result<Option<Self>, IntentParseError> {
        let Some(text) = rollout.metadata.annotations.get(INTENT_ANNOTATION) else { return Ok(None) };
        let intent: Self = serde_json::from_str(text).map_err(|error| IntentParseError(error.to_string()))?;
        let last = rollout.status.as_ref().and_then(|status| status.last_action.as_ref());
        Ok(last.is_none_or(|last| last.id != intent.id).then_some(intent))
    }
}

/// Action that a person can request. More values may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntentKind {
    /// Ends the pause that the person saw.
    Promote,
    /// Skips all remaining steps. The checks of residency and routers still apply.
    PromoteFull,
    /// Moves all traffic back to stable and rejects the desired adapter.
    Abort,
    /// Tries a rejected adapter again.
    Retry,
}

impl IntentKind {
    /// Returns the `rollora` command that requests this action.
    pub fn cli_name(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::PromoteFull => "promote --full",
            Self::Abort => "abort",
            Self::Retry => "retry",
        }
    }
}
