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

use super::processes::{BenchProcess, free_address};
use super::{Measurement, MissingPrerequisite, kib_to_mib, median, to_f64};
use crate::procfs;
use crate::workspace::{self, Programs, find_program};
use crate::{clock, process};

mod scale_fixture;

use scale_fixture::{RequestCounts, ScaleFixtureProcess, ScaleSize};

/// How much of everything.
#[derive(Debug, Clone, Copy)]
struct BenchScale {
    /// The bench of what goes on: pools of ten pods and ten Rollouts.
    pools: u16,
    /// Rollouts that are under way while memory, time and writes are measured, one in a pool.
    active_rollouts: u16,
    /// Rollouts that are under way while people want something of them, one in a pool.
    intent_rollouts: u16,
    /// How often each is wished for.
    rounds: u16,
    /// How long nothing happens, and how long only what is under way.
    observation_window: Duration,
    /// Pools of the two sizes that are compared.
    small_pool_count: u16,
    large_pool_count: u16,
    /// Pods of each of these.
    pods_per_pool: u8,
}

const FULL_SCALE: BenchScale = BenchScale {
    pools: 100,
    active_rollouts: 50,
    intent_rollouts: 100,
    rounds: 2,
    observation_window: Duration::from_mins(1),
    small_pool_count: 50,
    large_pool_count: 500,
    pods_per_pool: 100,
};
const SHORT_SCALE: BenchScale = BenchScale {
    pools: 20,
    active_rollouts: 10,
    intent_rollouts: 20,
    rounds: 1,
    observation_window: Duration::from_secs(10),
    small_pool_count: 5,
    large_pool_count: 50,
    pods_per_pool: 100,
};

const ROLLOUTS_PER_POOL: u16 = 10;
const PODS_PER_POOL: u8 = 10;
/// What a start leaves to be done after every Rollout was looked at.
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// As long as nobody needs them, connections to pods are closed and memory is given back within this.
const IDLE_SAMPLE: Duration = Duration::from_secs(10);
/// An operator that has nothing to do needs less than this, in percent of a core.
const IDLE_CPU_PERCENT: f64 = 1.0;
/// So often it is looked whether it is at rest.
const MAX_IDLE_SAMPLES: u32 = 30;

pub(super) fn run(short: bool) -> Result<Vec<Measurement>> {
    let programs = build()?;
    let extent = if short { SHORT_SCALE } else { FULL_SCALE };
    let folder = tempfile::tempdir()?;
    let mut measures = bench_activity(&programs, extent, folder.path())?;
    measures.extend(bench_growth(&programs, extent, folder.path())?);
    Ok(measures)
}

fn build() -> Result<Programs> {
    if !cfg!(target_os = "linux") {
        return Err(MissingPrerequisite("processes are measured in /proc, which only Linux has".to_owned()).into());
    }
    eprintln!("building the operator, optimized; the first time that takes some minutes");
    let packages = ["--release", "-p", "rollora-operator-bin", "-p", "rollora-testbed"];
    workspace::build(&[&packages[..], &["--bin", "rollora-operator", "--bin", "scale-fixture"]].concat())
}

fn measurement(what: &str, value: f64, unit: &str) -> Measurement {
    Measurement::new("operator", what, value, unit)
}

/// Rollouts of which some are under way.
fn bench_activity(programs: &Programs, extent: BenchScale, folder: &Path) -> Result<Vec<Measurement>> {
    let versions = 2 + 4 * extent.rounds;
    let size = ScaleSize { pools: extent.pools, pods: PODS_PER_POOL, rollouts: ROLLOUTS_PER_POOL, versions };
    let mut population = start_populated(programs, size, folder)?;
    let (operator, start) = start_and_reconcile(programs, &mut population, folder)?;
    let words = format!(
        "{} Rollouts, {} pools of {PODS_PER_POOL} pods",
        with_thousands_separator(size.total_rollouts()),
        size.pools
    );
    let mut measures = vec![measurement(&format!("{words}: from start to all reconciled"), start.as_secs_f64(), "s")];
    wait_until_idle(&operator)?;

    population.reset_counts()?;
    let idle = ProcessUsage::sample(&operator, extent.observation_window)?;
    let account = population.request_counts()?;
    measures.push(measurement(&format!("{words}, idle: processor time"), idle.cpu_percent, "% of a core"));
    measures.push(measurement("the same: resident memory", idle.resident_mib, "MiB"));
    let asked = account.count_requests(|_| true);
    measures.push(measurement("the same: requests but watches and the Lease", to_f64(asked), "").at_most(0.0));
    measures.push(measurement("the same: watches that began anew", to_f64(account.watches), ""));
    measures.push(measurement("the same: questions which kinds are installed", to_f64(account.discoveries), ""));

    population.hold_routers(true)?;
    population.reset_counts()?;
    population.begin_rollouts(extent.active_rollouts, 2)?;
    let account = population.request_counts()?;
    measures.extend(write_measurements(&account));
    process::interruptible_sleep(SETTLE_TIME)?;
    population.reset_counts()?;
    let busy = ProcessUsage::sample(&operator, extent.observation_window)?;
    let account = population.request_counts()?;
    let words = format!("{} of them under way", extent.active_rollouts);
    measures.push(measurement(&format!("{words}: resident memory"), busy.resident_mib, "MiB").at_most(64.0));
    measures.push(measurement(&format!("{words}: processor time"), busy.cpu_percent, "% of a core").at_most(10.0));
    // To a tenth of a second: it is another program that sees them, some milliseconds later or earlier.
    let pace = (account.min_counter_write_interval_ms.map_or(f64::INFINITY, to_f64) / 100.0).round() / 10.0;
    if account.counter_writes > 0 {
        measures.push(measurement("the same: shortest time between writes of counts", pace, "s").at_least(5.0));
    }
    let most = extent.observation_window.as_secs() / 5 + 1;
    let what = "the same: most writes of counts of one Rollout";
    measures.push(measurement(what, to_f64(account.max_counter_writes), "").at_most(to_f64(most)));
    let what = "the same: writes that the ConfigMap has another version";
    measures.push(measurement(what, to_f64(account.adapters_file_changes), ""));
    measures.push(
        measurement("the same: writes of anything else", to_f64(account.requests_without_counter_writes()), "")
            .at_most(0.0),
    );
    population.hold_routers(false)?;

    measures.extend(bench_intents(&mut population, extent)?);
    drop(operator);
    Ok(measures)
}

