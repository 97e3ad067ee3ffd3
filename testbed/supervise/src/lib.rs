//! Child processes, each in a process group of its own, with its output in a file. The group is killed when the value
//! is dropped, when the test panics, and when this process is killed. Only processes that were started here are killed,
//! by their ids.
//!
//! The testbed and `cargo xtask bench` start all of their processes with this crate. It needs no async runtime: tasks
//! that wait for an exit poll [`ChildProcess::exit_reason`].

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

/// How long child processes may still run after their parent exited during its grace period.
const HELPER_CLEANUP_TIME: Duration = Duration::from_secs(1);

/// A child process, running or exited; its group is killed when the value is dropped.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    child: Child,
    group: Pid,
    log: PathBuf,
    /// Time between SIGTERM and SIGKILL when the value is dropped; zero sends no SIGTERM.
    termination_grace: Duration,
}

impl ChildProcess {
    /// Starts `command` and appends its output to `NAME.log` in the folder `logs`.
    ///
    /// # Errors
    ///
    /// Fails if the log cannot be opened, or if the program or the guard cannot be started.
    pub fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log);
        let output = output.with_context(|| format!("cannot open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Self::spawn(name, &mut command, log)
    }

    /// Starts `command` with its output in `output`, which belongs to the caller; [`Self::log`] returns nothing.
    ///
    /// # Errors
    ///
    /// Fails if the program or the guard cannot be started.
    pub fn start_into(name: &str, command: &mut Command, output: &File) -> Result<Self> {
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
        Self::spawn(name, command, PathBuf::new())
    }

    /// Starts `command` with pipes for standard input and output; it shares standard error with this process and has no
    /// log.
    ///
    /// # Errors
    ///
    /// Fails if the program or the guard cannot be started.
    pub fn start_with_pipes(name: &str, mut command: Command) -> Result<(Self, ChildStdin, ChildStdout)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::spawn(name, &mut command, PathBuf::new())?;
        let pipes = process.child.stdin.take().zip(process.child.stdout.take());
        let (stdin, stdout) = pipes.with_context(|| format!("the process {name} has no pipes"))?;
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

    /// Returns the name that was given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id, which is also the id of the group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns how the process exited, or `None` while it runs. Its id is not reused before the value is dropped.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = waitid(WaitId::Pid(self.group), options).ok()??;
        Some(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitReason::Exit(code),
            (None, signal) => ExitReason::Signal(signal.unwrap_or_default()),
        })
    }

    /// Sends SIGTERM to the process only, as a kubelet does; its child processes get no signal.
    pub fn send_sigterm(&self) {
        // An error means that the process has exited.
        kill_process(self.group, Signal::TERM).ok();
    }

    /// Kills the process and all of its child processes with SIGKILL, without a grace period.
    pub fn kill(mut self) {
        self.termination_grace = Duration::ZERO;
    }

    /// Sets the time to clean up between SIGTERM and SIGKILL when the value is dropped.
    #[must_use]
    pub fn with_termination_grace(mut self, grace: Duration) -> Self {
        self.termination_grace = grace;
        self
    }

    /// Sends a signal to the process and its child processes.
    pub fn signal(&self, signal: Signal) {
        // An error means that no process of the group is left.
        kill_process_group(self.group, signal).ok();
    }

    /// Returns the last lines of the process's output.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log, lines)
    }

    /// Returns the whole output of the process.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if !self.termination_grace.is_zero() {
            self.terminate_gracefully();
        }
        // The id cannot be reused before `wait`.
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
                // Child processes that clean up after their parent notice its exit only now.
                std::thread::sleep(HELPER_CLEANUP_TIME);
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "waits in real time for other processes")]
fn now() -> Instant {
    Instant::now()
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// It exited with this code.
    Exit(i32),
    /// It was killed by this signal.
    Signal(i32),
}

impl From<ExitStatus> for ExitReason {
    fn from(status: ExitStatus) -> Self {
        // A process that was waited for has either a code or a signal.
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

/// Returns the last lines of a file, each with a prefix.
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

    fn wait_until(condition: impl Fn() -> bool) {
        let start = now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "the condition did not become true in time");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn grandchildren_are_killed_with_the_child() {
        let folder = tempfile::tempdir().unwrap();
        let process = ChildProcess::start("parent", shell("sleep 100 & echo $!; wait"), folder.path()).unwrap();
        wait_until(|| process.log().ends_with('\n'));
        let grandchild: i32 = process.log().trim().parse().unwrap();
        assert!(exists(grandchild));
        process.kill();
        // A zombie exists too, until its new parent has waited for it.
        wait_until(|| !exists(grandchild));
    }

    #[test]
    fn only_a_termination_grace_leaves_time_to_clean_up() {
        for (grace, cleaned) in [(Duration::from_secs(10), true), (Duration::ZERO, false)] {
            let folder = tempfile::tempdir().unwrap();
            let script = "trap 'echo clean; exit' TERM; echo ready; while :; do sleep 0.01; done";
            let process =
                ChildProcess::start("polite", shell(script), folder.path()).unwrap().with_termination_grace(grace);
            while !process.log().contains("ready") {
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(process);
            let log = fs::read_to_string(folder.path().join("polite.log")).unwrap();
            assert_eq!(log.contains("clean"), cleaned, "{grace:?}");
        }
    }

    #[test]
    fn exit_codes_and_signals_are_distinguished() {
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

    /// Runs this test again in a process of its own, which starts a child and is then killed.
    #[test]
    fn child_is_killed_when_its_parent_is_killed() {
        const FOLDER: &str = "ROLLORA_TEST_CHILD_FOLDER";
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
        itself.args(["--exact", "tests::child_is_killed_when_its_parent_is_killed"]);
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
