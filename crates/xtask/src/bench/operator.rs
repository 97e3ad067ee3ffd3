//! What `rollora-operator` needs on a cluster with many Rollouts, and how fast it is when somebody wants something.
//!
//! The API server is a real one, the operator is the optimized program. Pods are objects alone: one process, the
//! population, answers for all of their sidecars and routers, each at an address of its own, and makes the objects that
//! thousands of succeeded Rollouts would have left. What the operator asked for is read from the API server's audit log.
//! All of that runs on the same processors as the operator, which makes its times rather longer.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::servers::{Server, free_address};
use super::{Measure, Unavailable, count, median, mib};
use crate::proc;
use crate::workspace::{self, Programs, find};
use crate::{clock, process};

mod population;

use population::{Account, Population, Size};

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// The bench of what goes on: pools of ten pods and ten Rollouts.
    pools: u16,
    /// Rollouts that are under way while memory, time and writes are measured, one in a pool.
    active: u16,
    /// Rollouts that are under way while people want something of them, one in a pool.
    wished: u16,
    /// How often each is wished for.
    rounds: u16,
    /// How long nothing happens, and how long only what is under way.
    watch: Duration,
    /// Pools of the two sizes that are compared.
    few: u16,
    many: u16,
    /// Pods of each of these.
    pods: u8,
}

const FULL: Extent = Extent {
    pools: 100,
    active: 50,
    wished: 100,
    rounds: 2,
    watch: Duration::from_mins(1),
    few: 50,
    many: 500,
    pods: 100,
};
const SHORT: Extent = Extent {
    pools: 20,
    active: 10,
    wished: 20,
    rounds: 1,
    watch: Duration::from_secs(10),
    few: 5,
    many: 50,
    pods: 100,
};

const ROLLOUTS: u16 = 10;
const PODS: u8 = 10;
/// What a start leaves to be done after every Rollout was looked at.
const SETTLE: Duration = Duration::from_secs(5);
/// As long as nobody needs them, connections to pods are closed and memory is given back within this.
const REST: Duration = Duration::from_secs(10);
/// An operator that has nothing to do needs less than this, in percent of a core.
const AT_REST: f64 = 1.0;
/// So often it is looked whether it is at rest.
const LOOKS: u32 = 30;

pub(super) fn run(short: bool) -> Result<Vec<Measure>> {
    let programs = build()?;
    let extent = if short { SHORT } else { FULL };
    let folder = tempfile::tempdir()?;
    let mut measures = at_work(&programs, extent, folder.path())?;
    measures.extend(grown(&programs, extent, folder.path())?);
    Ok(measures)
}

fn build() -> Result<Programs> {
    if !cfg!(target_os = "linux") {
        return Err(Unavailable("processes are measured in /proc, which only Linux has".to_owned()).into());
    }
    eprintln!("building the operator, optimized; the first time that takes some minutes");
    let packages = ["--release", "-p", "rollora-operator-bin", "-p", "rollora-testbed"];
    workspace::build(&[&packages[..], &["--bin", "rollora-operator", "--bin", "population"]].concat())
}

fn measure(what: &str, value: f64, unit: &str) -> Measure {
    Measure::new("operator", what, value, unit)
}

