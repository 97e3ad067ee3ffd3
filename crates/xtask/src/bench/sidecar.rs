//! What `rollora-sidecar` needs while nothing happens, and how fast it is when something does.
//!
//! The sidecar is the program of the image, `--profile image`. What stands around it is not measured and not optimized:
//! simulated vLLM servers, a mount swapped as a kubelet does it, a real API server. What arrived at vLLM is read from
//! the simulator's counters every millisecond, so that times are rather too long by that than too short.

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
/// A tick of `/proc` is 10 ms: with fewer seconds than these it would be as large as the goal.
const OBSERVATION_WINDOW: Duration = Duration::from_secs(30);
const UPDATES: usize = 21;
const RESTARTS: usize = 5;
const RESTART_ADAPTERS: usize = 20;
const MANY_ADAPTERS: usize = 1000;
const PARALLEL_LOADS: u32 = 4;
/// How long a load, and a token of a probe, takes where calls are not free.
const CALL_LATENCY: Duration = Duration::from_millis(20);
/// How often models are listed although nothing seems to have changed: the default of `--reconcile-trigger`.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// More than any of these holds: the simulator keeps all weights.
const MAX_CPU_LORAS: &str = "2000";

pub(super) fn run() -> Result<Vec<Measurement>> {
    let (programs, image) = build()?;
    let image = find_program(&image, "rollora-sidecar")?;
    let folder = tempfile::tempdir()?;
    let mut measures = vec![measure_program_size(image)?];
    let cluster = ProxiedApiServer::start(&programs)?;
    measures.extend(bench_idle_and_updates(&programs, image, &cluster, folder.path())?);
    drop(cluster);
    measures.push(bench_restarts(&programs, image, folder.path())?);
    measures.extend(bench_many_adapters(&programs, image, folder.path())?);
    Ok(measures)
}

/// What stands around the sidecar, and the sidecar as it comes into an image.
fn build() -> Result<(Programs, Programs)> {
    if !cfg!(target_os = "linux") {
        return Err(MissingPrerequisite("processes are measured in /proc, which only Linux has".to_owned()).into());
    }
    eprintln!("building the sidecar as its image has it; the first time that takes some minutes");
    // By itself: beside other packages it would be built with what those want of the libraries that they share.
    let image = ["--profile", "image", "-p", "rollora-sidecar-bin"];
    let image = workspace::build(&image)?;
    // As the tests are built: where they ran, this is there already.
    let around = ["--workspace", "--bin", "vllm-sim", "--bin", "control-plane"];
    Ok((workspace::build(&around)?, image))
}

fn measure_program_size(program: &Path) -> Result<Measurement> {
    let kib = std::fs::metadata(program)?.len() / 1024;
    Ok(Measurement::new("sidecar", "the program, stripped", kib_to_mib(kib), "MiB").at_most(10.0))
}

/// One sidecar of each kind beside a server with a hundred adapters: at rest, and when one more is wanted.
fn bench_idle_and_updates(
    programs: &Programs,
    image: &Path,
    cluster: &ProxiedApiServer,
    folder: &Path,
) -> Result<Vec<Measurement>> {
    let server = || BenchProcess::start_simulator_with(programs, 0, &["--max-cpu-loras", MAX_CPU_LORAS]);
    let (beside_file, beside_watch) = (server()?, server()?);
    let file = |server: &BenchProcess, count| adapters_yaml(server.address.port(), count);
    let mount = MountedConfigMap::create(&folder.join("mount"), &file(&beside_file, IDLE_ADAPTERS))?;
    cluster.create_config_map(&file(&beside_watch, IDLE_ADAPTERS))?;
    let mut in_file_mode = SidecarProcess::start_file_mode("sidecar-file", image, &mount.file(), &[], folder)?;
    let nowhere = folder.join("no-such-mount");
    let mut in_watch_mode = SidecarProcess::start_watch_mode("sidecar-watch", image, &nowhere, cluster, folder)?;
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
    let mut measures = Vec::new();
    for ((mode, sidecar, goal), before) in sidecars.into_iter().zip(before) {
        let used = procfs::cpu_time(sidecar.pid())?.saturating_sub(before);
        let percent = used.as_secs_f64() * 100.0 / OBSERVATION_WINDOW.as_secs_f64();
        let resident = kib_to_mib(procfs::resident_memory_kib(sidecar.pid())?);
        let what = format!("resident memory, 100 adapters, {mode} mode");
        measures.push(Measurement::new("sidecar", &what, resident, "MiB").at_most(goal));
        let what = format!("processor time at rest, {mode} mode");
        measures.push(Measurement::new("sidecar", &what, percent, "% of a core").at_most(0.2));
    }
    let [swapped, patched] = [
        measure_updates(&beside_file, &mut in_file_mode, |count| mount.swap(&file(&beside_file, count)))?,
        measure_updates(&beside_watch, &mut in_watch_mode, |count| {
            cluster.update_config_map(&file(&beside_watch, count))
        })?,
    ];
    let what = "from a swap of the mount to the load at vLLM, median";
    measures.push(Measurement::new("sidecar", what, swapped, "ms").at_most(150.0));
    let what = "from a PATCH of the ConfigMap to the load at vLLM, median";
    measures.push(Measurement::new("sidecar", what, patched, "ms").at_most(50.0));
    Ok(measures)
}

