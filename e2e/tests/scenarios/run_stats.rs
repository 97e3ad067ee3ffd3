//! Numbers of the long runs, written directly to standard error: the test harness would capture `eprintln!`.

use rollora_e2e::oracle::TrafficVerdict;
use std::{collections::BTreeMap, io::Write as _, time::Duration};

/// Prints one line to standard error.
pub(crate) fn print_line(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// Sum of the verdicts of many runs.
#[derive(Debug, Default)]
pub(crate) struct VerdictSum {
    runs: usize,
    min_requests: Option<usize>,
    total: TrafficVerdict,
}

impl VerdictSum {
    pub(crate) fn add(&mut self, verdict: TrafficVerdict) {
        self.runs += 1;
        self.min_requests = Some(self.min_requests.map_or(verdict.requests, |fewest| fewest.min(verdict.requests)));
        let total = &mut self.total;
        total.requests += verdict.requests;
        total.gateway_refused += verdict.gateway_refused;
        total.in_flight += verdict.in_flight;
        total.inconclusive += verdict.inconclusive;
        total.errors.extend(verdict.errors);
        total.zero_weight_answers.extend(verdict.zero_weight_answers);
        for (model, count) in verdict.by_model {
            *total.by_model.entry(model).or_default() += count;
        }
    }

    /// Prints the sum if there was more than one run.
    pub(crate) fn print(&self, what: &str) {
        if self.runs > 1 {
            let fewest = self.min_requests.unwrap_or_default();
            print_line(&format!(
                "{what}: {} runs, at least {fewest} requests in each; in all {}",
                self.runs, self.total
            ));
        }
    }
}

/// Prints the median and the maximum, unless there are no times.
pub(crate) fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    if let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) {
        print_line(&format!("{what}: median {median:.1?}, at most {longest:.1?}, of {}", times.len()));
    }
}

/// Returns the splits as maps from version to weight.
pub(crate) fn splits_by_id<'a>(splits: &[&'a [(String, i32)]]) -> Vec<BTreeMap<&'a str, i32>> {
    splits.iter().map(|split| split.iter().map(|(id, weight)| (id.as_str(), *weight)).collect()).collect()
}
