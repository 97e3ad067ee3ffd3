//! What a person asked for once, by the annotation: consumed exactly once, bound to what the person saw.

use crate::traffic::{Outcome, Traffic};
use jiff::Timestamp;
use rollora_api::rollout::{Intent, IntentKind, Rollout, RolloutSpec, status::LastAction};

/// What the annotation holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Nothing, or something that was consumed already.
    None,
    /// Something to consume.
    New(Intent),
    /// Something that cannot be read, and why.
    Unreadable(String),
}

/// Reads the annotation.
pub(crate) fn request(rollout: &Rollout) -> Request {
    match Intent::pending(rollout) {
        Ok(None) => Request::None,
        Ok(Some(intent)) => Request::New(intent),
        Err(error) => Request::Unreadable(error.to_string()),
    }
}

/// Characters of what people say who they are that are kept.
const LONGEST_CLAIM: usize = 100;

/// Whether somebody asked to abort, which waits for no observation but the rewrite.
pub fn is_urgent(rollout: &Rollout) -> bool {
    matches!(request(rollout), Request::New(Intent { verb: IntentKind::Abort, .. }))
}

/// Does what was asked, or says why not.
pub(crate) fn consume(intent: &Intent, traffic: &mut Traffic<'_>, spec: &RolloutSpec, now: Timestamp) -> LastAction {
    let outcome = match act(intent, traffic, spec, now) {
        Ok(done) => format!("done: {done}"),
        Err(why) => format!("refused: {why}"),
    };
    answer(intent, outcome, now)
}

/// What came of it, for the record.
pub(crate) fn answer(intent: &Intent, outcome: String, at: Timestamp) -> LastAction {
    // Whoever asks writes what they like; the status has room for so much.
    let claimed_by = intent.claimed_by.as_ref().map(|who| who.chars().take(LONGEST_CLAIM).collect());
    LastAction { id: intent.id.clone(), verb: intent.verb, claimed_by, at, outcome }
}

fn act(intent: &Intent, traffic: &mut Traffic<'_>, spec: &RolloutSpec, now: Timestamp) -> Outcome {
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
