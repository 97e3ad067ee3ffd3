//! Resource use of an idle `rollora-sidecar`, and its latency for changes.
//!
//! The sidecar is built with `--profile image`, as for its image. Its environment is neither measured nor optimized:
//! simulated vLLM servers, a mount that is swapped as a kubelet does it, and a real API server. Requests to vLLM are
//! read from the simulator's counters every millisecond, so the measured times are rather too long than too short.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::processes::{BenchProcess, free_address};
use super::{Measurement, MissingPrerequisite, kib_to_mib, median, to_f64};
use crate::procfs;
use crate::workspace::{self, Programs, find_program};
use crate::{clock, process};

mod fixture;

use fixture::{MountedConfigMap, ProxiedApiServer, SidecarProcess, adapters_yaml, get_json, wait_for};

const IDLE_ADAPTERS: usize = 100;
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// A tick of `/proc` is 10 ms: in a shorter window it would be as large as the goal.
const OBSERVATION_WINDOW: Duration = Duration::from_secs(30);
const UPDATES: usize = 21;
const RESTARTS: usize = 5;
const RESTART_ADAPTERS: usize = 20;
const MANY_ADAPTERS: usize = 1000;
const PARALLEL_LOADS: u32 = 4;
/// Duration of a load, and of a token of a probe, where calls are not free.
const CALL_LATENCY: Duration = Duration::from_millis(20);
/// Interval of model lists without changes: the default of `--reconcile-trigger`.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// More than any of these benches load: the simulator caches all weights.
const MAX_CPU_LORAS: &str = "2000";

pub(super) fn run() -> Result<Vec<Measurement>> {
    let (programs, image) = build()?;
    let image = find_program(&image, "rollora-sidecar")?;
    let folder = tempfile::tempdir()?;
    let mut measurements = vec![measure_program_size(image)?];
    let cluster = ProxiedApiServer::start(&programs)?;
    measurements.extend(bench_idle_and_updates(&programs, image, &cluster, folder.path())?);
    drop(cluster);
    measurements.push(bench_restarts(&programs, image, folder.path())?);
    measurements.extend(bench_many_adapters(&programs, image, folder.path())?);
    Ok(measurements)
}

/// Builds the sidecar as for its image, and its environment.
fn build() -> Result<(Programs, Programs)> {
    if !cfg!(target_os = "linux") {
        return Err(
            MissingPrerequisite("CPU time and memory are read from /proc, which only Linux has".to_owned()).into()
        );
    }
    eprintln!("building the sidecar with the image profile; the first build takes some minutes");
    // Built alone: with other packages, shared libraries would be built with the features of those too.
    let image = ["--profile", "image", "-p", "rollora-sidecar-bin"];
    let image = workspace::build(&image)?;
    // Built like the tests: where they have run, nothing has to be compiled.
    let environment = ["--workspace", "--bin", "vllm-sim", "--bin", "control-plane"];
    Ok((workspace::build(&environment)?, image))
}

fn measure_program_size(program: &Path) -> Result<Measurement> {
    let kib = std::fs::metadata(program)?.len() / 1024;
    Ok(Measurement::new("sidecar", "program size, stripped", kib_to_mib(kib), "MiB").at_most(10.0))
}

