//! The program `rollora`: `rollora local` as a process that can be killed and started again on the same state, and the
//! verbs that a person types.

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
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a verb may take.
const CLI_TIMEOUT: Duration = Duration::from_secs(40);

/// One `rollora local`, running or not; ended when it is dropped.
#[derive(Debug)]
pub struct RolloraLocal {
    folder: PathBuf,
    gateway_port: ReservedPort,
    status_port: ReservedPort,
    servers: Vec<String>,
    api_key: Option<String>,
    process: Option<ChildProcess>,
}

/// What a verb said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandOutput {
    /// The exit code; -1 where a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// What the control socket says of everything: the part that scenarios look at.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalOverview {
    /// The Rollout with its status.
    pub rollout: Rollout,
    /// The Rollout's file.
    pub rollout_file: OverviewFile,
    /// The adapters file.
    pub adapters_file: OverviewFile,
    /// Every vLLM server.
    pub servers: Vec<OverviewServer>,
    /// The rules in force.
    pub rules: RulesReport,
}

/// One of the two files.
#[derive(Debug, Clone, Deserialize)]
pub struct OverviewFile {
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// One vLLM server.
#[derive(Debug, Clone, Deserialize)]
pub struct OverviewServer {
    /// Its host and port.
    pub name: String,
    /// Whether requests are sent there.
    pub ready: bool,
    /// What its sidecar says.
    pub status: SidecarStatus,
}

impl RolloraLocal {
    /// One that is not started yet. `folder` holds the two files, and will hold state and log.
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

    /// The file with the Rollout.
    pub fn rollout_file(&self) -> PathBuf {
        self.folder.join("rollout.yaml")
    }

    /// The file with the adapters.
    pub fn adapters_file(&self) -> PathBuf {
        self.folder.join("adapters.yaml")
    }

    /// The state folder.
    pub fn state_dir(&self) -> PathBuf {
        self.folder.join("state")
    }

    /// Where clients send their requests.
    pub fn gateway(&self) -> ListenAddress {
        self.gateway_port.address().into()
    }

    /// Where `/rules` and `/metrics` are.
    pub fn status_address(&self) -> ListenAddress {
        self.status_port.address().into()
    }

    /// The command line of `rollora local`.
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

    /// Starts it, and waits until it can be asked.
    pub async fn start(&mut self) -> Result<()> {
        self.start_in_background()?;
        let start = clock::now();
        while let Err(error) = self.overview().await {
            if let Some(ending) = self.exit_reason() {
                bail!("`rollora local` ended ({ending:?})\n{}", self.log_tail(20));
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("`rollora local` cannot be asked after {START_TIMEOUT:?}: {error:#}\n{}", self.log_tail(20));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts it and waits for nothing.
    pub fn start_in_background(&mut self) -> Result<()> {
        self.kill();
        self.process = Some(ChildProcess::start("rollora", self.command()?, &self.folder)?);
        Ok(())
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to end (SIGTERM), and says how it did.
    pub async fn terminate(&mut self) -> Result<ExitReason> {
        let process = self.process.take().context("`rollora local` does not run")?;
        process::terminate(&process, Duration::from_secs(20)).await
    }

    /// How it ended, where it did by itself.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.process.as_ref().and_then(ChildProcess::exit_reason)
    }

    /// Its process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(ChildProcess::id)
    }

    /// Everything that its control socket says.
    pub async fn overview(&self) -> Result<LocalOverview> {
        http::get_json(&ListenAddress::Unix(self.state_dir().join("rollora.sock")), "/overview").await
    }

    /// Runs `rollora ARGUMENTS --state …`.
    pub async fn run_cli(&self, arguments: &[&str]) -> Result<CommandOutput> {
        let mut command = Command::new(built_program("rollora")?);
        command.args(arguments).arg("--state").arg(self.state_dir()).env("NO_COLOR", "1");
        run_command(command).await
    }

    /// The end of its log, of all starts.
    pub fn log_tail(&self, lines: usize) -> String {
        rollora_testbed::process::log_tail(&self.folder.join("rollora.log"), lines)
    }
}

/// Runs a command to its end.
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
