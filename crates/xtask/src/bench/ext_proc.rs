//! Cost of a request in `rollora-ext-proc`, compared with upstream's processors and with a server that does nothing.
//!
//! All contenders are behind the same real Envoy with one worker, in the mode FULL_DUPLEX_STREAMED, with the model as
//! the last key of the body. The cost is the CPU time of their processes alone, read from `/proc`. It is also given
//! relative to the CPU time that Envoy itself used meanwhile, because a busy machine makes both more expensive. Rounds
//! are interleaved; a ratio is the median of the ratios of successive rounds.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::load_generator::LoadGenerator;
use super::{Measurement, median};
use crate::procfs;
use fixture::{Contender, ExtProcFixture, contender_request};

mod envoy;
mod fixture;
mod instructions;
mod latency;
mod memory;

const WARM_UP: Duration = Duration::from_millis(300);
const CONNECTIONS: usize = 16;

/// Sizes of bodies in KiB, with the maximum cost of a request relative to upstream's body router.
const BODY_SIZES: [(usize, f64); 3] = [(1, 0.4), (16, 0.25), (256, 0.2)];
/// Sizes of bodies in KiB with response headers; upstream's processors are not compared here.
const RESPONSE_HEADER_SIZES: [usize; 2] = [1, 16];
/// Maximum cost of a request relative to the processor that does nothing.
const MAX_RATIO_TO_NO_OP: f64 = 1.25;

/// Number of rounds, and the duration of each.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    count: usize,
    duration: Duration,
}

const ROUNDS: Rounds = Rounds { count: 5, duration: Duration::from_millis(1500) };
const SHORT_ROUNDS: Rounds = Rounds { count: 3, duration: Duration::from_millis(500) };

pub(super) fn run(short: bool) -> Result<Vec<Measurement>> {
    let rounds = if short { SHORT_ROUNDS } else { ROUNDS };
    let mut fixture = ExtProcFixture::start()?;
    let mut measurements = Vec::new();
    let mut saturation = 0.0;
    for (kib, goal) in BODY_SIZES {
        let costs = RequestCosts::measure(&fixture, rounds, &Contender::ALL, kib, false)?;
        measurements.extend(costs.measurements(&format!("{kib} KiB")));
        let router = costs.median_ratio(Contender::Rollora, Contender::BodyRouter);
        measurements.push(measurement(&format!("{kib} KiB: rollora to body router"), router, "x").at_most(goal));
        let no_op = costs.median_ratio(Contender::Rollora, Contender::NoOp);
        measurements.push(measurement(&format!("{kib} KiB: rollora to no-op"), no_op, "x").at_most(MAX_RATIO_TO_NO_OP));
        if kib == latency::BODY_KIB {
            saturation = costs.median_rate(Contender::BodyRouter);
        }
    }
    for kib in RESPONSE_HEADER_SIZES {
        let costs = RequestCosts::measure(&fixture, rounds, &[Contender::Rollora, Contender::NoOp], kib, true)?;
        let what = format!("{kib} KiB and response headers");
        measurements.extend(costs.measurements(&what));
        let no_op = costs.median_ratio(Contender::Rollora, Contender::NoOp);
        measurements.push(measurement(&format!("{what}: rollora to no-op"), no_op, "x").at_most(MAX_RATIO_TO_NO_OP));
    }
    measurements.extend(instructions::run(fixture.program("fixed_exchange")?)?);
    measurements.extend(latency::run(&fixture, rounds, saturation)?);
    measurements.extend(memory::run(&mut fixture)?);
    Ok(measurements)
}

fn measurement(what: &str, value: f64, unit: &str) -> Measurement {
    Measurement::new("ext-proc", what, value, unit)
}

/// Costs of requests of one size.
struct RequestCosts {
    by_contender: Vec<(Contender, Vec<RoundCost>)>,
}

/// Cost in one round, in microseconds of CPU time per request.
#[derive(Debug, Clone, Copy)]
struct RoundCost {
    contender_us: f64,
    envoy_us: f64,
    requests_per_second: f64,
}

impl RequestCosts {
    fn measure(
        fixture: &ExtProcFixture,
        rounds: Rounds,
        contenders: &[Contender],
        kib: usize,
        response_headers: bool,
    ) -> Result<Self> {
        let Rounds { count, duration } = rounds;
        let mut rounds: Vec<(Contender, Vec<RoundCost>)> =
            contenders.iter().map(|contender| (*contender, Vec::new())).collect();
        for round in 0..=count {
            for (contender, costs) in &mut rounds {
                let address = fixture.address(*contender, response_headers)?;
                let load = LoadGenerator {
                    address,
                    request: contender_request(*contender, address, kib * 1024),
                    connections: CONNECTIONS,
                };
                if round == 0 {
                    load.run(WARM_UP).with_context(|| format!("{contender:?}"))?;
                } else {
                    costs.push(RoundCost::measure(fixture, *contender, &load, duration)?);
                }
            }
        }
        Ok(Self { by_contender: rounds })
    }

    fn of_contender(&self, contender: Contender) -> &[RoundCost] {
        self.by_contender.iter().find(|(other, _)| *other == contender).map_or(&[], |(_, costs)| costs)
    }

    fn median_rate(&self, contender: Contender) -> f64 {
        median(self.of_contender(contender).iter().map(|cost| cost.requests_per_second).collect())
    }

    fn median_ratio(&self, a: Contender, b: Contender) -> f64 {
        median(
            self.of_contender(a)
                .iter()
                .zip(self.of_contender(b))
                .map(|(a, b)| a.contender_us / b.contender_us)
                .collect(),
        )
    }

    fn measurements(&self, what: &str) -> Vec<Measurement> {
        let rows = self.by_contender.iter().flat_map(|(contender, costs)| {
            let median = |pick: fn(&RoundCost) -> f64| median(costs.iter().map(pick).collect());
            let row =
                |name: &str, value, unit| measurement(&format!("{what}, {}: {name}", contender.name()), value, unit);
            match contender {
                Contender::EnvoyOnly => vec![row("Envoy's CPU time", median(|cost| cost.envoy_us), "us")],
                _ => vec![
                    row("CPU time per request", median(|cost| cost.contender_us), "us"),
                    row("ratio to Envoy's time", median(|cost| cost.contender_us / cost.envoy_us), "x"),
                ],
            }
        });
        rows.collect()
    }
}

impl RoundCost {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn measure(
        fixture: &ExtProcFixture,
        contender: Contender,
        load: &LoadGenerator,
        duration: Duration,
    ) -> Result<Self> {
        let used = || -> Result<[Duration; 2]> {
            let own = fixture.pid(contender).map(procfs::thread_cpu_time).transpose()?.unwrap_or_default();
            Ok([own, procfs::thread_cpu_time(fixture.envoy_pid())?])
        };
        let before = used()?;
        let result = load.run(duration).with_context(|| format!("{contender:?}"))?;
        let after = used()?;
        let micros = |index: usize| {
            let [before, after] = [before, after].map(|used| used.get(index).copied().unwrap_or_default());
            after.saturating_sub(before).as_secs_f64() * 1e6 / result.request_count() as f64
        };
        Ok(Self { contender_us: micros(0), envoy_us: micros(1), requests_per_second: result.requests_per_second() })
    }
}
