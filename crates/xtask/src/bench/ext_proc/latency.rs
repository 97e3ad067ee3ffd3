//! How much longer a request takes through an external processor, at half of what upstream's router can do at most.

use anyhow::{Context as _, Result};

use super::super::load_generator::{LoadGenerator, LoadResult};
use super::super::{Measurement, median};
use super::fixture::{Contender, ExtProcFixture, contender_request};
use super::{CONNECTIONS, Rounds, measurement};

/// The size of the bodies.
pub(super) const BODY_KIB: usize = 1;

const CONTENDERS: [Contender; 4] = [Contender::EnvoyOnly, Contender::NoOp, Contender::Rollora, Contender::BodyRouter];
/// Each percentile with what ours may add, against the server that does nothing.
const PERCENTILE_GOALS: [(usize, f64); 2] = [(50, 1.1), (99, 1.5)];

pub(super) fn run(stage: &ExtProcFixture, rounds: Rounds, saturation: f64) -> Result<Vec<Measurement>> {
    let rate = saturation / 2.0;
    let Rounds { count, duration: time } = rounds;
    let mut rounds = Vec::new();
    for _ in 0..count {
        let mut round = Vec::new();
        for who in CONTENDERS {
            let address = stage.address(who, false)?;
            let load = LoadGenerator {
                address,
                request: contender_request(who, address, BODY_KIB * 1024),
                connections: CONNECTIONS,
            };
            round.push((who, load.run_at_rate(rate, time).with_context(|| format!("{who:?}"))?));
        }
        rounds.push(round);
    }
    let mut measures = vec![measurement("half of what the body router can do", rate, "1/s")];
    for (percent, goal) in PERCENTILE_GOALS {
        let mut added = |who| median(rounds.iter_mut().map(|round| added_latency(round, who, percent)).collect());
        let [no_op, rollora, body_router] =
            [Contender::NoOp, Contender::Rollora, Contender::BodyRouter].map(&mut added);
        let name = format!("added latency at that, p{percent}");
        measures.extend([
            measurement(&format!("{name}, no-op"), no_op, "us"),
            measurement(&format!("{name}, rollora"), rollora, "us"),
            measurement(&format!("{name}, body router"), body_router, "us"),
            measurement(&format!("{name}: rollora to no-op"), rollora / no_op, "x").at_most(goal),
        ]);
    }
    Ok(measures)
}

/// What `who` added in a round to Envoy alone, in microseconds.
fn added_latency(round: &mut [(Contender, LoadResult)], who: Contender, percent: usize) -> f64 {
    let mut micros = |who| {
        let seen = round.iter_mut().find(|(other, _)| *other == who);
        seen.map_or(f64::NAN, |(_, seen)| seen.percentile(percent).as_secs_f64() * 1e6)
    };
    micros(who) - micros(Contender::EnvoyOnly)
}
