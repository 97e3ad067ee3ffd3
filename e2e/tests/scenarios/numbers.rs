//! Numbers of the long runs: written past the test harness, which would keep them to itself.

use rollora_e2e::judge::Verdict;
use std::{collections::BTreeMap, io::Write as _, time::Duration};

/// Says one line.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// The sum of many runs.
#[derive(Debug, Default)]
pub(crate) struct Sum {
    runs: usize,
    fewest: Option<usize>,
    total: Verdict,
}

impl Sum {
    pub(crate) fn add(&mut self, verdict: Verdict) {
        self.runs += 1;
        self.fewest = Some(self.fewest.map_or(verdict.requests, |fewest| fewest.min(verdict.requests)));
        let total = &mut self.total;
        total.requests += verdict.requests;
        total.refused += verdict.refused;
        total.in_flight += verdict.in_flight;
        total.unjudged += verdict.unjudged;
        total.errors.extend(verdict.errors);
        total.unweighted.extend(verdict.unweighted);
        for (model, count) in verdict.by_model {
            *total.by_model.entry(model).or_default() += count;
        }
    }

    /// Says the sum, where there was more than one run.
    pub(crate) fn say(&self, what: &str) {
        if self.runs > 1 {
            let fewest = self.fewest.unwrap_or_default();
            say(&format!("{what}: {} runs, at least {fewest} requests in each; in all {}", self.runs, self.total));
        }
    }
}

/// Says the median and the longest of some times, where there are any.
pub(crate) fn say_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    if let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) {
        say(&format!("{what}: median {median:.1?}, at most {longest:.1?}, of {}", times.len()));
    }
}

/// The splits as maps from version to weight.
pub(crate) fn ids<'a>(splits: &[&'a [(String, i32)]]) -> Vec<BTreeMap<&'a str, i32>> {
    splits.iter().map(|split| split.iter().map(|(id, weight)| (id.as_str(), *weight)).collect()).collect()
}
