//! How much longer a request takes through an external processor, at half of what upstream's router can do at most.

use anyhow::{Context as _, Result};

use super::super::load::{Load, Seen};
use super::super::{Measure, median};
use super::stage::{Stage, Who, request};
use super::{CONNECTIONS, Rounds, measure};

/// The size of the bodies.
pub(super) const KIB: usize = 1;

const WHO: [Who; 4] = [Who::Nobody, Who::NoOp, Who::Rollora, Who::BodyRouter];
/// Each percentile with what ours may add, against the server that does nothing.
const GOALS: [(usize, f64); 2] = [(50, 1.1), (99, 1.5)];

pub(super) fn run(stage: &Stage, rounds: Rounds, saturation: f64) -> Result<Vec<Measure>> {
    let rate = saturation / 2.0;
    let Rounds { count, time } = rounds;
    let mut rounds = Vec::new();
    for _ in 0..count {
        let mut round = Vec::new();
        for who in WHO {
            let address = stage.address(who, false)?;
            let load = Load { address, request: request(who, address, KIB * 1024), connections: CONNECTIONS };
            round.push((who, load.run_at(rate, time).with_context(|| format!("{who:?}"))?));
        }
        rounds.push(round);
    }
    let mut measures = vec![measure("half of what the body router can do", rate, "1/s")];
    for (percent, goal) in GOALS {
        let mut added = |who| median(rounds.iter_mut().map(|round| added(round, who, percent)).collect());
        let [no_op, rollora, body_router] = [Who::NoOp, Who::Rollora, Who::BodyRouter].map(&mut added);
        let name = format!("added latency at that, p{percent}");
        measures.extend([
            measure(&format!("{name}, no-op"), no_op, "us"),
            measure(&format!("{name}, rollora"), rollora, "us"),
            measure(&format!("{name}, body router"), body_router, "us"),
            measure(&format!("{name}: rollora to no-op"), rollora / no_op, "x").at_most(goal),
        ]);
    }
    Ok(measures)
}

/// What `who` added in a round to Envoy alone, in microseconds.
fn added(round: &mut [(Who, Seen)], who: Who, percent: usize) -> f64 {
    let mut micros = |who| {
        let seen = round.iter_mut().find(|(other, _)| *other == who);
        seen.map_or(f64::NAN, |(_, seen)| seen.percentile(percent).as_secs_f64() * 1e6)
    };
    micros(who) - micros(Who::Nobody)
}