/// Measures one sidecar of each mode next to a server with 100 adapters: idle, and when one adapter is added.
fn bench_idle_and_updates(
    programs: &Programs,
    image: &Path,
    cluster: &ProxiedApiServer,
    folder: &Path,
) -> Result<Vec<Measurement>> {
    let server = || BenchProcess::start_simulator_with(programs, 0, &["--max-cpu-loras", MAX_CPU_LORAS]);
    let (file_server, watch_server) = (server()?, server()?);
    let file = |server: &BenchProcess, count| adapters_yaml(server.address.port(), count);
    let mount = MountedConfigMap::create(&folder.join("mount"), &file(&file_server, IDLE_ADAPTERS))?;
    cluster.create_config_map(&file(&watch_server, IDLE_ADAPTERS))?;
    let mut in_file_mode = SidecarProcess::start_file_mode("sidecar-file", image, &mount.file(), &[], folder)?;
    let missing_mount = folder.join("no-such-mount");
    let mut in_watch_mode = SidecarProcess::start_watch_mode("sidecar-watch", image, &missing_mount, cluster, folder)?;
    for sidecar in [&mut in_file_mode, &mut in_watch_mode] {
        sidecar.wait_until_verified(IDLE_ADAPTERS)?;
    }
    process::interruptible_sleep(SETTLE_TIME)?;
    let sidecars = [("file", &in_file_mode, 8.0), ("watch", &in_watch_mode, 14.0)];
    let mut before = Vec::new();
    for (_, sidecar, _) in sidecars {
        before.push(procfs::cpu_time(sidecar.pid())?);
    }
    process::interruptible_sleep(OBSERVATION_WINDOW)?;
    let mut measurements = Vec::new();
    for ((mode, sidecar, goal), before) in sidecars.into_iter().zip(before) {
        let used = procfs::cpu_time(sidecar.pid())?.saturating_sub(before);
        let percent = used.as_secs_f64() * 100.0 / OBSERVATION_WINDOW.as_secs_f64();
        let resident = kib_to_mib(procfs::resident_memory_kib(sidecar.pid())?);
        let what = format!("resident memory, 100 adapters, {mode} mode");
        measurements.push(Measurement::new("sidecar", &what, resident, "MiB").at_most(goal));
        let what = format!("CPU time when idle, {mode} mode");
        measurements.push(Measurement::new("sidecar", &what, percent, "% of a core").at_most(0.2));
    }
    let [swapped, patched] = [
        measure_updates(&file_server, &mut in_file_mode, |count| mount.swap(&file(&file_server, count)))?,
        measure_updates(&watch_server, &mut in_watch_mode, |count| {
            cluster.update_config_map(&file(&watch_server, count))
        })?,
    ];
    let what = "from a swap of the mount to the load at vLLM, median";
    measurements.push(Measurement::new("sidecar", what, swapped, "ms").at_most(150.0));
    let what = "from a PATCH of the ConfigMap to the load at vLLM, median";
    measurements.push(Measurement::new("sidecar", what, patched, "ms").at_most(50.0));
    Ok(measurements)
}

/// Returns the median time from the start of an update that adds one adapter to its load at the server.
fn measure_updates(
    server: &BenchProcess,
    sidecar: &mut SidecarProcess,
    update: impl Fn(usize) -> Result<()>,
) -> Result<f64> {
    let mut times = Vec::new();
    for count in IDLE_ADAPTERS + 1..=IDLE_ADAPTERS + UPDATES {
        let start = clock::now();
        update(count)?;
        wait_for("the load of the added adapter", POLL_INTERVAL, || Ok((count_loads(server)? >= count).then_some(())))?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        sidecar.wait_until_verified(count)?;
        // Varies, so that updates do not synchronize with the sidecar's polls.
        process::interruptible_sleep(Duration::from_millis(150 + 7 * u64::try_from(count % 30)?))?;
    }
    Ok(median(times))
}