/// Rollouts of which some are under way.
fn at_work(programs: &Programs, extent: Extent, folder: &Path) -> Result<Vec<Measure>> {
    let versions = 2 + 4 * extent.rounds;
    let size = Size { pools: extent.pools, pods: PODS, rollouts: ROLLOUTS, versions };
    let mut population = populated(programs, size, folder)?;
    let (operator, start) = started(programs, &mut population, folder)?;
    let words = format!("{} Rollouts, {} pools of {PODS} pods", thousands(size.rollouts_in_all()), size.pools);
    let mut measures = vec![measure(&format!("{words}: from start to all reconciled"), start.as_secs_f64(), "s")];
    rested(&operator)?;

    population.mark()?;
    let idle = Watch::over(&operator, extent.watch)?;
    let account = population.account()?;
    measures.push(measure(&format!("{words}, idle: processor time"), idle.percent, "% of a core"));
    measures.push(measure("the same: resident memory", idle.mib, "MiB"));
    let asked = account.sum(|_| true);
    measures.push(measure("the same: requests but watches and the Lease", count(asked), "").at_most(0.0));
    measures.push(measure("the same: watches that began anew", count(account.watches), ""));
    measures.push(measure("the same: questions which kinds are installed", count(account.discoveries), ""));

    population.hold(true)?;
    population.mark()?;
    population.begin(extent.active, 2)?;
    let account = population.account()?;
    measures.extend(writes(&account));
    process::pause(SETTLE)?;
    population.mark()?;
    let busy = Watch::over(&operator, extent.watch)?;
    let account = population.account()?;
    let words = format!("{} of them under way", extent.active);
    measures.push(measure(&format!("{words}: resident memory"), busy.mib, "MiB").at_most(64.0));
    measures.push(measure(&format!("{words}: processor time"), busy.percent, "% of a core").at_most(10.0));
    // To a tenth of a second: it is another program that sees them, some milliseconds later or earlier.
    let pace = (account.shortest_pace.map_or(f64::INFINITY, count) / 100.0).round() / 10.0;
    if account.progress > 0 {
        measures.push(measure("the same: shortest time between writes of counts", pace, "s").at_least(5.0));
    }
    let most = extent.watch.as_secs() / 5 + 1;
    let what = "the same: most writes of counts of one Rollout";
    measures.push(measure(what, count(account.most_progress), "").at_most(count(most)));
    let what = "the same: writes that the ConfigMap has another version";
    measures.push(measure(what, count(account.files), ""));
    measures.push(measure("the same: writes of anything else", count(account.but_counts()), "").at_most(0.0));
    population.hold(false)?;

    measures.extend(wishes(&mut population, extent)?);
    drop(operator);
    Ok(measures)
}

/// What was written while rollouts began, up to the first step.
fn writes(account: &Account) -> Vec<Measure> {
    let ratio = |a: u64, b: u64| count(a) / count(b.max(1));
    let rewrites = account.sum(|what| what.ends_with(" inferencemodelrewrites"));
    let maps = account.sum(|what| what.ends_with(" configmaps"));
    let events = account.sum(|what| what.ends_with(" events"));
    let status = account.sum(|what| what == "update rollouts/status");
    let reads = account.sum(|what| what.starts_with("get ") || what.starts_with("list "));
    let own = account.transitions + account.others;
    vec![
        measure("a rollout begins: transitions", count(account.transitions), ""),
        measure("writes of its status a transition", ratio(own, account.transitions), "").at_most(1.0),
        measure("writes of a rewrite a change of weights", ratio(rewrites, account.weights), "").at_most(1.0),
        measure("writes of the ConfigMap a transition", ratio(maps, account.transitions), "").at_most(1.0),
        measure("events a transition", ratio(events, account.transitions), ""),
        measure("writes of status in all, those of the pool's others too", count(status), ""),
        measure("the same because the ConfigMap is another one", count(account.files), ""),
        measure("reads that are no watch", count(reads), ""),
    ]
}

/// When people want something.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// Steps are under way, and what their beginning left to be written is written.
    UnderWay,
    /// All of them have begun within seconds: the API server has its hands full.
    Burst,
}

/// What people want is done at once.
fn wishes(population: &mut Population, extent: Extent) -> Result<Vec<Measure>> {
    let mut version = 3;
    let mut measures = Vec::new();
    for moment in [Moment::UnderWay, Moment::Burst] {
        for (verb, words) in [("abort", "abort"), ("promote-full", "promote --full")] {
            let mut times = Vec::new();
            for _ in 0..extent.rounds {
                times.extend(wish(population, (verb, moment), extent.wished, version)?);
                version += 1;
            }
            let when = match moment {
                Moment::UnderWay => "under way",
                Moment::Burst => "begun within seconds",
            };
            let what = |part| format!("{} {when}: {words} to rewrite written, {part}", extent.wished);
            measures.push(measure(&what("p50"), median(times.clone()), "ms"));
            measures.push(measure(&what("p99"), percentile(times, 0.99), "ms").at_most(250.0));
        }
    }
    Ok(measures)
}

/// Begins that many rollouts, has each of them asked for something, and lets all come to their end.
fn wish(population: &mut Population, (verb, moment): (&str, Moment), count: u16, version: u16) -> Result<Vec<f64>> {
    population.hold(true)?;
    population.begin(count, version)?;
    if matches!(moment, Moment::UnderWay) {
        process::pause(REST)?;
    }
    let times = population.wish(verb, count)?;
    population.hold(false)?;
    population.settled()?;
    Ok(times)
}