/// What was written while rollouts began, up to the first step.
fn write_measurements(account: &RequestCounts) -> Vec<Measurement> {
    let ratio = |a: u64, b: u64| to_f64(a) / to_f64(b.max(1));
    let rewrites = account.count_requests(|what| what.ends_with(" inferencemodelrewrites"));
    let maps = account.count_requests(|what| what.ends_with(" configmaps"));
    let events = account.count_requests(|what| what.ends_with(" events"));
    let status = account.count_requests(|what| what == "update rollouts/status");
    let reads = account.count_requests(|what| what.starts_with("get ") || what.starts_with("list "));
    let own = account.transitions + account.other_writes;
    vec![
        measurement("a rollout begins: transitions", to_f64(account.transitions), ""),
        measurement("writes of its status a transition", ratio(own, account.transitions), "").at_most(1.0),
        measurement("writes of a rewrite a change of weights", ratio(rewrites, account.weight_changes), "")
            .at_most(1.0),
        measurement("writes of the ConfigMap a transition", ratio(maps, account.transitions), "").at_most(1.0),
        measurement("events a transition", ratio(events, account.transitions), ""),
        measurement("writes of status in all, those of the pool's others too", to_f64(status), ""),
        measurement("the same because the ConfigMap is another one", to_f64(account.adapters_file_changes), ""),
        measurement("reads that are no watch", to_f64(reads), ""),
    ]
}

/// When people want something.
#[derive(Debug, Clone, Copy)]
enum IntentTiming {
    /// Steps are under way, and what their beginning left to be written is written.
    DuringSteps,
    /// All of them have begun within seconds: the API server has its hands full.
    Burst,
}

/// What people want is done at once.
fn bench_intents(population: &mut ScaleFixtureProcess, extent: BenchScale) -> Result<Vec<Measurement>> {
    let mut version = 3;
    let mut measures = Vec::new();
    for moment in [IntentTiming::DuringSteps, IntentTiming::Burst] {
        for (verb, words) in [("abort", "abort"), ("promote-full", "promote --full")] {
            let mut times = Vec::new();
            for _ in 0..extent.rounds {
                times.extend(measure_intents(population, (verb, moment), extent.intent_rollouts, version)?);
                version += 1;
            }
            let when = match moment {
                IntentTiming::DuringSteps => "under way",
                IntentTiming::Burst => "begun within seconds",
            };
            let what = |part| format!("{} {when}: {words} to rewrite written, {part}", extent.intent_rollouts);
            measures.push(measurement(&what("p50"), median(times.clone()), "ms"));
            measures.push(measurement(&what("p99"), percentile(times, 0.99), "ms").at_most(250.0));
        }
    }
    Ok(measures)
}

/// Begins that many rollouts, has each of them asked for something, and lets all come to their end.
fn measure_intents(
    population: &mut ScaleFixtureProcess,
    (verb, moment): (&str, IntentTiming),
    count: u16,
    version: u16,
) -> Result<Vec<f64>> {
    population.hold_routers(true)?;
    population.begin_rollouts(count, version)?;
    if matches!(moment, IntentTiming::DuringSteps) {
        process::interruptible_sleep(IDLE_SAMPLE)?;
    }
    let times = population.send_intents(verb, count)?;
    population.hold_routers(false)?;
    population.wait_until_settled()?;
    Ok(times)
}

