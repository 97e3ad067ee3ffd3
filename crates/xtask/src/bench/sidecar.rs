//! What `rollora-sidecar` needs while nothing happens, and how fast it is when something does.
//!
//! The sidecar is the program of the image, `--profile image`. What stands around it is not measured and not optimized:
//! simulated vLLM servers, a mount swapped as a kubelet does it, a real API server. What arrived at vLLM is read from
//! the simulator's counters every millisecond, so that times are rather too long by that than too short.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::servers::{Server, free_address};
use super::{Measure, Unavailable, count, median, mib};
use crate::proc;
use crate::workspace::{self, Programs, find};
use crate::{clock, process};

mod bed;

use bed::{Cluster, Mount, Sidecar, adapters_file, get, until};

const IDLE_ADAPTERS: usize = 100;
const SETTLE: Duration = Duration::from_secs(5);
/// A tick of `/proc` is 10 ms: with fewer seconds than these it would be as large as the goal.
const WATCH: Duration = Duration::from_secs(30);
const UPDATES: usize = 21;
const RESTARTS: usize = 5;
const RESTART_ADAPTERS: usize = 20;
const MANY: usize = 1000;
const PARALLEL: u32 = 4;
/// How long a load, and a token of a probe, takes where calls are not free.
const CALL: Duration = Duration::from_millis(20);
/// How often models are listed although nothing seems to have changed: the default of `--reconcile-trigger`.
const PASS: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(1);
/// More than any of these holds: the simulator keeps all weights.
const WEIGHTS: &str = "2000";

pub(super) fn run() -> Result<Vec<Measure>> {
    let (programs, image) = build()?;
    let image = find(&image, "rollora-sidecar")?;
    let folder = tempfile::tempdir()?;
    let mut measures = vec![size(image)?];
    let cluster = Cluster::start(&programs)?;
    measures.extend(with_some(&programs, image, &cluster, folder.path())?);
    drop(cluster);
    measures.push(restarts(&programs, image, folder.path())?);
    measures.extend(many(&programs, image, folder.path())?);
    Ok(measures)
}

/// What stands around the sidecar, and the sidecar as it comes into an image.
fn build() -> Result<(Programs, Programs)> {
    if !cfg!(target_os = "linux") {
        return Err(Unavailable("processes are measured in /proc, which only Linux has".to_owned()).into());
    }
    eprintln!("building the sidecar as its image has it; the first time that takes some minutes");
    // By itself: beside other packages it would be built with what those want of the libraries that they share.
    let image = ["--profile", "image", "-p", "rollora-sidecar-bin"];
    let image = workspace::build(&image)?;
    // As the tests are built: where they ran, this is there already.
    let around = ["--workspace", "--bin", "vllm-sim", "--bin", "control-plane"];
    Ok((workspace::build(&around)?, image))
}

fn size(program: &Path) -> Result<Measure> {
    let kib = std::fs::metadata(program)?.len() / 1024;
    Ok(Measure::new("sidecar", "the program, stripped", mib(kib), "MiB").at_most(10.0))
}

/// One sidecar of each kind beside a server with a hundred adapters: at rest, and when one more is wanted.
fn with_some(programs: &Programs, image: &Path, cluster: &Cluster, folder: &Path) -> Result<Vec<Measure>> {
    let server = || Server::simulator_with(programs, 0, &["--max-cpu-loras", WEIGHTS]);
    let (beside_file, beside_watch) = (server()?, server()?);
    let file = |server: &Server, count| adapters_file(server.address.port(), count);
    let mount = Mount::make(&folder.join("mount"), &file(&beside_file, IDLE_ADAPTERS))?;
    cluster.create(&file(&beside_watch, IDLE_ADAPTERS))?;
    let mut in_file_mode = Sidecar::start("sidecar-file", image, &mount.file(), &[], folder)?;
    let nowhere = folder.join("no-such-mount");
    let mut in_watch_mode = Sidecar::watching("sidecar-watch", image, &nowhere, cluster, folder)?;
    for sidecar in [&mut in_file_mode, &mut in_watch_mode] {
        sidecar.wait_until_all_are_verified(IDLE_ADAPTERS)?;
    }
    process::pause(SETTLE)?;
    let sidecars = [("file", &in_file_mode, 8.0), ("watch", &in_watch_mode, 14.0)];
    let mut before = Vec::new();
    for (_, sidecar, _) in sidecars {
        before.push(proc::cpu_time(sidecar.pid())?);
    }
    process::pause(WATCH)?;
    let mut measures = Vec::new();
    for ((mode, sidecar, goal), before) in sidecars.into_iter().zip(before) {
        let used = proc::cpu_time(sidecar.pid())?.saturating_sub(before);
        let percent = used.as_secs_f64() * 100.0 / WATCH.as_secs_f64();
        let resident = mib(proc::resident_kib(sidecar.pid())?);
        let what = format!("resident memory, 100 adapters, {mode} mode");
        measures.push(Measure::new("sidecar", &what, resident, "MiB").at_most(goal));
        let what = format!("processor time at rest, {mode} mode");
        measures.push(Measure::new("sidecar", &what, percent, "% of a core").at_most(0.2));
    }
    let [swapped, patched] = [
        updates(&beside_file, &mut in_file_mode, |count| mount.swap(&file(&beside_file, count)))?,
        updates(&beside_watch, &mut in_watch_mode, |count| cluster.update(&file(&beside_watch, count)))?,
    ];
    let what = "from a swap of the mount to the load at vLLM, median";
    measures.push(Measure::new("sidecar", what, swapped, "ms").at_most(150.0));
    let what = "from a PATCH of the ConfigMap to the load at vLLM, median";
    measures.push(Measure::new("sidecar", what, patched, "ms").at_most(50.0));
    Ok(measures)
}

