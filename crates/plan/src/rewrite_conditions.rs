//! Which rewrites are in force, and which have to stand back: what their conditions say. Nobody upstream writes them.
//!
//! Pure, and the same for every rewrite, whether a Rollout governs it or not. What goes first is said in
//! [`rollora_api::rewrite::Rank`], by which routers go too; a test beside the operator holds the two to each other.
//!
//! The conditions carry no `observedGeneration`: each change of a weight makes a new generation, and a write for each of
//! them would tell nobody anything.

#[cfg(test)]
mod tests;

use crate::text;
use jiff::Timestamp;
use rollora_api::{
    condition::{Condition, ConditionStatus},
    names::ModelName,
    rewrite::{
        InferenceModelRewrite, PoolRef, RewriteGroup, RewritePrecedence, RewriteStatus,
        condition::{ACCEPTED, CONFLICTED, reason},
    },
};
use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
};

/// One rule of one rewrite.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RankedRule {
    rank: RewritePrecedence,
    index: usize,
    group: RewriteGroup,
}

/// What a claim is about: a model in a pool, or every name in it.
type MatchKey<'a> = (RewriteGroup, (&'a str, &'a str), Option<&'a str>);

/// Every rewrite of one namespace whose conditions have to change, with them. `pools` are the names of the pools that are
/// there; none where that is not known, and then nothing changes.
pub fn update_conditions(
    rewrites: &[impl Borrow<InferenceModelRewrite>],
    pools: Option<&BTreeSet<String>>,
    now: Timestamp,
) -> Vec<InferenceModelRewrite> {
    let Some(pools) = pools else { return Vec::new() };
    let (present, first) = rank_rules(rewrites);
    let changed = |rewrite: &&InferenceModelRewrite| {
        let group = rewrite.group()?;
        // A pool of another kind is somebody else's.
        (rewrite.spec.pool_ref.group == PoolRef::default().group).then_some(())?;
        let conditions = if pools.contains(&rewrite.spec.pool_ref.name) {
            evaluate(rewrite, group, &first)
        } else {
            let name = &rewrite.spec.pool_ref.name;
            let message = format!("there is no InferencePool {name}: make it, or mend spec.poolRef");
            vec![(ACCEPTED, ConditionStatus::Unknown, reason::PENDING, message)]
        };
        let status = merge_conditions(rewrite.status.as_ref(), conditions, now)?;
        Some(InferenceModelRewrite { status: Some(status), ..(*rewrite).clone() })
    };
    present.iter().filter_map(changed).collect()
}

/// The rewrite whose rule a request for the model gets in this pool.
pub(crate) fn active_rewrite<'a>(
    model: &ModelName,
    pool: &PoolRef,
    rewrites: &'a [impl Borrow<InferenceModelRewrite>],
) -> Option<&'a InferenceModelRewrite> {
    let (present, first) = rank_rules(rewrites);
    let claim = active_rule((&pool.group, &pool.name), Some(model.as_str()), &first)?;
    present
        .into_iter()
        .find(|rewrite| rewrite.group() == Some(claim.group) && RewritePrecedence::of(rewrite) == claim.rank)
}

/// Those that count, and per subject the claim that goes first.
fn rank_rules(
    rewrites: &[impl Borrow<InferenceModelRewrite>],
) -> (Vec<&InferenceModelRewrite>, BTreeMap<MatchKey<'_>, RankedRule>) {
    let present: Vec<&InferenceModelRewrite> =
        rewrites.iter().map(Borrow::borrow).filter(|rewrite| rewrite.metadata.deletion_timestamp.is_none()).collect();
    let mut first: BTreeMap<MatchKey<'_>, RankedRule> = BTreeMap::new();
    for rewrite in &present {
        let Some(group) = rewrite.group() else { continue };
        for (index, rule) in rewrite.spec.rules.iter().enumerate() {
            for model in rule.models() {
                let claim = RankedRule { rank: RewritePrecedence::of(rewrite), index, group };
                let holder = first.entry((group, pool_key(rewrite), model)).or_insert_with(|| claim.clone());
                if claim < *holder {
                    *holder = claim;
                }
            }
        }
    }
    (present, first)
}

