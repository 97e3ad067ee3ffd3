//! Compares the split of the responses with the weights of the rules.

use super::TrafficRecord;
use crate::rule_recorder::RuleInterval;
use std::{collections::BTreeMap, fmt};

/// The responses of the time in which one rule alone was active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitSample {
    /// The weights of the rule.
    pub weights: Vec<(String, i32)>,
    /// Number of responses by version.
    pub by_model: BTreeMap<String, usize>,
}

impl TrafficRecord {
    /// Returns one sample per rule of the first router, without the requests that another rule of any router may have
    /// decided.
    pub fn split_samples(&self) -> Vec<SplitSample> {
        let intervals = self.routers.first().map(|router| router.intervals.as_slice()).unwrap_or_default();
        (0..intervals.len()).map(|index| self.split_sample(intervals, index)).collect()
    }

    fn split_sample(&self, intervals: &[RuleInterval], index: usize) -> SplitSample {
        let sequence = intervals[index].sequence;
        // Routers observe a rule change at different times.
        let all = || self.routers.iter().flat_map(|router| &router.intervals);
        let after = all().filter(|interval| interval.sequence < sequence).filter_map(|interval| interval.until).max();
        let before = all().filter(|interval| interval.sequence > sequence).map(|interval| interval.from).min();
        let alone = self.exchanges.iter().filter(|request| {
            let (start, end) = (request.start, request.first_byte.unwrap_or(request.end));
            after.is_none_or(|after| start > after) && before.is_none_or(|before| end < before)
        });
        let mut by_model = BTreeMap::new();
        for model in alone.filter_map(|request| request.model()) {
            *by_model.entry(model.to_owned()).or_default() += 1;
        }
        SplitSample { weights: intervals[index].weights.clone(), by_model }
    }
}

impl SplitSample {
    /// Returns the number of responses.
    pub fn total(&self) -> usize {
        self.by_model.values().sum()
    }

    /// Returns whether every version's count is within six standard deviations of its expected value: a correct router
    /// fails this about once in a hundred million times.
    #[expect(clippy::cast_precision_loss, reason = "counts of requests are far below 2^52")]
    pub fn matches_weights(&self) -> bool {
        let total_weight: i32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let requests = self.total() as f64;
        let fits = |(id, weight): &(String, i32)| {
            let probability = f64::from(*weight) / f64::from(total_weight);
            let deviation = (requests * probability * (1.0 - probability)).sqrt();
            let count = self.by_model.get(id).copied().unwrap_or_default() as f64;
            // Half a request of tolerance, for the rounding of small numbers.
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
