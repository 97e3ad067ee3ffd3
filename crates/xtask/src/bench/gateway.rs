//! Cost of a request in the gateway of `rollora local`, compared with nginx as a plain reverse proxy to the same
//! server.
//!
//! The cost is the CPU time of the proxy's processes alone, read from `/proc`: it does not depend on the speed of the
//! load generator or the simulated vLLM. Rounds are interleaved, so that other load on the machine affects both alike,
//! and the medians are compared.

use std::time::Duration;

use anyhow::Result;

use super::load_generator::{LoadGenerator, LoadResult, post_request};
use super::processes::{ADAPTER, BenchProcess, CHAT_PATH, MODEL, Nginx, build_programs, chat_body};
use super::{Measurement, median};
use crate::procfs;

const ROUNDS: usize = 5;
const ROUND_DURATION: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 16;
const BODY_BYTES: usize = 1024;
/// The gateway reads the body, selects by rule and residency, rewrites and counts; nginx only forwards.
const MAX_COST_RATIO: f64 = 2.0;

/// One proxy with the results of its rounds.
struct ProxyRun {
    server: BenchProcess,
    generator: LoadGenerator,
    /// CPU time per request in each round, in microseconds.
    cpu_micros: Vec<f64>,
    rates: Vec<f64>,
    p99_millis: Vec<f64>,
}

pub(super) fn run() -> Result<Vec<Measurement>> {
    let programs = build_programs()?;
    let folder = tempfile::tempdir()?;
    let nginx = Nginx::find()?;
    let vllm = BenchProcess::start_simulator(&programs)?;
    let rollora = BenchProcess::start_rollora_local(&programs, std::slice::from_ref(&vllm), folder.path())?;
    let nginx = BenchProcess::start_nginx(&nginx, &vllm, folder.path())?;
    // nginx does not rewrite the model, so its clients have to name the adapter.
    let mut contenders = [ProxyRun::new(rollora, MODEL), ProxyRun::new(nginx, ADAPTER)];
    for round in 0..=ROUNDS {
        for contender in &mut contenders {
            if round == 0 {
                contender.generator.run(WARM_UP)?;
            } else {
                contender.run_round()?;
            }
        }
    }
    let [rollora, nginx] = contenders;
    let ratio = median(rollora.cpu_micros.clone()) / median(nginx.cpu_micros.clone());
    Ok(vec![
        Measurement::new("gateway", "rollora: CPU time per request", median(rollora.cpu_micros), "us"),
        Measurement::new("gateway", "nginx: CPU time per request", median(nginx.cpu_micros), "us"),
        Measurement::new("gateway", "CPU time, rollora to nginx", ratio, "x").at_most(MAX_COST_RATIO),
        Measurement::new("gateway", "rollora: requests", median(rollora.rates), "1/s"),
        Measurement::new("gateway", "nginx: requests", median(nginx.rates), "1/s"),
        Measurement::new("gateway", "rollora: 99th percentile", median(rollora.p99_millis), "ms"),
        Measurement::new("gateway", "nginx: 99th percentile", median(nginx.p99_millis), "ms"),
    ])
}

impl ProxyRun {
    fn new(server: BenchProcess, model: &str) -> Self {
        let request = post_request(server.address, CHAT_PATH, &chat_body(model, BODY_BYTES));
        let generator = LoadGenerator { address: server.address, request, connections: CONNECTIONS };
        Self { server, generator, cpu_micros: Vec::new(), rates: Vec::new(), p99_millis: Vec::new() }
    }

    fn run_round(&mut self) -> Result<()> {
        let before = procfs::cpu_time(self.server.pid())?;
        let mut result = self.generator.run(ROUND_DURATION)?;
        let used = procfs::cpu_time(self.server.pid())?.saturating_sub(before);
        self.cpu_micros.push(cpu_micros_per_request(used, &result));
        self.rates.push(result.requests_per_second());
        self.p99_millis.push(result.percentile(99).as_secs_f64() * 1e3);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn cpu_micros_per_request(used: Duration, result: &LoadResult) -> f64 {
    used.as_secs_f64() * 1e6 / result.request_count() as f64
}