/// The median time from the beginning of an update, which wants one adapter more, to its load at the server.
fn measure_updates(
    server: &BenchProcess,
    sidecar: &mut SidecarProcess,
    update: impl Fn(usize) -> Result<()>,
) -> Result<f64> {
    let mut times = Vec::new();
    for count in IDLE_ADAPTERS + 1..=IDLE_ADAPTERS + UPDATES {
        let start = clock::now();
        update(count)?;
        wait_for("the load of one more adapter", POLL_INTERVAL, || Ok((count_loads(server)? >= count).then_some(())))?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        sidecar.wait_until_verified(count)?;
        // In no step with the sidecar's looks.
        process::interruptible_sleep(Duration::from_millis(150 + 7 * u64::try_from(count % 30)?))?;
    }
    Ok(median(times))
}

/// What it takes beside the calls themselves until a restarted server has everything again; the worst of some times.
fn bench_restarts(programs: &Programs, image: &Path, folder: &Path) -> Result<Measurement> {
    let port = free_address()?.port();
    let millis = CALL_LATENCY.as_millis().to_string();
    let flags = ["--load-millis", &millis, "--token-millis", &millis, "--max-cpu-loras", MAX_CPU_LORAS];
    let mut server = BenchProcess::start_simulator_with(programs, port, &flags)?;
    let mount = MountedConfigMap::create(&folder.join("restart"), &adapters_yaml(port, RESTART_ADAPTERS))?;
    let mut sidecar = SidecarProcess::start_file_mode("sidecar-restart", image, &mount.file(), &[], folder)?;
    // The first load, and then the probes one by one, beside which the other loads are made.
    let ideal = CALL_LATENCY * (1 + u32::try_from(RESTART_ADAPTERS)?);
    let mut worst = Duration::ZERO;
    for round in 0..RESTARTS {
        let before = sidecar.wait_until_verified(RESTART_ADAPTERS)?;
        process::interruptible_sleep(Duration::from_millis(1000 + 70 * u64::try_from(round)?))?;
        server.kill();
        wait_for("the server's end", POLL_INTERVAL, || Ok((!sidecar.is_server_reachable()?).then_some(())))?;
        process::interruptible_sleep(Duration::from_millis(500))?;
        server = BenchProcess::start_simulator_with(programs, port, &flags)?;
        let start = clock::now();
        let after = sidecar.wait_until_verified(RESTART_ADAPTERS)?;
        worst = worst.max(start.elapsed().saturating_sub(ideal));
        ensure!(before != after, "the server was not started again");
    }
    let what = "from a restarted server to 20 adapters verified, beside the calls, worst of 5";
    Ok(Measurement::new("sidecar", what, worst.as_secs_f64() * 1e3, "ms").at_most(1000.0))
}

/// A thousand adapters at once, beside what the server would need for them with all its places taken.
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
        Measurement::new("sidecar", "1,000 adapters, time to the ideal", ratio, "x").at_most(1.2),
        Measurement::new("sidecar", "lists of models read meanwhile, one a pass", to_f64(lists), "")
            .at_most(to_f64(passes)),
    ])
}

/// How many adapters the server was asked to load.
fn count_loads(server: &BenchProcess) -> Result<usize> {
    let counters = get_json(server.address, "/sim/requests")?;
    Ok(counters["loads"].as_object().map_or(0, serde_json::Map::len))
}

/// How often the server was asked for its models.
fn count_model_lists(server: &BenchProcess) -> Result<u64> {
    let log = get_json(server.address, "/sim/log")?;
    let is_list = |entry: &&Value| entry["path"] == "/v1/models";
    Ok(u64::try_from(log.as_array().into_iter().flatten().filter(is_list).count())?)
}
