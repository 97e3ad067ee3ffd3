//! Whether the versions answered as often as their weights say.

use super::TrafficRecord;
use crate::rule_recorder::RuleInterval;
use std::{collections::BTreeMap, fmt};

/// What the versions answered while one rule was in force for certain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSample {
    /// The rule's weights.
    pub weights: Vec<(String, i32)>,
    /// Answers by version.
    pub by_model: BTreeMap<String, usize>,
}

impl TrafficRecord {
    /// The shares under each rule of the first router, at all routers, without the requests that another rule may have decided.
    pub fn split_samples(&self) -> Vec<SplitSample> {
        let spells = self.routers.first().map(|router| router.intervals.as_slice()).unwrap_or_default();
        (0..spells.len()).map(|index| self.split_sample(spells, index)).collect()
    }

    fn split_sample(&self, spells: &[RuleInterval], index: usize) -> SplitSample {
        let sequence = spells[index].sequence;
        // Some routers hear of a rule later than others.
        let all = || self.routers.iter().flat_map(|router| &router.intervals);
        let after = all().filter(|spell| spell.sequence < sequence).filter_map(|spell| spell.until).max();
        let before = all().filter(|spell| spell.sequence > sequence).map(|spell| spell.from).min();
        let alone = self.exchanges.iter().filter(|exchange| {
            let (start, end) = (exchange.start, exchange.first_byte.unwrap_or(exchange.end));
            after.is_none_or(|after| start > after) && before.is_none_or(|before| end < before)
        });
        let mut by_model = BTreeMap::new();
        for model in alone.filter_map(|exchange| exchange.model()) {
            *by_model.entry(model.to_owned()).or_default() += 1;
        }
        SplitSample { weights: spells[index].weights.clone(), by_model }
    }
}

impl SplitSample {
    /// How many answers.
    pub fn total(&self) -> usize {
        self.by_model.values().sum()
    }

    /// Whether every version's count is within six standard deviations of its weight's: a right router fails this once
    /// in some hundred million times.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    pub fn matches_weights(&self) -> bool {
        let total_weight: i32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let requests = self.total() as f64;
        let fits = |(id, weight): &(String, i32)| {
            let probability = f64::from(*weight) / f64::from(total_weight);
            let deviation = (requests * probability * (1.0 - probability)).sqrt();
            let count = self.by_model.get(id).copied().unwrap_or_default() as f64;
            // Half a request for the rounding of small numbers.
            (count - requests * probability).abs() <= 6.0 * deviation + 0.5
        };
        self.weights.iter().all(fits)
    }
}

impl fmt::Display for SplitSample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} requests at {:?}", self.by_model, self.total(), self.weights)
    }
}
