//! Which series exist, and which of them no rule and no request holds any more.

use super::{CODES, DecisionLabels, FEWEST_DEPARTED, Families, Series, Tally, TargetLabels};
use crate::usage::Usage;
use std::{
    array,
    collections::HashMap,
    sync::{Arc, OnceLock},
};

/// Every series that was handed out and not dropped again.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    series: HashMap<(TargetLabels, DecisionLabels), Arc<Series>>,
    tallies: HashMap<TargetLabels, Arc<Tally>>,
    /// From so many series on it is worth looking for departed ones.
    limit: usize,
}

impl Ledger {
    pub(super) fn series(
        &mut self,
        decision: DecisionLabels,
        labels: TargetLabels,
        families: &Families,
        usage: impl FnOnce() -> Arc<Usage>,
    ) -> Arc<Series> {
        let tally = Arc::clone(self.tallies.entry(labels.clone()).or_insert_with_key(|labels| {
            Arc::new(Tally {
                families: families.clone(),
                labels: labels.clone(),
                answers: array::from_fn(|_| OnceLock::new()),
                seconds: OnceLock::new(),
                in_flight: OnceLock::new(),
                usage: usage(),
            })
        }));
        Arc::clone(self.series.entry((labels, decision)).or_insert_with_key(|(_, labels)| {
            Arc::new(Series { families: families.clone(), labels: labels.clone(), decisions: OnceLock::new(), tally })
        }))
    }

    /// Drops the departed series once there are as many of them as of the others.
    pub(super) fn forget_departed(&mut self, families: &Families) {
        if self.series.len() <= self.limit {
            return;
        }
        self.series.retain(|(_, labels), series| {
            let held = Arc::strong_count(series) > 1;
            if !held {
                families.decisions.remove(labels);
            }
            held
        });
        self.tallies.retain(|labels, tally| {
            let held = Arc::strong_count(tally) > 1;
            if !held {
                families.seconds.remove(labels);
                families.in_flight.remove(labels);
                for code in CODES {
                    families.answers.remove(&labels.with_code(code));
                }
            }
            held
        });
        self.limit = 2 * self.series.len() + FEWEST_DEPARTED;
    }
}
