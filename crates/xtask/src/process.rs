//! Child processes: seen by the user, or quiet with a log and a time limit; none outlives this program's wish.
//!
//! A child that the user sees shares the terminal's process group: Ctrl-C reaches it directly, and this program waits
//! for its end instead of dying before it. A quiet child gets a group of its own, which is ended as a whole when its
//! time is over or when this program is told to end.

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
/// What a quiet child has between the request to end and the end.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// How often somebody who waits for a quiet child hears of it.
const PROGRESS_INTERVAL: Duration = Duration::from_mins(1);

/// The user, or whoever started this program, wants it to end.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Signals are a matter of the whole process, so their flags are too.
static SIGNALS: LazyLock<Signals> = LazyLock::new(Signals::default);

#[derive(Default)]
struct Signals {
    interrupt: Arc<AtomicBool>,
    terminate: Arc<AtomicBool>,
}

/// From now on Ctrl-C and a request to end are flags, not this program's end.
pub(crate) fn catch_signals() -> Result<()> {
    for (signal, flag) in [(SIGINT, &SIGNALS.interrupt), (SIGTERM, &SIGNALS.terminate)] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot listen for signals")?;
    }
    Ok(())
}

pub(crate) fn interrupted() -> bool {
    SIGNALS.interrupt.load(Ordering::Relaxed) || SIGNALS.terminate.load(Ordering::Relaxed)
}

pub(crate) fn fail_if_interrupted() -> Result<()> {
    if interrupted() { Err(Interrupted.into()) } else { Ok(()) }
}

/// Sleeps, but not longer than until the user wants this program to end.
pub(crate) fn interruptible_sleep(duration: Duration) -> Result<()> {
    let start = clock::now();
    while start.elapsed() < duration {
        fail_if_interrupted()?;
        thread::sleep(POLL_INTERVAL.min(duration));
    }
    Ok(())
}

/// Runs a command that the user sees, to its end, and gives its exit status.
pub(crate) fn run(command: &mut Command) -> Result<ExitStatus> {
    fail_if_interrupted()?;
    let mut child = command.spawn().with_context(|| format!("cannot start {}", format_command(command)))?;
    wait(&mut child)
}

thread_local! {
    static CPU_TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// The processor time of all commands that this thread has run to their end, with all that those started. Commands of
/// other threads, such as the builds of tools beside a test run, are not in it. Zero where the system does not tell.
pub(crate) fn cpu_time() -> Duration {
    CPU_TIME.get()
}

fn count_cpu_time(ended: u32) {
    CPU_TIME.set(CPU_TIME.get() + procfs::cpu_time_at_end(ended));
}

/// Waits for a child that shares the terminal, and passes a request to end on to it.
pub(crate) fn wait(child: &mut Child) -> Result<ExitStatus> {
    let mut told = false;
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        // It is looked at before it is waited for: what it used is known until then.
        if waitid(WaitId::Pid(Pid::from_child(child)), ended).context("cannot wait for a child process")?.is_some() {
            count_cpu_time(child.id());
            return child.wait().context("cannot wait for a child process");
        }
        // The terminal has told the child of a Ctrl-C already; of a SIGTERM only this program knows.
        if SIGNALS.terminate.load(Ordering::Relaxed) && !told {
            told = true;
            kill_process(Pid::from_child(child), Signal::TERM).ok();
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Like [`run`], but hands each line of standard output, its end included, to `each` as it comes.
pub(crate) fn run_with_lines(command: &mut Command, mut each: impl FnMut(&str) + Send) -> Result<ExitStatus> {
    fail_if_interrupted()?;
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", format_command(command)))?;
    let mut stdout = BufReader::new(child.stdout.take().context("a child process has no output")?);
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
    read.map_err(|_| anyhow!("reading a child's output ended in a panic"))??;
    fail_if_interrupted()?;
    status
}

/// What a command that has to succeed writes to its standard output.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let mut output = String::new();
    let status = run_with_lines(command, |line| output.push_str(line))?;
    if status.success() {
        Ok(output)
    } else {
        bail!("`{}` ended with {}", format_command(command), describe_exit(status))
    }
}

/// Like [`run`], for commands whose only good end is success.
pub(crate) fn run_ok(command: &mut Command) -> Result<()> {
    let status = run(command)?;
    fail_if_interrupted()?;
    if status.success() { Ok(()) } else { bail!("`{}` ended with {}", format_command(command), describe_exit(status)) }
}

/// Runs a command with its output in `log`, at most `limit` long. Now and then `still` hears how long it runs already.
pub(crate) fn run_quiet(command: &mut Command, log: &File, limit: Duration, still: impl Fn(Duration)) -> Result<()> {
    fail_if_interrupted()?;
    let child =
        ChildProcess::start_into(&format_command(command), command, log)?.with_termination_grace(TERMINATION_GRACE);
    let start = clock::now();
    let mut told = Duration::ZERO;
    loop {
        if let Some(ending) = child.exit_reason() {
            count_cpu_time(child.id());
            return if ending == ExitReason::Exit(0) { Ok(()) } else { Err(anyhow!("it ended with {ending}")) };
        }
        if start.elapsed() >= told + PROGRESS_INTERVAL {
            told = start.elapsed();
            still(told);
        }
        fail_if_interrupted()?;
        if start.elapsed() > limit {
            bail!("it was not done after {}", clock::format_duration(limit));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// The output of a short command, `None` where it cannot be had.
pub(crate) fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// How a process ended, in words.
pub(crate) fn describe_exit(status: ExitStatus) -> String {
    ExitReason::from(status).to_string()
}

/// A command as one would type it.
pub(crate) fn format_command(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words: Vec<_> = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests;
