//! Target selection for a rule: weighted random like upstream, or, with a sticky header, [`sticky`] hashing, which
//! keeps a client on its target.

pub mod sticky;
#[cfg(test)]
mod tests;

use crate::rules::{CompiledRule, RuleTarget};
use std::sync::Arc;
use sticky::StickyKey;

/// Selects a target of `rule`: by `sticky_key` if there is one, otherwise by `random`, which must be uniform over
/// `u64`. `None` if the rule has no target.
pub fn select_target(rule: &CompiledRule, sticky_key: Option<StickyKey>, random: u64) -> Option<&Arc<RuleTarget>> {
    match (rule.targets(), sticky_key) {
        ([only], _) => Some(only),
        (targets, Some(key)) => sticky::select_target(targets, key),
        (targets, None) => select_weighted(targets, random),
    }
}

fn select_weighted(targets: &[Arc<RuleTarget>], random: u64) -> Option<&Arc<RuleTarget>> {
    let sum = u128::from(targets.last()?.cumulative_weight);
    // The high half of the product is uniform over 0..sum up to sum/2^64, without a division.
    let ticket = (u128::from(random) * sum) >> 64;
    targets.get(targets.partition_point(|target| u128::from(target.cumulative_weight) <= ticket))
}
