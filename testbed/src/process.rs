//! The processes of the testbed: those of [`rollora_supervise`], waited for without blocking a task, and the programs of
//! this workspace.

pub use rollora_supervise::{ChildProcess, ExitReason, log_tail};

use crate::clock;
use anyhow::{Context as _, Result, bail};
use std::{path::PathBuf, time::Duration};

/// How often a process that should end is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Waits until a process ends, at most `limit`.
pub async fn wait_exit(process: &ChildProcess, limit: Duration) -> Result<ExitReason> {
    let start = clock::now();
    loop {
        if let Some(ending) = process.exit_reason() {
            return Ok(ending);
        }
        if start.elapsed() > limit {
            bail!("{} still runs after {limit:?}\n{}", process.name(), process.log_tail(30));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks a process and all that it started to end (SIGTERM), and waits for that, at most `limit`.
pub async fn terminate(process: &ChildProcess, limit: Duration) -> Result<ExitReason> {
    process.signal(rustix::process::Signal::TERM);
    wait_exit(process, limit).await
}

/// The program `name` of this workspace, which is built into the folder of this one.
pub fn built_program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    // Tests are in `target/PROFILE/deps`, programs one folder above.
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        let folder = own.parent().unwrap_or(&own);
        format!("there is no program `{name}` beside {}: build it with `cargo build --bin {name}`", folder.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn termination_is_waited_for_and_reported() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "sleep 100"]);
        let process = ChildProcess::start("killed", command, folder.path()).unwrap();
        assert_eq!(process.exit_reason(), None);
        assert_eq!(terminate(&process, Duration::from_secs(10)).await.unwrap(), ExitReason::Signal(15));
    }

    #[test]
    fn a_missing_program_is_named_with_the_command_that_builds_it() {
        let said = built_program("no-such-program").unwrap_err().to_string();
        assert!(said.contains("cargo build --bin no-such-program"), "{said}");
    }
}
