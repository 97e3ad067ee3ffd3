//! What a request costs in the gateway of `rollora local`, beside nginx as a plain reverse proxy to the same server.
//!
//! The cost is processor time of the proxy's processes alone, read from `/proc`: it does not depend on how fast the
//! load generator or the simulated vLLM are. Rounds are interleaved, so that what else happens on the machine meets
//! both alike, and the medians are compared.

use std::time::Duration;

use anyhow::Result;

use super::load::{Load, Seen, post};
use super::servers::{ADAPTER, MODEL, Nginx, PATH, Server, body, build};
use super::{Measure, median};
use crate::proc;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);
const CONNECTIONS: usize = 16;
const BODY: usize = 1024;
/// The gateway reads the body, chooses by rule and residency, rewrites and counts; nginx only passes on.
const GOAL: f64 = 2.0;

/// One proxy and what its rounds have shown.
struct Contender {
    server: Server,
    load: Load,
    /// Of each round, in microseconds of processor time a request.
    costs: Vec<f64>,
    rates: Vec<f64>,
    tails: Vec<f64>,
}

pub(super) fn run() -> Result<Vec<Measure>> {
    let programs = build()?;
    let folder = tempfile::tempdir()?;
    let nginx = Nginx::find()?;
    let vllm = Server::simulator(&programs)?;
    let rollora = Server::rollora(&programs, std::slice::from_ref(&vllm), folder.path())?;
    let nginx = Server::nginx(&nginx, &vllm, folder.path())?;
    // nginx changes nothing, so its clients have to know the version.
    let mut contenders = [Contender::new(rollora, MODEL), Contender::new(nginx, ADAPTER)];
    for round in 0..=ROUNDS {
        for contender in &mut contenders {
            if round == 0 {
                contender.load.run(WARM_UP)?;
            } else {
                contender.round()?;
            }
        }
    }
    let [rollora, nginx] = contenders;
    let ratio = median(rollora.costs.clone()) / median(nginx.costs.clone());
    Ok(vec![
        Measure::new("gateway", "rollora: processor time a request", median(rollora.costs), "us"),
        Measure::new("gateway", "nginx: processor time a request", median(nginx.costs), "us"),
        Measure::new("gateway", "processor time, rollora to nginx", ratio, "x").at_most(GOAL),
        Measure::new("gateway", "rollora: requests", median(rollora.rates), "1/s"),
        Measure::new("gateway", "nginx: requests", median(nginx.rates), "1/s"),
        Measure::new("gateway", "rollora: 99th percentile", median(rollora.tails), "ms"),
        Measure::new("gateway", "nginx: 99th percentile", median(nginx.tails), "ms"),
    ])
}

impl Contender {
    fn new(server: Server, model: &str) -> Self {
        let request = post(server.address, PATH, &body(model, BODY));
        let load = Load { address: server.address, request, connections: CONNECTIONS };
        Self { server, load, costs: Vec::new(), rates: Vec::new(), tails: Vec::new() }
    }

    fn round(&mut self) -> Result<()> {
        let before = proc::cpu_time(self.server.pid())?;
        let mut seen = self.load.run(ROUND)?;
        let used = proc::cpu_time(self.server.pid())?.saturating_sub(before);
        self.costs.push(cost(used, &seen));
        self.rates.push(seen.per_second());
        self.tails.push(seen.percentile(99).as_secs_f64() * 1e3);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn cost(used: Duration, seen: &Seen) -> f64 {
    used.as_secs_f64() * 1e6 / seen.requests() as f64
}
