//! Latency that an external processor adds to a request, at half of the maximum rate of upstream's body router.

use anyhow::{Context as _, Result};

use super::super::load_generator::{LoadGenerator, LoadResult};
use super::super::{Measurement, median};
use super::fixture::{Contender, ExtProcFixture, contender_request};
use super::{CONNECTIONS, Rounds, measurement};

/// Size of the request bodies, in KiB.
pub(super) const BODY_KIB: usize = 1;

const CONTENDERS: [Contender; 4] = [Contender::EnvoyOnly, Contender::NoOp, Contender::Rollora, Contender::BodyRouter];
/// Percentiles with the maximum latency that Rollora may add, relative to the processor that does nothing.
const PERCENTILE_GOALS: [(usize, f64); 2] = [(50, 1.1), (99, 1.5)];

pub(super) fn run(fixture: &ExtProcFixture, rounds: Rounds, saturation: f64) -> Result<Vec<Measurement>> {
    let rate = saturation / 2.0;
    let Rounds { count, duration } = rounds;
    let mut rounds = Vec::new();
    for _ in 0..count {
        let mut round = Vec::new();
        for contender in CONTENDERS {
            let address = fixture.address(contender, false)?;
            let load = LoadGenerator {
                address,
                request: contender_request(contender, address, BODY_KIB * 1024),
                connections: CONNECTIONS,
            };
            round.push((contender, load.run_at_rate(rate, duration).with_context(|| format!("{contender:?}"))?));
        }
        rounds.push(round);
    }
    let mut measurements = vec![measurement("half of the body router's maximum rate", rate, "1/s")];
    for (percent, goal) in PERCENTILE_GOALS {
        let mut added =
            |contender| median(rounds.iter_mut().map(|round| added_latency(round, contender, percent)).collect());
        let [no_op, rollora, body_router] =
            [Contender::NoOp, Contender::Rollora, Contender::BodyRouter].map(&mut added);
        let name = format!("added latency at that rate, p{percent}");
        measurements.extend([
            measurement(&format!("{name}, no-op"), no_op, "us"),
            measurement(&format!("{name}, rollora"), rollora, "us"),
            measurement(&format!("{name}, body router"), body_router, "us"),
            measurement(&format!("{name}: rollora to no-op"), rollora / no_op, "x").at_most(goal),
        ]);
    }
    Ok(measurements)
}

/// Returns the latency that `contender` added in a round, compared with Envoy alone, in microseconds.
fn added_latency(round: &mut [(Contender, LoadResult)], contender: Contender, percent: usize) -> f64 {
    let mut micros = |contender| {
        let result = round.iter_mut().find(|(other, _)| *other == contender);
        result.map_or(f64::NAN, |(_, result)| result.percentile(percent).as_secs_f64() * 1e6)
    };
    micros(contender) - micros(Contender::EnvoyOnly)
}
