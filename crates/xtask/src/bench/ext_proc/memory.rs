//! The most memory that `rollora-ext-proc` has while many long bodies pass at the same time. Each number is of a process
//! of its own.

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
/// For an answer, while everybody else's bodies pass too.
const RESPONSE_TIMEOUT: Duration = Duration::from_mins(2);
/// Threads do nothing but send and wait.
const STACK_BYTES: usize = 128 * 1024;

/// Many requests of 1 MiB at the same time may take so much.
const MANY_REQUESTS: usize = 1000;
const GOAL_MIB: f64 = 64.0;
/// A few requests at the same time, of 1 MiB and of this many.
const FEW_REQUESTS: usize = 16;
const LARGE_BODY_MIB: usize = 64;
/// Flat means no more than this.
const MAX_GROWTH: f64 = 1.5;

pub(super) fn run(stage: &mut ExtProcFixture) -> Result<Vec<Measurement>> {
    let idle = peak_memory_mib(stage, 0, 1)?;
    let many = peak_memory_mib(stage, MANY_REQUESTS, 1)?;
    let few = peak_memory_mib(stage, FEW_REQUESTS, 1)?;
    let long = peak_memory_mib(stage, FEW_REQUESTS, LARGE_BODY_MIB)?;
    Ok(vec![
        measurement("most memory before any request", idle, "MiB"),
        measurement("most memory, 1,000 requests of 1 MiB at a time", many, "MiB").at_most(GOAL_MIB),
        measurement("most memory, 16 requests of 1 MiB at a time", few, "MiB"),
        measurement("most memory, 16 requests of 64 MiB at a time", long, "MiB"),
        measurement("most memory, 64 MiB to 1 MiB", long / few, "x").at_most(MAX_GROWTH),
    ])
}

/// The most memory of a fresh process, in MiB, that has had so many requests of so many MiB at the same time: all of
/// them are half there before the first one ends.
fn peak_memory_mib(stage: &mut ExtProcFixture, requests: usize, mib: usize) -> Result<f64> {
    stage.restart_ext_proc()?;
    let pid = stage.pid(Contender::Rollora).context("no rollora-ext-proc")?;
    let address = stage.address(Contender::Rollora, true)?;
    let request = contender_request(Contender::Rollora, address, mib * MIB);
    let half = request.len() / 2;
    let (begin, rest) = request.split_at_checked(half).context("a request without a half")?;
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
            // Also where it failed: the others wait for it.
            all_half.wait();
            let mut stream = connected.context("half of a request")?;
            stream.write_all(rest).context("the rest of a request")?;
            let answer = http_response::read(&mut BufReader::new(stream)).context("no answer")?;
            if answer.status == 200 { Ok(()) } else { bail!("answered {}", answer.status) }
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
