//! What a request costs in `rollora-ext-proc`, beside upstream's processors and beside a server that does nothing.
//!
//! All are behind the same real Envoy of one worker, in the mode FULL_DUPLEX_STREAMED, with the model as the last key of
//! the body. The cost is processor time of their processes alone, read from `/proc`, and stands also as a part of what
//! Envoy itself used meanwhile, because a busy machine makes both dearer alike. Rounds are interleaved; a ratio is the
//! median of the ratios of rounds that ran one after the other.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::load::Load;
use super::{Measure, median};
use crate::proc;
use stage::{Stage, Who, request};

mod envoy;
mod instructions;
mod latency;
mod memory;
mod stage;

const WARM_UP: Duration = Duration::from_millis(300);
const CONNECTIONS: usize = 16;

/// The sizes of bodies, with what a request may cost against upstream's router.
const SIZES: [(usize, f64); 3] = [(1, 0.4), (16, 0.25), (256, 0.2)];
/// The sizes of bodies in the second table, with the answers' headers shown: upstream's processors are not in it.
const WITH_RESPONSE_HEADERS: [usize; 2] = [1, 16];
/// What a request may cost against one that nothing is done with.
const OVER_NO_OP: f64 = 1.25;

/// How often, and how long each time.
#[derive(Debug, Clone, Copy)]
struct Rounds {
    count: usize,
    time: Duration,
}

const ROUNDS: Rounds = Rounds { count: 5, time: Duration::from_millis(1500) };
const FEW_ROUNDS: Rounds = Rounds { count: 3, time: Duration::from_millis(500) };

pub(super) fn run(short: bool) -> Result<Vec<Measure>> {
    let rounds = if short { FEW_ROUNDS } else { ROUNDS };
    let mut stage = Stage::set()?;
    let mut measures = Vec::new();
    let mut saturation = 0.0;
    for (kib, goal) in SIZES {
        let costs = Costs::of(&stage, rounds, &Who::ALL, kib, false)?;
        measures.extend(costs.rows(&format!("{kib} KiB")));
        let router = costs.ratio(Who::Rollora, Who::BodyRouter);
        measures.push(measure(&format!("{kib} KiB: rollora to body router"), router, "x").at_most(goal));
        let no_op = costs.ratio(Who::Rollora, Who::NoOp);
        measures.push(measure(&format!("{kib} KiB: rollora to no-op"), no_op, "x").at_most(OVER_NO_OP));
        if kib == latency::KIB {
            saturation = costs.rate(Who::BodyRouter);
        }
    }
    for kib in WITH_RESPONSE_HEADERS {
        let costs = Costs::of(&stage, rounds, &[Who::Rollora, Who::NoOp], kib, true)?;
        let what = format!("{kib} KiB and response headers");
        measures.extend(costs.rows(&what));
        let no_op = costs.ratio(Who::Rollora, Who::NoOp);
        measures.push(measure(&format!("{what}: rollora to no-op"), no_op, "x").at_most(OVER_NO_OP));
    }
    measures.extend(instructions::run(stage.program("fixed_exchange")?)?);
    measures.extend(latency::run(&stage, rounds, saturation)?);
    measures.extend(memory::run(&mut stage)?);
    Ok(measures)
}

fn measure(what: &str, value: f64, unit: &str) -> Measure {
    Measure::new("ext-proc", what, value, unit)
}

/// What requests of one size cost.
struct Costs {
    rounds: Vec<(Who, Vec<Cost>)>,
}

/// Of one round, in microseconds of processor time a request.
#[derive(Debug, Clone, Copy)]
struct Cost {
    own: f64,
    envoy: f64,
    rate: f64,
}

impl Costs {
    fn of(stage: &Stage, rounds: Rounds, who: &[Who], kib: usize, response_headers: bool) -> Result<Self> {
        let Rounds { count, time } = rounds;
        let mut rounds: Vec<(Who, Vec<Cost>)> = who.iter().map(|who| (*who, Vec::new())).collect();
        for round in 0..=count {
            for (who, costs) in &mut rounds {
                let address = stage.address(*who, response_headers)?;
                let load = Load { address, request: request(*who, address, kib * 1024), connections: CONNECTIONS };
                if round == 0 {
                    load.run(WARM_UP).with_context(|| format!("{who:?}"))?;
                } else {
                    costs.push(Cost::of(stage, *who, &load, time)?);
                }
            }
        }
        Ok(Self { rounds })
    }

    fn rounds(&self, who: Who) -> &[Cost] {
        self.rounds.iter().find(|(other, _)| *other == who).map_or(&[], |(_, costs)| costs)
    }

    fn rate(&self, who: Who) -> f64 {
        median(self.rounds(who).iter().map(|cost| cost.rate).collect())
    }

    fn ratio(&self, a: Who, b: Who) -> f64 {
        median(self.rounds(a).iter().zip(self.rounds(b)).map(|(a, b)| a.own / b.own).collect())
    }

    fn rows(&self, what: &str) -> Vec<Measure> {
        let rows = self.rounds.iter().flat_map(|(who, costs)| {
            let median = |pick: fn(&Cost) -> f64| median(costs.iter().map(pick).collect());
            let row = |words: &str, value, unit| measure(&format!("{what}, {}: {words}", who.name()), value, unit);
            match who {
                Who::Nobody => vec![row("Envoy's own", median(|cost| cost.envoy), "us")],
                _ => vec![
                    row("processor time a request", median(|cost| cost.own), "us"),
                    row("of Envoy's own", median(|cost| cost.own / cost.envoy), "x"),
                ],
            }
        });
        rows.collect()
    }
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    fn of(stage: &Stage, who: Who, load: &Load, time: Duration) -> Result<Self> {
        let used = || -> Result<[Duration; 2]> {
            let own = stage.pid(who).map(proc::threads_time).transpose()?.unwrap_or_default();
            Ok([own, proc::threads_time(stage.envoy())?])
        };
        let before = used()?;
        let seen = load.run(time).with_context(|| format!("{who:?}"))?;
        let after = used()?;
        let micros = |index: usize| {
            let [before, after] = [before, after].map(|used| used.get(index).copied().unwrap_or_default());
            after.saturating_sub(before).as_secs_f64() * 1e6 / seen.requests() as f64
        };
        Ok(Self { own: micros(0), envoy: micros(1), rate: seen.per_second() })
    }
}
