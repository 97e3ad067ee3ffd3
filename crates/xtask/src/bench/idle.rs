//! Memory and CPU time of an idle `rollora local` with three servers.

use std::time::Duration;

use anyhow::Result;

use super::processes::{BenchProcess, build_programs};
use super::{Measurement, kib_to_mib};
use crate::process;
use crate::procfs;

const SERVERS: usize = 3;
/// Time for the work that follows a start: first polls of servers, first writes of state.
const SETTLE_TIME: Duration = Duration::from_secs(5);
const OBSERVATION_WINDOW: Duration = Duration::from_secs(10);
const GOAL_MIB: f64 = 15.0;

pub(super) fn run() -> Result<Vec<Measurement>> {
    let programs = build_programs()?;
    let folder = tempfile::tempdir()?;
    let vllm = (0..SERVERS).map(|_| BenchProcess::start_simulator(&programs)).collect::<Result<Vec<_>>>()?;
    let rollora = BenchProcess::start_rollora_local(&programs, &vllm, folder.path())?;
    process::interruptible_sleep(SETTLE_TIME)?;
    let before = procfs::cpu_time(rollora.pid())?;
    process::interruptible_sleep(OBSERVATION_WINDOW)?;
    let used = procfs::cpu_time(rollora.pid())?.saturating_sub(before);
    let resident = procfs::resident_memory_kib(rollora.pid())?;
    let per_second = used.as_secs_f64() * 1e3 / OBSERVATION_WINDOW.as_secs_f64();
    Ok(vec![
        Measurement::new("idle", "resident memory, three servers", kib_to_mib(resident), "MiB").at_most(GOAL_MIB),
        Measurement::new("idle", "CPU time, three servers", per_second, "ms/s"),
    ])
}