/// Measures the overhead until a restarted server has all adapters again, without the calls; the worst of five.
fn bench_restarts(programs: &Programs, image: &Path, folder: &Path) -> Result<Measurement> {
    let port = free_address()?.port();
    let millis = CALL_LATENCY.as_millis().to_string();
    let flags = ["--load-millis", &millis, "--token-millis", &millis, "--max-cpu-loras", MAX_CPU_LORAS];
    let mut server = BenchProcess::start_simulator_with(programs, port, &flags)?;
    let mount = MountedConfigMap::create(&folder.join("restart"), &adapters_yaml(port, RESTART_ADAPTERS))?;
    let mut sidecar = SidecarProcess::start_file_mode("sidecar-restart", image, &mount.file(), &[], folder)?;
    // The first load, then the probes one by one; the other loads run concurrently with the probes.
    let ideal = CALL_LATENCY * (1 + u32::try_from(RESTART_ADAPTERS)?);
    let mut worst = Duration::ZERO;
    for round in 0..RESTARTS {
        let before = sidecar.wait_until_verified(RESTART_ADAPTERS)?;
        process::interruptible_sleep(Duration::from_millis(1000 + 70 * u64::try_from(round)?))?;
        server.kill();
        wait_for("the server to be down", POLL_INTERVAL, || Ok((!sidecar.is_server_reachable()?).then_some(())))?;
        process::interruptible_sleep(Duration::from_millis(500))?;
        server = BenchProcess::start_simulator_with(programs, port, &flags)?;
        let start = clock::now();
        let after = sidecar.wait_until_verified(RESTART_ADAPTERS)?;
        worst = worst.max(start.elapsed().saturating_sub(ideal));
        ensure!(before != after, "the server was not restarted");
    }
    let what = "from a restarted server to 20 adapters verified, without calls, worst of 5";
    Ok(Measurement::new("sidecar", what, worst.as_secs_f64() * 1e3, "ms").at_most(1000.0))
}

/// Measures a thousand adapters that are added together, relative to the time that the server itself needs.
fn bench_many_adapters(programs: &Programs, image: &Path, folder: &Path) -> Result<Vec<Measurement>> {
    let millis = CALL_LATENCY.as_millis().to_string();
    let parallel = PARALLEL_LOADS.to_string();
    let flags = ["--load-millis", &millis, "--parallel-loads", &parallel, "--max-cpu-loras", MAX_CPU_LORAS];
    let server = BenchProcess::start_simulator_with(programs, 0, &flags)?;
    let port = server.address.port();
    let mount = MountedConfigMap::create(&folder.join("many"), &adapters_yaml(port, 0))?;
    let flags = ["--probe", "false", "--max-parallel", &parallel];
    let mut sidecar = SidecarProcess::start_file_mode("sidecar-many", image, &mount.file(), &flags, folder)?;
    sidecar.wait_until_verified(0)?;
    let before = count_model_lists(&server)?;
    let start = clock::now();
    mount.swap(&adapters_yaml(port, MANY_ADAPTERS))?;
    wait_for("the last of 1,000 loads", CALL_LATENCY, || Ok((count_loads(&server)? >= MANY_ADAPTERS).then_some(())))?;
    sidecar.wait_until_verified(MANY_ADAPTERS)?;
    let took = start.elapsed();
    let lists = count_model_lists(&server)? - before;
    let ideal = CALL_LATENCY * u32::try_from(MANY_ADAPTERS)? / PARALLEL_LOADS;
    let ratio = took.as_secs_f64() / ideal.as_secs_f64();
    let passes = took.as_secs() / RECONCILE_INTERVAL.as_secs() + 1;
    Ok(vec![
        Measurement::new("sidecar", "1,000 adapters, time relative to the ideal", ratio, "x").at_most(1.2),
        Measurement::new("sidecar", "model lists read meanwhile, one per pass", to_f64(lists), "")
            .at_most(to_f64(passes)),
    ])
}

/// Returns the number of adapters that the server was asked to load.
fn count_loads(server: &BenchProcess) -> Result<usize> {
    let counters = get_json(server.address, "/sim/requests")?;
    Ok(counters["loads"].as_object().map_or(0, serde_json::Map::len))
}

/// Returns the number of requests for the server's model list.
fn count_model_lists(server: &BenchProcess) -> Result<u64> {
    let log = get_json(server.address, "/sim/log")?;
    let is_list = |entry: &&Value| entry["path"] == "/v1/models";
    Ok(u64::try_from(log.as_array().into_iter().flatten().filter(is_list).count())?)
}
