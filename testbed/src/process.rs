//! Processes of the testbed: re-exports of [`rollora_supervise`], functions that wait without blocking a task, and the
//! paths of the workspace's own programs.

pub use rollora_supervise::{ChildProcess, ExitReason, log_tail};

use crate::clock;
use anyhow::{Context as _, Result, bail};
use std::{path::PathBuf, time::Duration};

/// Interval at which a process is checked for its exit.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Waits until a process exits; an error after `limit`.
pub async fn wait_exit(process: &ChildProcess, limit: Duration) -> Result<ExitReason> {
    let start = clock::now();
    loop {
        if let Some(exit) = process.exit_reason() {
            return Ok(exit);
        }
        if start.elapsed() > limit {
            bail!("{} is still running after {limit:?}\n{}", process.name(), process.log_tail(30));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Sends SIGTERM to a process and its children, and waits until it exits; an error after `limit`.
pub async fn terminate(process: &ChildProcess, limit: Duration) -> Result<ExitReason> {
    process.signal(rustix::process::Signal::TERM);
    wait_exit(process, limit).await
}

/// Returns the path of the workspace's program `name`, which is next to the current program.
pub fn built_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot determine the path of the current program")?;
    // Tests are in `target/PROFILE/deps`, programs one folder above.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        let folder = own.parent().unwrap_or(&own);
        format!("no program `{name}` in {}: build it with `cargo build --bin {name}`", folder.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn termination_by_sigterm_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "sleep 100"]);
        let process = ChildProcess::start("killed", command, folder.path()).unwrap();
        assert_eq!(process.exit_reason(), None);
        assert_eq!(terminate(&process, Duration::from_secs(10)).await.unwrap(), ExitReason::Signal(15));
    }

    #[test]
    fn missing_program_error_names_the_build_command() {
        let error = built_program("no-such-program").unwrap_err().to_string();
        assert!(error.contains("cargo build --bin no-such-program"), "{error}");
    }
}
