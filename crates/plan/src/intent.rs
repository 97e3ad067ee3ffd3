//! What a person asked for once, by the annotation: consumed exactly once, bound to what the person saw.

use crate::traffic::{IntentResult, TrafficMachine};
use jiff::Timestamp;
use rollora_api::rollout::{Intent, IntentKind, Rollout, RolloutSpec, status::LastAction};

/// What the annotation holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PendingIntent {
    /// Nothing, or something that was consumed already.
    None,
    /// Something to consume.
    New(Intent),
    /// Something that cannot be read, and why.
    Unreadable(String),
}

/// Reads the annotation.
pub(crate) fn pending_intent(rollout: &Rollout) -> PendingIntent {
    match Intent::pending(rollout) {
        Ok(None) => PendingIntent::None,
        Ok(Some(intent)) => PendingIntent::New(intent),
        Err(error) => PendingIntent::Unreadable(error.to_string()),
    }
}

/// Characters of what people say who they are that are kept.
const MAX_CLAIMED_BY_CHARS: usize = 100;

/// Whether somebody asked to abort, which waits for no observation but the rewrite.
pub fn has_pending_abort(rollout: &Rollout) -> bool {
    matches!(pending_intent(rollout), PendingIntent::New(Intent { verb: IntentKind::Abort, .. }))
}

/// Does what was asked, or says why not.
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

/// What came of it, for the record.
pub(crate) fn last_action(intent: &Intent, outcome: String, at: Timestamp) -> LastAction {
    // Whoever asks writes what they like; the status has room for so much.
    let claimed_by = intent.claimed_by.as_ref().map(|who| who.chars().take(MAX_CLAIMED_BY_CHARS).collect());
    LastAction { id: intent.id.clone(), verb: intent.verb, claimed_by, at, outcome }
}

fn dispatch(intent: &Intent, traffic: &mut TrafficMachine<'_>, spec: &RolloutSpec, now: Timestamp) -> IntentResult {
    let number = traffic.revision.number;
    if intent.revision != number {
        return Err(format!("revision {} was seen, and revision {number} is in force: look again", intent.revision));
    }
    match intent.verb {
        IntentKind::Abort => traffic.abort(now),
        IntentKind::Promote => traffic.promote(intent.step, spec.paused, now),
        IntentKind::PromoteFull => traffic.promote_full(intent.step, spec.paused, now),
        IntentKind::Retry => traffic.retry(&spec.strategy, now),
    }
}
