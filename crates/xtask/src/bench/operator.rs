//! Resource use of `rollora-operator` on a cluster with many Rollouts, and its latency for intents.
//!
//! The API server is real, and the operator is an optimized build. Pods exist only as objects: one process, the scale
//! fixture, answers for all of their sidecars and routers, each at a different address, and creates the objects that
//! thousands of succeeded Rollouts would have left. The operator's requests are counted in the API server's audit log.
//! All of this runs on the same processors as the operator, which makes the measured times rather longer.

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

/// Number of objects in each part of the bench.
#[derive(Debug, Clone, Copy)]
struct BenchScale {
    /// Pools of ten pods and ten Rollouts in the activity bench.
    pools: u16,
    /// Rollouts in progress while memory, CPU time and writes are measured, one per pool.
    active_rollouts: u16,
    /// Rollouts in progress while intents are sent, one per pool.
    intent_rollouts: u16,
    /// Number of intents per Rollout and verb.
    rounds: u16,
    /// Duration of the idle measurement, and of the one with rollouts in progress.
    observation_window: Duration,
    /// Number of pools in the two sizes that are compared.
    small_pool_count: u16,
    large_pool_count: u16,
    /// Number of pods per pool in these.
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
/// Time for the work that follows a start, after every Rollout was reconciled.
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// Unused connections to pods are closed, and memory is given back, within this time.
const IDLE_SAMPLE: Duration = Duration::from_secs(10);
/// Maximum CPU usage of an operator that has nothing to do, in percent of a core.
const IDLE_CPU_PERCENT: f64 = 1.0;
/// Maximum number of samples while waiting for an idle operator.
const MAX_IDLE_SAMPLES: u32 = 30;

pub(super) fn run(short: bool) -> Result<Vec<Measurement>> {
    let programs = build()?;
    let scale = if short { SHORT_SCALE } else { FULL_SCALE };
    let folder = tempfile::tempdir()?;
    let mut measurements = bench_activity(&programs, scale, folder.path())?;
    measurements.extend(bench_growth(&programs, scale, folder.path())?);
    Ok(measurements)
}

fn build() -> Result<Programs> {
    if !cfg!(target_os = "linux") {
        return Err(
            MissingPrerequisite("CPU time and memory are read from /proc, which only Linux has".to_owned()).into()
        );
    }
    eprintln!("building the operator with optimizations; the first build takes some minutes");
    let packages = ["--release", "-p", "rollora-operator-bin", "-p", "rollora-testbed"];
    workspace::build(&[&packages[..], &["--bin", "rollora-operator", "--bin", "scale-fixture"]].concat())
}

fn measurement(what: &str, value: f64, unit: &str) -> Measurement {
    Measurement::new("operator", what, value, unit)
}

/// Measures an operator that is idle, with rollouts in progress, and with intents.
fn bench_activity(programs: &Programs, scale: BenchScale, folder: &Path) -> Result<Vec<Measurement>> {
    let versions = 2 + 4 * scale.rounds;
    let size = ScaleSize { pools: scale.pools, pods: PODS_PER_POOL, rollouts: ROLLOUTS_PER_POOL, versions };
    let mut fixture = start_populated(programs, size, folder)?;
    let (operator, start) = start_and_reconcile(programs, &mut fixture, folder)?;
    let prefix = format!(
        "{} Rollouts, {} pools of {PODS_PER_POOL} pods",
        with_thousands_separator(size.total_rollouts()),
        size.pools
    );
    let mut measurements =
        vec![measurement(&format!("{prefix}: from start to all reconciled"), start.as_secs_f64(), "s")];
    wait_until_idle(&operator)?;

    fixture.reset_counts()?;
    let idle = ProcessUsage::sample(&operator, scale.observation_window)?;
    let counts = fixture.request_counts()?;
    measurements.push(measurement(&format!("{prefix}, idle: CPU time"), idle.cpu_percent, "% of a core"));
    measurements.push(measurement("idle: resident memory", idle.resident_mib, "MiB"));
    let requests = counts.count_requests(|_| true);
    measurements.push(measurement("idle: requests except watches and the Lease", to_f64(requests), "").at_most(0.0));
    measurements.push(measurement("idle: watches restarted", to_f64(counts.watches), ""));
    measurements.push(measurement("idle: API discovery requests", to_f64(counts.discoveries), ""));

    fixture.hold_routers(true)?;
    fixture.reset_counts()?;
    fixture.begin_rollouts(scale.active_rollouts, 2)?;
    let counts = fixture.request_counts()?;
    measurements.extend(write_measurements(&counts));
    process::interruptible_sleep(SETTLE_TIME)?;
    fixture.reset_counts()?;
    let busy = ProcessUsage::sample(&operator, scale.observation_window)?;
    let counts = fixture.request_counts()?;
    let prefix = format!("{} in progress", scale.active_rollouts);
    measurements.push(measurement(&format!("{prefix}: resident memory"), busy.resident_mib, "MiB").at_most(64.0));
    measurements.push(measurement(&format!("{prefix}: CPU time"), busy.cpu_percent, "% of a core").at_most(10.0));
    // Rounded to a tenth of a second: another program observes the writes, some milliseconds later or earlier.
    let interval = (counts.min_counter_write_interval_ms.map_or(f64::INFINITY, to_f64) / 100.0).round() / 10.0;
    if counts.counter_writes > 0 {
        let what = format!("{prefix}: shortest interval between counter writes");
        measurements.push(measurement(&what, interval, "s").at_least(5.0));
    }
    let most = scale.observation_window.as_secs() / 5 + 1;
    let what = format!("{prefix}: most counter writes of one Rollout");
    measurements.push(measurement(&what, to_f64(counts.max_counter_writes), "").at_most(to_f64(most)));
    let what = format!("{prefix}: writes because the ConfigMap changed");
    measurements.push(measurement(&what, to_f64(counts.adapters_file_changes), ""));
    let what = format!("{prefix}: other writes");
    measurements.push(measurement(&what, to_f64(counts.requests_without_counter_writes()), "").at_most(0.0));
    fixture.hold_routers(false)?;

    measurements.extend(bench_intents(&mut fixture, scale)?);
    drop(operator);
    Ok(measurements)
}

/// Returns the writes while rollouts start, up to their first step.
fn write_measurements(counts: &RequestCounts) -> Vec<Measurement> {
    let ratio = |a: u64, b: u64| to_f64(a) / to_f64(b.max(1));
    let rewrites = counts.count_requests(|what| what.ends_with(" inferencemodelrewrites"));
    let maps = counts.count_requests(|what| what.ends_with(" configmaps"));
    let events = counts.count_requests(|what| what.ends_with(" events"));
    let status = counts.count_requests(|what| what == "update rollouts/status");
    let reads = counts.count_requests(|what| what.starts_with("get ") || what.starts_with("list "));
    let own = counts.transitions + counts.other_writes;
    vec![
        measurement("rollouts start: transitions", to_f64(counts.transitions), ""),
        measurement("status writes per transition", ratio(own, counts.transitions), "").at_most(1.0),
        measurement("rewrite writes per change of weights", ratio(rewrites, counts.weight_changes), "").at_most(1.0),
        measurement("ConfigMap writes per transition", ratio(maps, counts.transitions), "").at_most(1.0),
        measurement("events per transition", ratio(events, counts.transitions), ""),
        measurement("status writes in total, with other Rollouts of the pools", to_f64(status), ""),
        measurement("status writes because the ConfigMap changed", to_f64(counts.adapters_file_changes), ""),
        measurement("reads other than watches", to_f64(reads), ""),
    ]
}

/// When intents are sent.
#[derive(Debug, Clone, Copy)]
enum IntentTiming {
    /// While steps are in progress, and the writes that follow their start are complete.
    DuringSteps,
    /// After all rollouts have started within seconds: the API server is busy.
    Burst,
}

/// Measures the time from an intent to its rewrite.
fn bench_intents(fixture: &mut ScaleFixtureProcess, scale: BenchScale) -> Result<Vec<Measurement>> {
    let mut version = 3;
    let mut measurements = Vec::new();
    for timing in [IntentTiming::DuringSteps, IntentTiming::Burst] {
        for (verb, command) in [("abort", "abort"), ("promote-full", "promote --full")] {
            let mut times = Vec::new();
            for _ in 0..scale.rounds {
                times.extend(measure_intents(fixture, (verb, timing), scale.intent_rollouts, version)?);
                version += 1;
            }
            let when = match timing {
                IntentTiming::DuringSteps => "in progress",
                IntentTiming::Burst => "started within seconds",
            };
            let what = |part| format!("{} {when}: {command} to rewrite written, {part}", scale.intent_rollouts);
            measurements.push(measurement(&what("p50"), median(times.clone()), "ms"));
            measurements.push(measurement(&what("p99"), percentile(times, 0.99), "ms").at_most(250.0));
        }
    }
    Ok(measurements)
}

/// Starts `count` rollouts, sends an intent to each, and waits until all are complete.
fn measure_intents(
    fixture: &mut ScaleFixtureProcess,
    (verb, timing): (&str, IntentTiming),
    count: u16,
    version: u16,
) -> Result<Vec<f64>> {
    fixture.hold_routers(true)?;
    fixture.begin_rollouts(count, version)?;
    if matches!(timing, IntentTiming::DuringSteps) {
        process::interruptible_sleep(IDLE_SAMPLE)?;
    }
    let times = fixture.send_intents(verb, count)?;
    fixture.hold_routers(false)?;
    fixture.wait_until_settled()?;
    Ok(times)
}

/// Measures how memory and start time grow with the number of Rollouts and pods.
fn bench_growth(programs: &Programs, scale: BenchScale, folder: &Path) -> Result<Vec<Measurement>> {
    let size = |pools| ScaleSize { pools, pods: scale.pods_per_pool, rollouts: ROLLOUTS_PER_POOL, versions: 2 };
    let mut fixture = start_populated(programs, size(scale.small_pool_count), folder)?;
    let mut results = Vec::new();
    for pools in [scale.small_pool_count, scale.large_pool_count] {
        if pools != scale.small_pool_count {
            fixture.grow(size(pools))?;
        }
        let (operator, start) = start_and_reconcile(programs, &mut fixture, folder)?;
        wait_until_idle(&operator)?;
        let usage = ProcessUsage::sample(&operator, SETTLE_TIME)?;
        results.push((
            pools,
            start.as_secs_f64(),
            usage.resident_mib,
            kib_to_mib(procfs::peak_memory_kib(operator.pid())?),
        ));
    }
    let mut measurements = Vec::new();
    for (pools, seconds, resident, peak) in &results {
        let size = size(*pools);
        let rollouts = with_thousands_separator(size.total_rollouts());
        let prefix = format!(
            "{rollouts} Rollouts, {} pods",
            with_thousands_separator(u32::from(*pools) * u32::from(scale.pods_per_pool))
        );
        let last = *pools == scale.large_pool_count;
        let goals = |measure: Measurement, goal: f64| if last { measure.at_most(goal) } else { measure };
        measurements.push(goals(measurement(&format!("{prefix}: from start to all reconciled"), *seconds, "s"), 60.0));
        measurements.push(goals(measurement(&format!("{prefix}: resident memory"), *resident, "MiB"), 150.0));
        measurements.push(measurement(&format!("{prefix}: peak memory"), *peak, "MiB"));
    }
    if let [(few, fast, small, _), (many, slow, large, _)] = results.as_slice() {
        let factor = f64::from(*many) / f64::from(*few);
        let prefix = format!("{factor} times the Rollouts and pods");
        measurements.push(measurement(&format!("{prefix}: start time"), slow / fast, "x").at_most(factor));
        measurements.push(measurement(&format!("{prefix}: resident memory"), large / small, "x").at_most(factor));
    }
    Ok(measurements)
}

/// Starts an API server with objects of this size; an operator completes the first Rollout as the template.
fn start_populated(programs: &Programs, size: ScaleSize, folder: &Path) -> Result<ScaleFixtureProcess> {
    let mut fixture = ScaleFixtureProcess::start(programs)?;
    fixture.seed(size)?;
    let first = spawn_operator(programs, &fixture, folder)?;
    fixture.record_template()?;
    drop(first);
    fixture.grow(size)?;
    Ok(fixture)
}

/// Starts an operator, and measures the time until it has reconciled all Rollouts.
fn start_and_reconcile(
    programs: &Programs,
    fixture: &mut ScaleFixtureProcess,
    folder: &Path,
) -> Result<(BenchProcess, Duration)> {
    let start = clock::now();
    let operator = spawn_operator(programs, fixture, folder)?;
    fixture.wait_until_reconciled()?;
    Ok((operator, start.elapsed()))
}

/// Waits until the operator has done the work that follows a start: one status write per rewrite that has none.
fn wait_until_idle(operator: &BenchProcess) -> Result<()> {
    for _ in 0..MAX_IDLE_SAMPLES {
        if ProcessUsage::sample(operator, IDLE_SAMPLE)?.cpu_percent < IDLE_CPU_PERCENT {
            return Ok(());
        }
    }
    bail!("the operator was not idle within {:?}", IDLE_SAMPLE * MAX_IDLE_SAMPLES)
}

fn spawn_operator(programs: &Programs, fixture: &ScaleFixtureProcess, folder: &Path) -> Result<BenchProcess> {
    let address = free_address()?;
    let mut command = Command::new(find_program(programs, "rollora-operator")?);
    command.env("KUBECONFIG", fixture.kubeconfig()).args(["--address", "127.0.0.1", "--lease-namespace", "default"]);
    command.args(["--metrics-port", &address.port().to_string()]);
    for variable in ["POD_NAMESPACE", "POD_NAME", "POD_IP"] {
        command.env_remove(variable);
    }
    command.env("RUST_LOG", "warn");
    BenchProcess::start("rollora-operator", command, address, folder)
}

/// Resource use of a process over some time.
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
        let resident = procfs::resident_memory_kib(server.pid()).context("the operator has exited")?;
        Ok(Self { cpu_percent: percent, resident_mib: kib_to_mib(resident) })
    }
}

/// Returns the value that this fraction of the values does not exceed.
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
    fn percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        for (part, expected) in [(0.5, 100.0), (0.99, 198.0), (1.0, 200.0)] {
            assert!((percentile(values.clone(), part) - expected).abs() < f64::EPSILON);
        }
        assert!(percentile(Vec::new(), 0.99).abs() < f64::EPSILON);
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(
            [with_thousands_separator(500), with_thousands_separator(5000), with_thousands_separator(50_000)],
            ["500", "5,000", "50,000"]
        );
    }
}