fn pool_key(rewrite: &InferenceModelRewrite) -> (&str, &str) {
    let reference = &rewrite.spec.pool_ref;
    (&reference.group, &reference.name)
}

/// The rule that a request for the model gets: in each group in turn the exact one, else the generic one.
fn active_rule<'a>(
    pool: (&'a str, &'a str),
    model: Option<&'a str>,
    first: &'a BTreeMap<MatchKey<'a>, RankedRule>,
) -> Option<&'a RankedRule> {
    let groups = [RewriteGroup::Current, RewriteGroup::Legacy];
    groups.into_iter().find_map(|group| {
        let exact = model.and_then(|model| first.get(&(group, pool, Some(model))));
        exact.or_else(|| first.get(&(group, pool, None)))
    })
}

type ConditionUpdate = (&'static str, ConditionStatus, &'static str, String);

fn evaluate(
    rewrite: &InferenceModelRewrite,
    group: RewriteGroup,
    first: &BTreeMap<MatchKey<'_>, RankedRule>,
) -> Vec<ConditionUpdate> {
    let (mut effective, mut shadowed) = (Vec::new(), Vec::new());
    for (index, rule) in rewrite.spec.rules.iter().enumerate() {
        for model in rule.models() {
            let ours = RankedRule { rank: RewritePrecedence::of(rewrite), index, group };
            let name = model.unwrap_or("every other name");
            match active_rule(pool_key(rewrite), model, first) {
                Some(claim) if *claim != ours => {
                    shadowed.push(format!("{name}: {} is in force", describe(claim, &ours)))
                }
                _ => effective.push(name.to_owned()),
            }
        }
    }
    shadowed.sort_unstable();
    let conflict = text::list(&shadowed);
    let accepted = if effective.is_empty() && !shadowed.is_empty() {
        (ACCEPTED, ConditionStatus::False, reason::SHADOWED_BY, format!("no rule of it is in force; {conflict}"))
    } else if effective.is_empty() {
        (ACCEPTED, ConditionStatus::True, reason::ACCEPTED, "it has no rules".to_owned())
    } else {
        effective.sort_unstable();
        effective.dedup();
        (ACCEPTED, ConditionStatus::True, reason::ACCEPTED, format!("in force for {}", text::list(&effective)))
    };
    let conflicted = if shadowed.is_empty() {
        (CONFLICTED, ConditionStatus::False, reason::NO_CONFLICT, "every rule of it is in force".to_owned())
    } else {
        (CONFLICTED, ConditionStatus::True, reason::SHADOWED_BY, conflict)
    };
    vec![accepted, conflicted]
}

/// Whose rule goes first, and why.
fn describe(claim: &RankedRule, ours: &RankedRule) -> String {
    let rule = claim.index + 1;
    if claim.group != ours.group {
        return format!("rule {rule} of {} of the group {}", claim.rank, claim.group.name());
    }
    if claim.rank == ours.rank {
        return format!("rule {rule} of the same object");
    }
    format!("rule {rule} of {}, which goes first,", claim.rank)
}

/// The status with these conditions; none where it has them. What others wrote stays.
fn merge_conditions(
    status: Option<&RewriteStatus>,
    said: Vec<ConditionUpdate>,
    now: Timestamp,
) -> Option<RewriteStatus> {
    let before = status.cloned().unwrap_or_default();
    let mut status = before.clone();
    for (kind, holds, reason, message) in said {
        let old = before.conditions.iter().find(|condition| condition.type_ == kind);
        let same = old.filter(|old| old.status == holds);
        let condition = Condition {
            type_: kind.to_owned(),
            status: holds,
            reason: reason.to_owned(),
            message,
            last_transition_time: same.map_or(now, |old| old.last_transition_time),
            observed_generation: None,
        };
        match status.conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(old) => *old = condition,
            None => status.conditions.push(condition),
        }
    }
    (status != before).then_some(status)
}