/// How memory and the time of a start grow.
fn bench_growth(programs: &Programs, extent: BenchScale, folder: &Path) -> Result<Vec<Measurement>> {
    let size = |pools| ScaleSize { pools, pods: extent.pods_per_pool, rollouts: ROLLOUTS_PER_POOL, versions: 2 };
    let mut population = start_populated(programs, size(extent.small_pool_count), folder)?;
    let mut found = Vec::new();
    for pools in [extent.small_pool_count, extent.large_pool_count] {
        if pools != extent.small_pool_count {
            population.grow(size(pools))?;
        }
        let (operator, start) = start_and_reconcile(programs, &mut population, folder)?;
        wait_until_idle(&operator)?;
        let seen = ProcessUsage::sample(&operator, SETTLE_TIME)?;
        found.push((
            pools,
            start.as_secs_f64(),
            seen.resident_mib,
            kib_to_mib(procfs::peak_memory_kib(operator.pid())?),
        ));
    }
    let mut measures = Vec::new();
    for (pools, seconds, resident, peak) in &found {
        let size = size(*pools);
        let rollouts = with_thousands_separator(size.total_rollouts());
        let words = format!(
            "{rollouts} Rollouts, {} pods",
            with_thousands_separator(u32::from(*pools) * u32::from(extent.pods_per_pool))
        );
        let last = *pools == extent.large_pool_count;
        let goals = |measure: Measurement, goal: f64| if last { measure.at_most(goal) } else { measure };
        measures.push(goals(measurement(&format!("{words}: from start to all reconciled"), *seconds, "s"), 60.0));
        measures.push(goals(measurement(&format!("{words}: resident memory"), *resident, "MiB"), 150.0));
        measures.push(measurement(&format!("{words}: most memory"), *peak, "MiB"));
    }
    if let [(few, fast, small, _), (many, slow, large, _)] = found.as_slice() {
        let factor = f64::from(*many) / f64::from(*few);
        let what = format!("{factor} times the Rollouts and pods: time of the start");
        measures.push(measurement(&what, slow / fast, "x").at_most(factor));
        measures.push(measurement("the same: resident memory", large / small, "x").at_most(factor));
    }
    Ok(measures)
}

/// An API server with so much on it, of which an operator has made the first.
fn start_populated(programs: &Programs, size: ScaleSize, folder: &Path) -> Result<ScaleFixtureProcess> {
    let mut population = ScaleFixtureProcess::start(programs)?;
    population.seed(size)?;
    let first = spawn_operator(programs, &population, folder)?;
    population.record_template()?;
    drop(first);
    population.grow(size)?;
    Ok(population)
}

/// An operator that has looked at everything, and how long that took.
fn start_and_reconcile(
    programs: &Programs,
    population: &mut ScaleFixtureProcess,
    folder: &Path,
) -> Result<(BenchProcess, Duration)> {
    let start = clock::now();
    let operator = spawn_operator(programs, population, folder)?;
    population.wait_until_reconciled()?;
    Ok((operator, start.elapsed()))
}

/// Waits until the operator has done what a start leaves to be done: one status for each rewrite that has none.
fn wait_until_idle(operator: &BenchProcess) -> Result<()> {
    for _ in 0..MAX_IDLE_SAMPLES {
        if ProcessUsage::sample(operator, IDLE_SAMPLE)?.cpu_percent < IDLE_CPU_PERCENT {
            return Ok(());
        }
    }
    bail!("the operator has not come to rest within {:?}", IDLE_SAMPLE * MAX_IDLE_SAMPLES)
}

fn spawn_operator(programs: &Programs, population: &ScaleFixtureProcess, folder: &Path) -> Result<BenchProcess> {
    let address = free_address()?;
    let mut command = Command::new(find_program(programs, "rollora-operator")?);
    command.env("KUBECONFIG", population.kubeconfig()).args(["--address", "127.0.0.1", "--lease-namespace", "default"]);
    command.args(["--metrics-port", &address.port().to_string()]);
    for variable in ["POD_NAMESPACE", "POD_NAME", "POD_IP"] {
        command.env_remove(variable);
    }
    command.env("RUST_LOG", "warn");
    BenchProcess::start("rollora-operator", command, address, folder)
}

/// A process that was watched for a while.
struct ProcessUsage {
    cpu_percent: f64,
    resident_mib: f64,
}

impl ProcessUsage {
    fn sample(server: &BenchProcess, time: Duration) -> Result<Self> {
        let before = procfs::thread_cpu_time(server.pid())?;
        let start = clock::now();
        process::interruptible_sleep(time)?;
        let used = procfs::thread_cpu_time(server.pid())?.saturating_sub(before);
        let percent = used.as_secs_f64() * 100.0 / start.elapsed().as_secs_f64();
        let resident = procfs::resident_memory_kib(server.pid()).context("the operator has ended")?;
        Ok(Self { cpu_percent: percent, resident_mib: kib_to_mib(resident) })
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

fn with_thousands_separator(number: u32) -> String {
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
        assert_eq!(
            [with_thousands_separator(500), with_thousands_separator(5000), with_thousands_separator(50_000)],
            ["500", "5,000", "50,000"]
        );
    }
}
