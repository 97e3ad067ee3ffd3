//! The conditions of rewrites: which rules are active, and which are shadowed by rules of other rewrites. No upstream
//! component writes these conditions.
//!
//! They are computed for every rewrite, whether a Rollout governs it or not. The precedence is
//! [`rollora_api::rewrite::RewritePrecedence`], which routers use too; a test of the operator compares the two.
//!
//! The conditions have no `observedGeneration`: each change of a weight makes a new generation, and a status write for
//! each would carry no information.

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

/// One rule of one rewrite, ordered by precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RankedRule {
    rank: RewritePrecedence,
    index: usize,
    group: RewriteGroup,
}

/// What a rule matches: a model name in a pool (API group, name), or, with `None`, every other name in it.
type MatchKey<'a> = (RewriteGroup, (&'a str, &'a str), Option<&'a str>);

/// Returns every rewrite of one namespace whose conditions must change, with the new conditions.
///
/// `pools` are the names of the InferencePools that exist. If it is `None`, they are not known, and nothing changes.
pub fn update_conditions(
    rewrites: &[impl Borrow<InferenceModelRewrite>],
    pools: Option<&BTreeSet<String>>,
    now: Timestamp,
) -> Vec<InferenceModelRewrite> {
    let Some(pools) = pools else { return Vec::new() };
    let (present, first) = rank_rules(rewrites);
    let changed = |rewrite: &&InferenceModelRewrite| {
        let group = rewrite.group()?;
        // A pool of another API group belongs to another controller.
        (rewrite.spec.pool_ref.group == PoolRef::default().group).then_some(())?;
        let conditions = if pools.contains(&rewrite.spec.pool_ref.name) {
            evaluate(rewrite, group, &first)
        } else {
            let name = &rewrite.spec.pool_ref.name;
            let message = format!("there is no InferencePool {name}: create it, or fix spec.poolRef");
            vec![(ACCEPTED, ConditionStatus::Unknown, reason::PENDING, message)]
        };
        let status = merge_conditions(rewrite.status.as_ref(), conditions, now)?;
        Some(InferenceModelRewrite { status: Some(status), ..(*rewrite).clone() })
    };
    present.iter().filter_map(changed).collect()
}

/// Returns the rewrite whose rule is active for the model in this pool.
pub(crate) fn active_rewrite<'a>(
    model: &ModelName,
    pool: &PoolRef,
    rewrites: &'a [impl Borrow<InferenceModelRewrite>],
) -> Option<&'a InferenceModelRewrite> {
    let (present, first) = rank_rules(rewrites);
    let ranked = active_rule((&pool.group, &pool.name), Some(model.as_str()), &first)?;
    present
        .into_iter()
        .find(|rewrite| rewrite.group() == Some(ranked.group) && RewritePrecedence::of(rewrite) == ranked.rank)
}

/// Returns the rewrites that are not being deleted, and the rule with the highest precedence for each match.
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
                let ranked = RankedRule { rank: RewritePrecedence::of(rewrite), index, group };
                let winner = first.entry((group, pool_key(rewrite), model)).or_insert_with(|| ranked.clone());
                if ranked < *winner {
                    *winner = ranked;
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

/// Returns the active rule for the model: in each API group in turn the exact rule, else the generic one.
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
            let name = model.unwrap_or("every model without its own rule");
            match active_rule(pool_key(rewrite), model, first) {
                Some(ranked) if *ranked != ours => {
                    shadowed.push(format!("{name}: {} is active", describe(ranked, &ours)));
                }
                _ => effective.push(name.to_owned()),
            }
        }
    }
    shadowed.sort_unstable();
    let conflict = text::list(&shadowed);
    let accepted = if effective.is_empty() && !shadowed.is_empty() {
        (
            ACCEPTED,
            ConditionStatus::False,
            reason::SHADOWED_BY,
            format!("no rule of this rewrite is active; {conflict}"),
        )
    } else if effective.is_empty() {
        (ACCEPTED, ConditionStatus::True, reason::ACCEPTED, "this rewrite has no rules".to_owned())
    } else {
        effective.sort_unstable();
        effective.dedup();
        (ACCEPTED, ConditionStatus::True, reason::ACCEPTED, format!("active for {}", text::list(&effective)))
    };
    let conflicted = if shadowed.is_empty() {
        (CONFLICTED, ConditionStatus::False, reason::NO_CONFLICT, "every rule of this rewrite is active".to_owned())
    } else {
        (CONFLICTED, ConditionStatus::True, reason::SHADOWED_BY, conflict)
    };
    vec![accepted, conflicted]
}

/// Describes the rule that takes precedence over `ours`, and why.
fn describe(ranked: &RankedRule, ours: &RankedRule) -> String {
    let rule = ranked.index + 1;
    if ranked.group != ours.group {
        return format!("rule {rule} of {} of the API group {}", ranked.rank, ranked.group.name());
    }
    if ranked.rank == ours.rank {
        return format!("rule {rule} of the same rewrite");
    }
    format!("rule {rule} of {}, which takes precedence,", ranked.rank)
}

/// Returns the status with these conditions; `None` if it has them already. Conditions of other controllers stay.
fn merge_conditions(
    status: Option<&RewriteStatus>,
    updates: Vec<ConditionUpdate>,
    now: Timestamp,
) -> Option<RewriteStatus> {
    let before = status.cloned().unwrap_or_default();
    let mut status = before.clone();
    for (kind, condition_status, reason, message) in updates {
        let old = before.conditions.iter().find(|condition| condition.type_ == kind);
        let unchanged = old.filter(|old| old.status == condition_status);
        let condition = Condition {
            type_: kind.to_owned(),
            status: condition_status,
            reason: reason.to_owned(),
            message,
            last_transition_time: unchanged.map_or(now, |old| old.last_transition_time),
            observed_generation: None,
        };
        match status.conditions.iter_mut().find(|condition| condition.type_ == kind) {
            Some(old) => *old = condition,
            None => status.conditions.push(condition),
        }
    }
    (status != before).then_some(status)
}