/// How memory and the time of a start grow.
fn grown(programs: &Programs, extent: Extent, folder: &Path) -> Result<Vec<Measure>> {
    let size = |pools| Size { pools, pods: extent.pods, rollouts: ROLLOUTS, versions: 2 };
    let mut population = populated(programs, size(extent.few), folder)?;
    let mut found = Vec::new();
    for pools in [extent.few, extent.many] {
        if pools != extent.few {
            population.grow(size(pools))?;
        }
        let (operator, start) = started(programs, &mut population, folder)?;
        rested(&operator)?;
        let seen = Watch::over(&operator, SETTLE)?;
        found.push((pools, start.as_secs_f64(), seen.mib, mib(proc::peak_kib(operator.pid())?)));
    }
    let mut measures = Vec::new();
    for (pools, seconds, resident, peak) in &found {
        let size = size(*pools);
        let rollouts = thousands(size.rollouts_in_all());
        let words = format!("{rollouts} Rollouts, {} pods", thousands(u32::from(*pools) * u32::from(extent.pods)));
        let last = *pools == extent.many;
        let goals = |measure: Measure, goal: f64| if last { measure.at_most(goal) } else { measure };
        measures.push(goals(measure(&format!("{words}: from start to all reconciled"), *seconds, "s"), 60.0));
        measures.push(goals(measure(&format!("{words}: resident memory"), *resident, "MiB"), 150.0));
        measures.push(measure(&format!("{words}: most memory"), *peak, "MiB"));
    }
    if let [(few, fast, small, _), (many, slow, large, _)] = found.as_slice() {
        let factor = f64::from(*many) / f64::from(*few);
        let what = format!("{factor} times the Rollouts and pods: time of the start");
        measures.push(measure(&what, slow / fast, "x").at_most(factor));
        measures.push(measure("the same: resident memory", large / small, "x").at_most(factor));
    }
    Ok(measures)
}

/// An API server with so much on it, of which an operator has made the first.
fn populated(programs: &Programs, size: Size, folder: &Path) -> Result<Population> {
    let mut population = Population::start(programs)?;
    population.seed(size)?;
    let first = operator(programs, &population, folder)?;
    population.learn()?;
    drop(first);
    population.grow(size)?;
    Ok(population)
}

/// An operator that has looked at everything, and how long that took.
fn started(programs: &Programs, population: &mut Population, folder: &Path) -> Result<(Server, Duration)> {
    let start = clock::now();
    let operator = operator(programs, population, folder)?;
    population.reconciled()?;
    Ok((operator, start.elapsed()))
}

/// Waits until the operator has done what a start leaves to be done: one status for each rewrite that has none.
fn rested(operator: &Server) -> Result<()> {
    for _ in 0..LOOKS {
        if Watch::over(operator, REST)?.percent < AT_REST {
            return Ok(());
        }
    }
    bail!("the operator has not come to rest within {:?}", REST * LOOKS)
}

fn operator(programs: &Programs, population: &Population, folder: &Path) -> Result<Server> {
    let address = free_address()?;
    let mut command = Command::new(find(programs, "rollora-operator")?);
    command.env("KUBECONFIG", population.kubeconfig()).args(["--address", "127.0.0.1", "--lease-namespace", "default"]);
    command.args(["--metrics-port", &address.port().to_string()]);
    for variable in ["POD_NAMESPACE", "POD_NAME", "POD_IP"] {
        command.env_remove(variable);
    }
    command.env("RUST_LOG", "warn");
    Server::start("rollora-operator", command, address, folder)
}

/// A process that was watched for a while.
struct Watch {
    percent: f64,
    mib: f64,
}

impl Watch {
    fn over(server: &Server, time: Duration) -> Result<Self> {
        let before = proc::threads_time(server.pid())?;
        let start = clock::now();
        process::pause(time)?;
        let used = proc::threads_time(server.pid())?.saturating_sub(before);
        let percent = used.as_secs_f64() * 100.0 / start.elapsed().as_secs_f64();
        let resident = proc::resident_kib(server.pid()).context("the operator has ended")?;
        Ok(Self { percent, mib: mib(resident) })
    }
}

/// The value that this part of all is not above.
fn percentile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
    let rank = (values.len() as f64 * part).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank of a few hundred")]
    let index = (rank as usize).saturating_sub(1);
    values.get(index).copied().unwrap_or_default()
}

fn thousands(number: u32) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        for (part, expected) in [(0.5, 100.0), (0.99, 198.0), (1.0, 200.0)] {
            assert!((percentile(values.clone(), part) - expected).abs() < f64::EPSILON);
        }
        assert!(percentile(Vec::new(), 0.99).abs() < f64::EPSILON);
    }

    #[test]
    fn large_numbers_are_written_for_people() {
        assert_eq!([thousands(500), thousands(5000), thousands(50_000)], ["500", "5,000", "50,000"]);
    }
}
