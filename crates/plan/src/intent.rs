//! One-time requests of a person (abort, promote, retry), made by an annotation.
//!
//! Each is consumed exactly once and bound to the revision and step that the person saw.

use crate::traffic::{IntentResult, TrafficMachine};
use jiff::Timestamp;
use rollora_api::rollout::{Intent, IntentKind, Rollout, RolloutSpec, status::LastAction};

/// The content of the annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PendingIntent {
    /// No intent, or one that was consumed already.
    None,
    /// An intent that is not consumed yet.
    New(Intent),
    /// The annotation cannot be parsed, and why.
    Unreadable(String),
}

/// Parses the annotation of a Rollout.
pub(crate) fn pending_intent(rollout: &Rollout) -> PendingIntent {
    match Intent::pending(rollout) {
        Ok(None) => PendingIntent::None,
        Ok(Some(intent)) => PendingIntent::New(intent),
        Err(error) => PendingIntent::Unreadable(error.to_string()),
    }
}

/// Characters of `claimedBy` that the status keeps: the field is free text of any length.
const MAX_CLAIMED_BY_CHARS: usize = 100;

/// Returns whether an abort is pending, which needs no observation except the rewrite.
pub fn has_pending_abort(rollout: &Rollout) -> bool {
    matches!(pending_intent(rollout), PendingIntent::New(Intent { verb: IntentKind::Abort, .. }))
}

/// Applies the intent, or records why it was refused.
pub(crate) fn apply(
    intent: &Intent,
    traffic: &mut TrafficMachine<'_>,
    spec: &RolloutSpec,
    now: Timestamp,
) -> LastAction {
    let outcome = match dispatch(intent, traffic, spec, now) {
        Ok(done) => format!("done: {done}"),
        Err(why) => format!("refused: {why}"),
    };
    last_action(intent, outcome, now)
}

/// Returns the record of a consumed intent.
pub(crate) fn last_action(intent: &Intent, outcome: String, at: Timestamp) -> LastAction {
    let claimed_by = intent.claimed_by.as_ref().map(|requester| requester.chars().take(MAX_CLAIMED_BY_CHARS).collect());
    LastAction { id: intent.id.clone(), verb: intent.verb, claimed_by, at, outcome }
}

fn dispatch(intent: &Intent, traffic: &mut TrafficMachine<'_>, spec: &RolloutSpec, now: Timestamp) -> IntentResult {
    let number = traffic.revision.number;
    if intent.revision != number {
        return Err(format!(
            "it was requested for revision {}, but revision {number} is current: check the status and request it again",
            intent.revision
        ));
    }
    match intent.verb {
        IntentKind::Abort => traffic.abort(now),
        IntentKind::Promote => traffic.promote(intent.step, spec.paused, now),
        IntentKind::PromoteFull => traffic.promote_full(intent.step, spec.paused, now),
        IntentKind::Retry => traffic.retry(&spec.strategy, now),
    }
}
