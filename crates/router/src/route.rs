//! Which target of a rule a request gets.
//!
//! Without a sticky header by weighted chance, as upstream; chance comes in as a number. With one by
//! [`sticky`] hashing, so that a client stays where it is.

pub mod sticky;
#[cfg(test)]
mod tests;

use crate::rules::{Rule, Target};
use std::sync::Arc;
use sticky::Client;

/// The target of `rule`. `random` is any number, all being equally likely; `client` goes before it. None where
/// the rule has no target.
pub fn choose(rule: &Rule, client: Option<Client>, random: u64) -> Option<&Arc<Target>> {
    match (rule.targets(), client) {
        ([only], _) => Some(only),
        (targets, Some(client)) => sticky::choose(targets, client),
        (targets, None) => by_chance(targets, random),
    }
}

fn by_chance(targets: &[Arc<Target>], random: u64) -> Option<&Arc<Target>> {
    let sum = u128::from(targets.last()?.cumulative);
    // The high half of the product is even over 0..sum up to sum/2^64, without a division.
    let ticket = (u128::from(random) * sum) >> 64;
    targets.get(targets.partition_point(|target| u128::from(target.cumulative) <= ticket))
}
