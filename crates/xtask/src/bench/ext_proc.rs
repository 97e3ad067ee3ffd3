//! What a request costs in `rollora-ext-proc`, beside upstream's processors and beside a server that does nothing.
//!
//! All are behind the same real Envoy of one worker, in the mode FULL_DUPLEX_STREAMED, with the model as the last key of
//! the body. The cost is processor time of their processes alone, read from `/proc`, and stands also as a part of what
//! Envoy itself used meanwhile, because a busy machine makes both dearer alike. Rounds are interleaved; a ratio is the
//! median of the ratios of rounds that ran one after the other.

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

/// The sizes of bodies, with what a request may cost against upstream's router.
const BODY_SIZES: [(usize, f64); 3] = [(1, 0.4), (16, 0.25), (256, 0.2)];
/// The sizes of bodies in the second table, with the answers' headers shown: upstream's processors are not in it.
const RESPONSE_HEADER_SIZES: [usize; 2] = [1, 16];
/// What a request may cost against one that nothing is done with.
const MAX_RATIO_TO_NO_OP: f64 = 1.25;

/// How often, and how long each time.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    count: usize,
    duration: Duration,
}

const ROUNDS: Rounds = Rounds { count: 5, duration: Duration::from_millis(1500) };
const SHORT_ROUNDS: Rounds = Rounds { count: 3, duration: Duration::from_millis(500) };

pub(super) fn run(short: bool) -> Result<Vec<Measurement>> {
    let rounds = if short { SHORT_ROUNDS } else { ROUNDS };
    let mut stage = ExtProcFixture::start()?;
    let mut measures = Vec::new();
    let mut saturation = 0.0;
    for (kib, goal) in BODY_SIZES {
        let costs = RequestCosts::measure(&stage, rounds, &Contender::ALL, kib, false)?;
        measures.extend(costs.measurements(&format!("{kib} KiB")));
        let router = costs.median_ratio(Contender::Rollora, Contender::BodyRouter);
        measures.push(measurement(&format!("{kib} KiB: rollora to body router"), router, "x").at_most(goal));
        let no_op = costs.median_ratio(Contender::Rollora, Contender::NoOp);
        measures.push(measurement(&format!("{kib} KiB: rollora to no-op"), no_op, "x").at_most(MAX_RATIO_TO_NO_OP));
        if kib == latency::BODY_KIB {
            saturation = costs.median_rate(Contender::BodyRouter);
        }
    }
    for kib in RESPONSE_HEADER_SIZES {
        let costs = RequestCosts::measure(&stage, rounds, &[Contender::Rollora, Contender::NoOp], kib, true)?;
        let what = format!("{kib} KiB and response headers");
        measures.extend(costs.measurements(&what));
        let no_op = costs.median_ratio(Contender::Rollora, Contender::NoOp);
        measures.push(measurement(&format!("{what}: rollora to no-op"), no_op, "x").at_most(MAX_RATIO_TO_NO_OP));
    }
    measures.extend(instructions::run(stage.program("fixed_exchange")?)?);
    measures.extend(latency::run(&stage, rounds, saturation)?);
    measures.extend(memory::run(&mut stage)?);
    Ok(measures)
}

fn measurement(what: &str, value: f64, unit: &str) -> Measurement {
    Measurement::new("ext-proc", what, value, unit)
}

/// What requests of one size cost.
struct RequestCosts {
    by_contender: Vec<(Contender, Vec<RoundCost>)>,
}

/// Of one round, in microseconds of processor time a request.
#[derive(Debug, Clone, Copy)]
struct RoundCost {
    contender_us: f64,
    envoy_us: f64,
    requests_per_second: f64,
}

impl RequestCosts {
    fn measure(
        stage: &ExtProcFixture,
        rounds: Rounds,
        who: &[Contender],
        kib: usize,
        response_headers: bool,
    ) -> Result<Self> {
        let Rounds { count, duration: time } = rounds;
        let mut rounds: Vec<(Contender, Vec<RoundCost>)> = who.iter().map(|who| (*who, Vec::new())).collect();
        for round in 0..=count {
            for (who, costs) in &mut rounds {
                let address = stage.address(*who, response_headers)?;
                let load = LoadGenerator {
                    address,
                    request: contender_request(*who, address, kib * 1024),
                    connections: CONNECTIONS,
                };
                if round == 0 {
                    load.run(WARM_UP).with_context(|| format!("{who:?}"))?;
                } else {
                    costs.push(RoundCost::measure(stage, *who, &load, time)?);
                }
            }
        }
        Ok(Self { by_contender: rounds })
    }

    fn of_contender(&self, who: Contender) -> &[RoundCost] {
        self.by_contender.iter().find(|(other, _)| *other == who).map_or(&[], |(_, costs)| costs)
    }

    fn median_rate(&self, who: Contender) -> f64 {
        median(self.of_contender(who).iter().map(|cost| cost.requests_per_second).collect())
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
        let rows = self.by_contender.iter().flat_map(|(who, costs)| {
            let median = |pick: fn(&RoundCost) -> f64| median(costs.iter().map(pick).collect());
            let row = |words: &str, value, unit| measurement(&format!("{what}, {}: {words}", who.name()), value, unit);
            match who {
                Contender::EnvoyOnly => vec![row("Envoy's own", median(|cost| cost.envoy_us), "us")],
                _ => vec![
                    row("processor time a request", median(|cost| cost.contender_us), "us"),
                    row("of Envoy's own", median(|cost| cost.contender_us / cost.envoy_us), "x"),
                ],
            }
        });
        rows.collect()
    }
}

impl RoundCost {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn measure(stage: &ExtProcFixture, who: Contender, load: &LoadGenerator, time: Duration) -> Result<Self> {
        let used = || -> Result<[Duration; 2]> {
            let own = stage.pid(who).map(procfs::thread_cpu_time).transpose()?.unwrap_or_default();
            Ok([own, procfs::thread_cpu_time(stage.envoy_pid())?])
        };
        let before = used()?;
        let seen = load.run(time).with_context(|| format!("{who:?}"))?;
        let after = used()?;
        let micros = |index: usize| {
            let [before, after] = [before, after].map(|used| used.get(index).copied().unwrap_or_default());
            after.saturating_sub(before).as_secs_f64() * 1e6 / seen.request_count() as f64
        };
        Ok(Self { contender_us: micros(0), envoy_us: micros(1), requests_per_second: seen.requests_per_second() })
    }
}
