//! What people are told because a condition says something new.

use crate::decide::DecisionBuilder;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type, reason},
    rollout::Rollout,
};

/// Conditions that hold when something is wrong, and those that do not; the first that has news is told.
const EVENT_CONDITIONS: [(&str, ConditionStatus); 3] = [
    (condition_type::STALLED, ConditionStatus::True),
    (condition_type::AVAILABLE, ConditionStatus::False),
    (condition_type::READY, ConditionStatus::False),
];

/// Tells of what is wrong when it begins, and when another thing is wrong. What somebody else tells of is left to them.
pub(super) fn record(rollout: &Rollout, draft: &mut DecisionBuilder) {
    let before = rollout.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let bad = |conditions: &[Condition], kind: &str, when: ConditionStatus| {
        let condition = conditions.iter().find(|condition| condition.type_ == kind && condition.status == when)?;
        // Served requests that reach nobody are always news.
        let unserved = kind == condition_type::AVAILABLE && condition.reason == reason::NOT_RESIDENT;
        let told = unserved || needs_attention(&condition.reason);
        told.then(|| (condition.reason.clone(), condition.message.clone()))
    };
    let pending = |conditions: &[Condition]| {
        let condition = conditions.iter().find(|condition| condition.type_ == condition_type::PROGRESSING)?;
        needs_attention(&condition.reason).then(|| (condition.reason.clone(), condition.message.clone()))
    };
    let now = draft.status.conditions.as_slice();
    let pairs = EVENT_CONDITIONS.iter().map(|(kind, when)| (bad(before, kind, *when), bad(now, kind, *when)));
    let pairs: Vec<_> = pairs.chain([(pending(before), pending(now))]).collect();
    let known: Vec<_> = pairs
        .iter()
        .filter_map(|(before, _)| before.as_ref().map(|(reason, words)| dedup_key(reason, words)))
        .collect();
    let is_new = |(reason, words): &(String, String)| !known.contains(&dedup_key(reason, words));
    let news = pairs.iter().filter_map(|(_, now)| now.clone()).find(is_new);
    if let Some((reason, message)) = news {
        draft.record_event(true, &reason, message);
    }
}

/// What is wrong, without the words that change while it is: what a person has to mend is another thing with every other
/// words.
fn dedup_key<'a>(reason: &'a str, words: &'a str) -> (&'a str, &'a str) {
    let words = words.split(" (since ").next().unwrap_or(words);
    (reason, if reason == reason::INVALID { words } else { "" })
}

/// Reasons that nobody tells of otherwise, and that do not end by waiting alone.
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
