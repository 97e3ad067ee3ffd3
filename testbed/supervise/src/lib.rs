//! Child processes: each in a group of its own, with its output in a file, and ended as a group when the value is
//! dropped, when the test panics, and when this process is killed. Only what was started here is ended, by its id.
//!
//! The testbed and `cargo xtask bench` start everything with it. It has no runtime: what waits in a task polls
//! [`Process::ended`].

mod guard;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};
use std::{
    fmt,
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// What the helpers of a process that ended by itself have before they are ended too.
const HELPER_CLEANUP_TIME: Duration = Duration::from_secs(1);

/// A running child, or one that ended by itself and was not dropped yet.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    child: Child,
    group: Pid,
    log: PathBuf,
    /// How long it may take to end when it is dropped.
    termination_grace: Duration,
}

impl ChildProcess {
    /// Starts `command`, with its output appended to `NAME.log` in the folder `logs`.
    ///
    /// # Errors
    ///
    /// The log cannot be opened, the program cannot be started, or the guard that ends it cannot.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Self::spawn(name, &mut command, log)
    }

    /// Starts `command` with its output in `output`, which stays the caller's; [`Self::log`] has nothing of it.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or the guard that ends it cannot.
    pub fn start_into(name: &str, command: &mut Command, output: &File) -> Result<Self> {
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
        Self::spawn(name, command, PathBuf::new())
    }

    /// Starts `command` with pipes as its standard input and output; errors go where those of this process go. It has no
    /// log.
    ///
    /// # Errors
    ///
    /// The program cannot be started, or the guard that ends it cannot.
    pub fn start_with_pipes(name: &str, mut command: Command) -> Result<(Self, ChildStdin, ChildStdout)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::spawn(name, &mut command, PathBuf::new())?;
        let pipes = process.child.stdin.take().zip(process.child.stdout.take());
        let (stdin, stdout) = pipes.with_context(|| format!("{name} has no pipes"))?;
        Ok((process, stdin, stdout))
    }

    fn spawn(name: &str, command: &mut Command, log: PathBuf) -> Result<Self> {
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let group = Pid::from_child(&child);
        let process = Self { name: name.to_owned(), child, group, log, termination_grace: Duration::ZERO };
        guard::register(process.child.id())?;
        Ok(process)
    }

    /// What it was called at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id, which is also that of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, in words; none while it runs. Its id stays its own.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(self.group), options).ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitReason::Exit(code),
            (None, signal) => ExitReason::Signal(signal.unwrap_or_default()),
        })
    }

    /// Asks it alone to end (SIGTERM), as a kubelet does; what it started hears nothing.
    pub fn send_sigterm(&self) {
        // An error means that it has ended.
        kill_process(self.group, Signal::TERM).ok();
    }

    /// Ends it and everything it started, without asking (SIGKILL).
    pub fn kill(mut self) {
        self.termination_grace = Duration::ZERO;
    }

    /// When it is dropped it is asked first (SIGTERM), and has this long to leave nothing behind on the machine.
    #[must_use]
    pub fn with_termination_grace(mut self, farewell: Duration) -> Self {
        self.termination_grace = farewell;
        self
    }

    /// Sends a signal to it and everything it started.
    pub fn signal(&self, signal: Signal) {
        // An error means that nobody is left in the group.
        kill_process_group(self.group, signal).ok();
    }

    /// The end of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }

    /// All of its output.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if !self.termination_grace.is_zero() {
            self.terminate_gracefully();
        }
        // Until it is waited for, its id cannot become anybody else's.
        self.signal(Signal::KILL);
        guard::unregister(self.child.id());
        drop(self.child.wait());
    }
}

impl ChildProcess {
    fn terminate_gracefully(&self) {
        let start = now();
        self.send_sigterm();
        while start.elapsed() < self.termination_grace {
            if self.exit_reason().is_some() {
                // Helpers that clean up behind it see its end only now.
                std::thread::sleep(HELPER_CLEANUP_TIME);
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it waits in real time for other processes")]
fn now() -> Instant {
    Instant::now()
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for ExitReason {
    fn from(status: ExitStatus) -> Self {
        // One of the two is there: a process that was waited for has ended.
        status.code().map_or_else(|| Self::Signal(status.signal().unwrap_or_default()), Self::Exit)
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// The last lines of a file, each with a mark before it.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<_> = text.lines().map(|line| format!("  | {line}\n")).collect();
    all[all.len().saturating_sub(lines)..].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    fn exists(id: i32) -> bool {
        Pid::from_raw(id).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }

    fn wait_until(what: impl Fn() -> bool) {
        let start = now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(10), "waited in vain");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_a_child_started_ends_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let process = ChildProcess::start("parent", shell("sleep 100 & echo $!; wait"), folder.path()).unwrap();
        wait_until(|| process.log().ends_with('\n'));
        let grandchild: i32 = process.log().trim().parse().unwrap();
        assert!(exists(grandchild));
        process.kill();
        // A zombie answers too, until whoever adopted it has looked.
        wait_until(|| !exists(grandchild));
    }

    #[test]
    fn who_has_a_farewell_may_clean_up_and_who_has_not_may_not() {
        for (farewell, cleaned) in [(Duration::from_secs(10), true), (Duration::ZERO, false)] {
            let folder = tempfile::tempdir().unwrap();
            let script = "trap 'echo clean; exit' TERM; echo ready; while :; do sleep 0.01; done";
            let process =
                ChildProcess::start("polite", shell(script), folder.path()).unwrap().with_termination_grace(farewell);
            while !process.log().contains("ready") {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(process);
            let log = fs::read_to_string(folder.path().join("polite.log")).unwrap();
            assert_eq!(log.contains("clean"), cleaned, "{farewell:?}");
        }
    }

    #[test]
    fn endings_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let exit = ChildProcess::start("exit", shell("echo words; exit 3"), folder.path()).unwrap();
        wait_until(|| exit.exit_reason().is_some());
        assert_eq!(exit.exit_reason(), Some(ExitReason::Exit(3)));
        assert_eq!(exit.log_tail(5), "  | words\n");
        let killed = ChildProcess::start("killed", shell("sleep 100"), folder.path()).unwrap();
        assert_eq!(killed.exit_reason(), None);
        killed.signal(Signal::TERM);
        wait_until(|| killed.exit_reason().is_some());
        assert_eq!(killed.exit_reason(), Some(ExitReason::Signal(15)));
    }

    /// Runs itself as a process of its own, which starts a child and is then killed.
    #[test]
    fn a_child_ends_with_a_process_that_was_killed() {
        const FOLDER: &str = "ROLLORA_TEST_OF_PROCESS";
        if let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) {
            let child = ChildProcess::start("child", shell("sleep 100"), &folder).unwrap();
            fs::write(folder.join("id.new"), child.id().to_string()).unwrap();
            fs::rename(folder.join("id.new"), folder.join("id")).unwrap();
            loop {
                std::thread::park();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let mut itself = Command::new(std::env::current_exe().unwrap());
        itself.args(["--exact", "tests::a_child_ends_with_a_process_that_was_killed"]);
        itself.env(FOLDER, folder.path()).stdout(Stdio::null());
        let mut itself = itself.spawn().unwrap();
        let id_file = folder.path().join("id");
        wait_until(|| id_file.exists());
        let id: i32 = fs::read_to_string(id_file).unwrap().parse().unwrap();
        assert!(exists(id));
        itself.kill().unwrap();
        itself.wait().unwrap();
        wait_until(|| !exists(id));
    }
}
