//! Peak memory of `rollora-ext-proc` while many long bodies pass concurrently. Each measurement uses a fresh process.

use std::io::{BufReader, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::super::{Measurement, http_response};
use super::fixture::{Contender, ExtProcFixture, contender_request};
use super::measurement;
use crate::procfs;

const MIB: usize = 1024 * 1024;
/// Time limit of a response, while the bodies of all other requests pass too.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(2);
/// Small stacks suffice: the threads only send and wait.
const STACK_BYTES: usize = 128 * 1024;

/// Number of concurrent requests of 1 MiB, with the limit of memory in MiB.
const MANY_REQUESTS: usize = 1000;
const GOAL_MIB: f64 = 64.0;
/// Number of concurrent requests whose size is varied: 1 MiB and this many.
const FEW_REQUESTS: usize = 16;
const LARGE_BODY_MIB: usize = 64;
/// Maximum ratio that still counts as constant memory.
const MAX_GROWTH: f64 = 1.5;

pub(super) fn run(fixture: &mut ExtProcFixture) -> Result<Vec<Measurement>> {
    let idle = peak_memory_mib(fixture, 0, 1)?;
    let many = peak_memory_mib(fixture, MANY_REQUESTS, 1)?;
    let few = peak_memory_mib(fixture, FEW_REQUESTS, 1)?;
    let long = peak_memory_mib(fixture, FEW_REQUESTS, LARGE_BODY_MIB)?;
    Ok(vec![
        measurement("peak memory before any request", idle, "MiB"),
        measurement("peak memory, 1,000 concurrent requests of 1 MiB", many, "MiB").at_most(GOAL_MIB),
        measurement("peak memory, 16 concurrent requests of 1 MiB", few, "MiB"),
        measurement("peak memory, 16 concurrent requests of 64 MiB", long, "MiB"),
        measurement("peak memory, 64 MiB to 1 MiB", long / few, "x").at_most(MAX_GROWTH),
    ])
}

/// Returns the peak memory in MiB of a fresh process with this many concurrent requests of `mib` MiB: half of each
/// request is sent before the first one completes.
fn peak_memory_mib(fixture: &mut ExtProcFixture, requests: usize, mib: usize) -> Result<f64> {
    fixture.restart_ext_proc()?;
    let pid = fixture.pid(Contender::Rollora).context("rollora-ext-proc is not running")?;
    let address = fixture.address(Contender::Rollora, true)?;
    let request = contender_request(Contender::Rollora, address, mib * MIB);
    let half = request.len() / 2;
    let (begin, rest) = request.split_at_checked(half).context("the request is too short to be split")?;
    let all_half = Arc::new(Barrier::new(requests));
    thread::scope(|scope| {
        let send = || -> Result<()> {
            let connect = || -> Result<TcpStream> {
                let mut stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
                stream.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
                stream.write_all(begin)?;
                Ok(stream)
            };
            let connected = connect();
            // Wait even after a failure, because the other threads wait for this one.
            all_half.wait();
            let mut stream = connected.context("cannot send the first half of a request")?;
            stream.write_all(rest).context("cannot send the second half of a request")?;
            let response = http_response::read(&mut BufReader::new(stream)).context("no response")?;
            if response.status == 200 { Ok(()) } else { bail!("the response has status {}", response.status) }
        };
        let threads: Vec<_> = (0..requests)
            .map(|_| thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, send))
            .collect::<Result<_, _>>()?;
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^52")]
    let peak = procfs::peak_memory_kib(pid)? as f64 / 1024.0;
    Ok(peak)
}
