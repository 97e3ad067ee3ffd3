//! Child processes: in the foreground, or quiet with a log and a time limit. None outlives this program.
//!
//! A foreground child shares the terminal's process group: Ctrl-C reaches it directly, and this program waits for its
//! exit instead of dying first. A quiet child has a process group of its own, which is terminated as a whole on a
//! timeout or when this program is interrupted.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rollora_supervise::{ChildProcess, ExitReason};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{clock, procfs};

const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// Time between SIGTERM and SIGKILL for a quiet child.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// Interval of progress reports while a quiet child runs.
const PROGRESS_INTERVAL: Duration = Duration::from_mins(1);

/// This program was interrupted by SIGINT or SIGTERM.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Signal handlers are global to the process, so the flags are too.
static SIGNALS: LazyLock<Signals> = LazyLock::new(Signals::default);

#[derive(Default)]
struct Signals {
    interrupt: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
}

/// Makes SIGINT and SIGTERM set flags instead of ending this program.
pub(crate) fn catch_signals() -> Result<()> {
    for (signal, flag) in [(SIGINT, &SIGNALS.interrupt), (SIGTERM, &SIGNALS.terminate)] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot register a signal handler")?;
    }
    Ok(())
}

pub(crate) fn interrupted() -> bool {
    SIGNALS.interrupt.load(Ordering::Relaxed) || SIGNALS.terminate.load(Ordering::Relaxed)
}

pub(crate) fn fail_if_interrupted() -> Result<()> {
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Sleeps; returns early with an error if this program is interrupted.
pub(crate) fn interruptible_sleep(duration: Duration) -> Result<()> {
    let start = clock::now();
    while start.elapsed() < duration {
        fail_if_interrupted()?;
        thread::sleep(POLL_INTERVAL.min(duration));
    }
    Ok(())
}

/// Runs a command in the foreground, and returns its exit status.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    fail_if_interrupted()?;
    let mut child = command.spawn().with_context(|| format!("cannot start {}", format_command(command)))?;
    wait(&mut child)
}

thread_local! {
    static CPU_TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the CPU time of all commands that this thread has run to their end, including their children. Commands of
/// other threads, such as builds of tools that run at the same time, are not included. Zero without `/proc`.
pub(crate) fn cpu_time() -> Duration {
    CPU_TIME.get()
}

fn count_cpu_time(pid: u32) {
    CPU_TIME.set(CPU_TIME.get() + procfs::cpu_time_at_end(pid));
}

/// Waits for a foreground child, and forwards SIGTERM to it.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let mut forwarded = false;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        // Read its CPU time before it is reaped.
        if waitid(WaitId::Pid(Pid::from_child(child)), options).context("cannot wait for a child process")?.is_some() {
            count_cpu_time(child.id());
            return child.wait().context("cannot wait for a child process");
        }
        // The terminal sends SIGINT to the child too, but SIGTERM reaches only this program.
        if SIGNALS.terminate.load(Ordering::Relaxed) && !forwarded {
            forwarded = true;
            kill_process(Pid::from_child(child), Signal::TERM).ok();
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Like [`run`], but passes each line of standard output, with its line ending, to `each`.
pub(crate) fn run_with_lines(command: &mut Command, mut each: impl FnMut(&str) + Send) -> Result<ExitStatus> {
    fail_if_interrupted()?;
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", format_command(command)))?;
    let mut stdout = BufReader::new(child.stdout.take().context("the child process has no standard output")?);
    let (status, read) = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut bytes = Vec::new();
            while stdout.read_until(b'\n', &mut bytes)? > 0 {
                each(&String::from_utf8_lossy(&bytes));
                bytes.clear();
            }
            std::io::Result::Ok(())
        });
        (wait(&mut child), reader.join())
    });
    read.map_err(|_| anyhow!("the thread that reads the output of a child process panicked"))??;
    fail_if_interrupted()?;
    status
}

/// Runs a command that must succeed, and returns its standard output.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let mut output = String::new();
    let status = run_with_lines(command, |line| output.push_str(line))?;
    if status.success() {
        Ok(output)
    } else {
        bail!("`{}` failed with {}", format_command(command), describe_exit(status))
    }
}

/// Like [`run`], but an exit status other than success is an error.
pub(crate) fn run_ok(command: &mut Command) -> Result<()> {
    let status = run(command)?;
    fail_if_interrupted()?;
    if status.success() { Ok(()) } else { bail!("`{}` failed with {}", format_command(command), describe_exit(status)) }
}

/// Runs a command with its output in `log`, for at most `limit`. Calls `report` every minute with the time so far.
pub(crate) fn run_quiet(command: &mut Command, log: &File, limit: Duration, report: impl Fn(Duration)) -> Result<()> {
    fail_if_interrupted()?;
    let child =
        ChildProcess::start_into(&format_command(command), command, log)?.with_termination_grace(TERMINATION_GRACE);
    let start = clock::now();
    let mut last_report = Duration::ZERO;
    loop {
        if let Some(exit) = child.exit_reason() {
            count_cpu_time(child.id());
            // It needs no time to clean up any more.
            child.kill();
            return if exit == ExitReason::Exit(0) { Ok(()) } else { Err(anyhow!("the command failed with {exit}")) };
        }
        if start.elapsed() >= last_report + PROGRESS_INTERVAL {
            last_report = start.elapsed();
            report(last_report);
        }
        fail_if_interrupted()?;
        if start.elapsed() > limit {
            bail!("the command did not finish within {}", clock::format_duration(limit));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the trimmed output of a short command, or `None` if it fails.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Formats an exit status, such as `exit code 1` or `signal 9`.
pub(crate) fn describe_exit(status: ExitStatus) -> String {
    ExitReason::from(status).to_string()
}

/// Formats a command as it would be typed, with the program's file name.
pub(crate) fn format_command(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;
