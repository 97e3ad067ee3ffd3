//! What `rollora local` needs while nothing happens, with three servers.

use std::time::Duration;

use anyhow::Result;

use super::servers::{Server, build};
use super::{Measure, mib};
use crate::proc;
use crate::process;

const SERVERS: usize = 3;
/// What a start leaves to be done: first looks at servers, first writes of state.
const SETTLE: Duration = Duration::from_secs(5);
const WATCH: Duration = Duration::from_secs(10);
const GOAL_MIB: f64 = 15.0;

pub(super) fn run() -> Result<Vec<Measure>> {
    let programs = build()?;
    let folder = tempfile::tempdir()?;
    let vllm = (0..SERVERS).map(|_| Server::simulator(&programs)).collect::<Result<Vec<_>>>()?;
    let rollora = Server::rollora(&programs, &vllm, folder.path())?;
    process::pause(SETTLE)?;
    let before = proc::cpu_time(rollora.pid())?;
    process::pause(WATCH)?;
    let used = proc::cpu_time(rollora.pid())?.saturating_sub(before);
    let resident = proc::resident_kib(rollora.pid())?;
    let per_second = used.as_secs_f64() * 1e3 / WATCH.as_secs_f64();
    Ok(vec![
        Measure::new("idle", "resident memory, three servers", mib(resident), "MiB").at_most(GOAL_MIB),
        Measure::new("idle", "processor time, three servers", per_second, "ms/s"),
    ])
}
