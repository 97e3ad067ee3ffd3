//! Which target of a rule a request gets.
//!
//! Without a sticky header by weighted chance, as upstream; chance comes in as a number. With one by
//! [`sticky`] hashing, so that a client stays where it is.

pub mod sticky;
#[cfg(test)]
mod tests;

use crate::rules::{CompiledRule, RuleTarget};
use std::sync::Arc;
use sticky::StickyKey;

/// The target of `rule`. `random` is any number, all being equally likely; `client` goes before it. None where
/// the rule has no target.
pub fn select_target(rule: &CompiledRule, client: Option<StickyKey>, random: u64) -> Option<&Arc<RuleTarget>> {
    match (rule.targets(), client) {
        ([only], _) => Some(only),
        (targets, Some(client)) => sticky::select_target(targets, client),
        (targets, None) => select_weighted(targets, random),
    }
}

fn select_weighted(targets: &[Arc<RuleTarget>], random: u64) -> Option<&Arc<RuleTarget>> {
    let sum = u128::from(targets.last()?.cumulative_weight);
    // The high half of the product is even over 0..sum up to sum/2^64, without a division.
    let ticket = (u128::from(random) * sum) >> 64;
    targets.get(targets.partition_point(|target| u128::from(target.cumulative_weight) <= ticket))
}
