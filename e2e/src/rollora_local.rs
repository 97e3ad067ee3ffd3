//! The program `rollora`: `rollora local` as a process that can be killed and started again on the same state, and the
//! commands that a person types.

use anyhow::{Context as _, Result, bail};
use rollora_api::{rollout::Rollout, router_report::RulesReport, sidecar_status::SidecarStatus};
use rollora_testbed::{
    clock,
    http::{self, ListenAddress},
    ports::ReservedPort,
    process::{self, ChildProcess, ExitReason, built_program},
};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long a start may take until the control socket answers.
const START_TIMEOUT: Duration = Duration::from_mins(2);
/// How long a command may take.
const CLI_TIMEOUT: Duration = Duration::from_secs(40);

/// One `rollora local`, running or not; it is killed when the value is dropped.
#[derive(Debug)]
pub struct RolloraLocal {
    folder: PathBuf,
    gateway_port: ReservedPort,
    status_port: ReservedPort,
    servers: Vec<String>,
    api_key: Option<String>,
    process: Option<ChildProcess>,
}

/// The result of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// The exit code; -1 if a signal ended the process.
    pub code: i32,
    /// Text of standard output.
    pub stdout: String,
    /// Text of standard error.
    pub stderr: String,
}

/// The part of the control socket's overview that scenarios read.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalOverview {
    /// The Rollout with its status.
    pub rollout: Rollout,
    /// Problems of the Rollout's file.
    pub rollout_file: OverviewFile,
    /// Problems of the adapters file.
    pub adapters_file: OverviewFile,
    /// One entry per vLLM server.
    pub servers: Vec<OverviewServer>,
    /// The rules that the gateway applies.
    pub rules: RulesReport,
}

/// State of one of the two files.
#[derive(Debug, Clone, Deserialize)]
pub struct OverviewFile {
    /// Why the file is not usable; `None` if it is.
    pub problem: Option<String>,
}

/// One vLLM server in the overview.
#[derive(Debug, Clone, Deserialize)]
pub struct OverviewServer {
    /// Host and port of the server.
    pub name: String,
    /// Whether the gateway sends requests to it.
    pub ready: bool,
    /// The status of its sidecar.
    pub status: SidecarStatus,
}

impl RolloraLocal {
    /// Reserves the ports and starts nothing. `folder` has the two files; state and log are created there.
    pub fn new(folder: &Path, servers: Vec<String>, api_key: Option<&str>) -> Result<Self> {
        let (listen, status) = (ReservedPort::reserve()?, ReservedPort::reserve()?);
        let api_key = api_key.map(str::to_owned);
        Ok(Self {
            folder: folder.to_owned(),
            gateway_port: listen,
            status_port: status,
            servers,
            api_key,
            process: None,
        })
    }

    /// Path of the Rollout's file.
    pub fn rollout_file(&self) -> PathBuf {
        self.folder.join("rollout.yaml")
    }

    /// Path of the adapters file.
    pub fn adapters_file(&self) -> PathBuf {
        self.folder.join("adapters.yaml")
    }

    /// Path of the state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// The address that clients send their requests to.
    pub fn gateway(&self) -> ListenAddress {
        self.gateway_port.address().into()
    }

    /// The address of `/rules` and `/metrics`.
    pub fn status_address(&self) -> ListenAddress {
        self.status_port.address().into()
    }

    /// Returns the command line of `rollora local`, and writes the file with the API key.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(built_program("rollora")?);
        command.current_dir(&self.folder).arg("local");
        command.args(["--rollout", "rollout.yaml", "--adapters", "adapters.yaml", "--state", "state"]);
        for server in &self.servers {
            command.args(["--vllm", server]);
        }
        command.args(["--listen", &self.gateway_port.address().to_string()]);
        command.args(["--status-listen", &self.status_port.address().to_string()]);
        command.env_remove("VLLM_API_KEY");
        if let Some(key) = &self.api_key {
            let file = self.folder.join("vllm-api-key");
            std::fs::write(&file, key).with_context(|| format!("cannot write {}", file.display()))?;
            command.arg("--vllm-api-key-file").arg(file);
        }
        Ok(command)
    }

    /// Starts the process, and waits until the control socket answers.
    pub async fn start(&mut self) -> Result<()> {
        self.start_in_background()?;
        let start = clock::now();
        while let Err(error) = self.overview().await {
            if let Some(exit) = self.exit_reason() {
                bail!("`rollora local` ended ({exit:?})\n{}", self.log_tail(20));
            }
            if start.elapsed() > START_TIMEOUT {
                bail!(
                    "the control socket of `rollora local` does not answer after {START_TIMEOUT:?}: {error:#}\n{}",
                    self.log_tail(20)
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts the process without waiting for it.
    pub fn start_in_background(&mut self) -> Result<()> {
        self.kill();
        self.process = Some(ChildProcess::start("rollora", self.command()?, &self.folder)?);
        Ok(())
    }

    /// Kills the process with SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Sends SIGTERM, and returns how the process ended within 20 seconds.
    pub async fn terminate(&mut self) -> Result<ExitReason> {
        let process = self.process.take().context("`rollora local` is not running")?;
        process::terminate(&process, Duration::from_secs(20)).await
    }

    /// Returns how the process ended by itself, if it did.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.process.as_ref().and_then(ChildProcess::exit_reason)
    }

    /// The process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(ChildProcess::id)
    }

    /// Requests the overview over the control socket.
    pub async fn overview(&self) -> Result<LocalOverview> {
        http::get_json(&ListenAddress::Unix(self.state_dir().join("rollora.sock")), "/overview").await
    }

    /// Runs `rollora ARGUMENTS --state …`.
    pub async fn run_cli(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let mut command = Command::new(built_program("rollora")?);
        command.args(arguments).arg("--state").arg(self.state_dir()).env("NO_COLOR", "1");
        run_command(command).await
    }

    /// Returns the last lines of its log, which all starts share.
    pub fn log_tail(&self, lines: usize) -> String {
        rollora_testbed::process::log_tail(&self.folder.join("rollora.log"), lines)
    }
}

/// Runs a command to its end, within 40 seconds.
pub async fn run_command(command: Command) -> Result<CommandOutput> {
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    let output = tokio::time::timeout(CLI_TIMEOUT, command.output());
    let output = output.await.with_context(|| format!("{command:?} was not done after {CLI_TIMEOUT:?}"))??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(CommandOutput {
        code: output.status.code().unwrap_or(-1),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