/// The median time from the beginning of an update, which wants one adapter more, to its load at the server.
fn updates(server: &Server, sidecar: &mut Sidecar, update: impl Fn(usize) -> Result<()>) -> Result<f64> {
    let mut times = Vec::new();
    for count in IDLE_ADAPTERS + 1..=IDLE_ADAPTERS + UPDATES {
        let start = clock::now();
        update(count)?;
        until("the load of one more adapter", LOOK, || Ok((loads(server)? >= count).then_some(())))?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        sidecar.wait_until_all_are_verified(count)?;
        // In no step with the sidecar's looks.
        process::pause(Duration::from_millis(150 + 7 * u64::try_from(count % 30)?))?;
    }
    Ok(median(times))
}

/// What it takes beside the calls themselves until a restarted server has everything again; the worst of some times.
fn restarts(programs: &Programs, image: &Path, folder: &Path) -> Result<Measure> {
    let port = free_address()?.port();
    let millis = CALL.as_millis().to_string();
    let flags = ["--load-millis", &millis, "--token-millis", &millis, "--max-cpu-loras", WEIGHTS];
    let mut server = Server::simulator_with(programs, port, &flags)?;
    let mount = Mount::make(&folder.join("restart"), &adapters_file(port, RESTART_ADAPTERS))?;
    let mut sidecar = Sidecar::start("sidecar-restart", image, &mount.file(), &[], folder)?;
    // The first load, and then the probes one by one, beside which the other loads are made.
    let ideal = CALL * (1 + u32::try_from(RESTART_ADAPTERS)?);
    let mut worst = Duration::ZERO;
    for round in 0..RESTARTS {
        let before = sidecar.wait_until_all_are_verified(RESTART_ADAPTERS)?;
        process::pause(Duration::from_millis(1000 + 70 * u64::try_from(round)?))?;
        server.kill();
        until("the server's end", LOOK, || Ok((!sidecar.sees_its_server()?).then_some(())))?;
        process::pause(Duration::from_millis(500))?;
        server = Server::simulator_with(programs, port, &flags)?;
        let start = clock::now();
        let after = sidecar.wait_until_all_are_verified(RESTART_ADAPTERS)?;
        worst = worst.max(start.elapsed().saturating_sub(ideal));
        ensure!(before != after, "the server was not started again");
    }
    let what = "from a restarted server to 20 adapters verified, beside the calls, worst of 5";
    Ok(Measure::new("sidecar", what, worst.as_secs_f64() * 1e3, "ms").at_most(1000.0))
}

/// A thousand adapters at once, beside what the server would need for them with all its places taken.
fn many(programs: &Programs, image: &Path, folder: &Path) -> Result<Vec<Measure>> {
    let millis = CALL.as_millis().to_string();
    let parallel = PARALLEL.to_string();
    let flags = ["--load-millis", &millis, "--parallel-loads", &parallel, "--max-cpu-loras", WEIGHTS];
    let server = Server::simulator_with(programs, 0, &flags)?;
    let port = server.address.port();
    let mount = Mount::make(&folder.join("many"), &adapters_file(port, 0))?;
    let flags = ["--probe", "false", "--max-parallel", &parallel];
    let mut sidecar = Sidecar::start("sidecar-many", image, &mount.file(), &flags, folder)?;
    sidecar.wait_until_all_are_verified(0)?;
    let before = lists(&server)?;
    let start = clock::now();
    mount.swap(&adapters_file(port, MANY))?;
    until("the last of 1,000 loads", CALL, || Ok((loads(&server)? >= MANY).then_some(())))?;
    sidecar.wait_until_all_are_verified(MANY)?;
    let took = start.elapsed();
    let lists = lists(&server)? - before;
    let ideal = CALL * u32::try_from(MANY)? / PARALLEL;
    let ratio = took.as_secs_f64() / ideal.as_secs_f64();
    let passes = took.as_secs() / PASS.as_secs() + 1;
    Ok(vec![
        Measure::new("sidecar", "1,000 adapters, time to the ideal", ratio, "x").at_most(1.2),
        Measure::new("sidecar", "lists of models read meanwhile, one a pass", count(lists), "").at_most(count(passes)),
    ])
}

/// How many adapters the server was asked to load.
fn loads(server: &Server) -> Result<usize> {
    let counters = get(server.address, "/sim/requests")?;
    Ok(counters["loads"].as_object().map_or(0, serde_json::Map::len))
}

/// How often the server was asked for its models.
fn lists(server: &Server) -> Result<u64> {
    let log = get(server.address, "/sim/log")?;
    let is_list = |entry: &&Value| entry["path"] == "/v1/models";
    Ok(u64::try_from(log.as_array().into_iter().flatten().filter(is_list).count())?)
}
