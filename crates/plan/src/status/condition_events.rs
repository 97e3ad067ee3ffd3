//! Events for conditions that report a new problem.

use crate::decide::DecisionBuilder;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type, reason},
    rollout::Rollout,
};

/// The conditions and the status that means a problem. Only the first one with a new problem causes an event.
const EVENT_CONDITIONS: [(&str, ConditionStatus); 3] = [
    (condition_type::STALLED, ConditionStatus::True),
    (condition_type::AVAILABLE, ConditionStatus::False),
    (condition_type::READY, ConditionStatus::False),
];

/// Records an event when a problem begins, and when another one replaces it. Problems for which another part of the
/// decision records an event are left out.
pub(super) fn record(rollout: &Rollout, builder: &mut DecisionBuilder) {
    let before = rollout.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let problem_of = |conditions: &[Condition], kind: &str, when: ConditionStatus| {
        let condition = conditions.iter().find(|condition| condition.type_ == kind && condition.status == when)?;
        // Requests that fail because no server has the adapter are always reported.
        let unserved = kind == condition_type::AVAILABLE && condition.reason == reason::NOT_RESIDENT;
        let reported = unserved || needs_attention(&condition.reason);
        reported.then(|| (condition.reason.clone(), condition.message.clone()))
    };
    let pending = |conditions: &[Condition]| {
        let condition = conditions.iter().find(|condition| condition.type_ == condition_type::PROGRESSING)?;
        needs_attention(&condition.reason).then(|| (condition.reason.clone(), condition.message.clone()))
    };
    let now = builder.status.conditions.as_slice();
    let pairs =
        EVENT_CONDITIONS.iter().map(|(kind, when)| (problem_of(before, kind, *when), problem_of(now, kind, *when)));
    let pairs: Vec<_> = pairs.chain([(pending(before), pending(now))]).collect();
    let known: Vec<_> = pairs
        .iter()
        .filter_map(|(before, _)| before.as_ref().map(|(reason, message)| dedup_key(reason, message)))
        .collect();
    let is_new = |(reason, message): &(String, String)| !known.contains(&dedup_key(reason, message));
    let problem = pairs.iter().filter_map(|(_, now)| now.clone()).find(is_new);
    if let Some((reason, message)) = problem {
        builder.record_event(true, &reason, message);
    }
}

/// Returns the identity of a problem, without the parts of its message that change meanwhile. For an input that a
/// person must fix, another message is another problem.
fn dedup_key<'a>(reason: &'a str, message: &'a str) -> (&'a str, &'a str) {
    let message = message.split(" (since ").next().unwrap_or(message);
    (reason, if reason == reason::INVALID { message } else { "" })
}

/// Returns whether a reason has no event of its own and does not end by waiting alone.
fn needs_attention(reason: &str) -> bool {
    matches!(
        reason,
        reason::INVALID
            | reason::WRITE_REFUSED
            | reason::DOUBLE_REWRITE
            | reason::SHADOWED_BY
            | reason::STABLE_UNKNOWN
            | reason::STABLE_NOT_RESIDENT
            | reason::CONTESTED
            | reason::NO_READY_PODS
            | reason::NO_ROUTERS
            | reason::NO_MATCH
            | reason::NOT_LISTED
    )
}
