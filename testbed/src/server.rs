//! One vLLM server of the testbed: simulated, or a real one on the CPU. A [`ServerSupervisor`] starts and kills its
//! process: `process_server` on a single machine, the kubelet stand-in on a cluster.

mod process_server;

use crate::{
    clock,
    guide::BASE_MODEL,
    http::{self, ListenAddress},
    process::built_program,
    sim::{Knobs, RequestCounters},
};
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use hyper::{
    StatusCode,
    header::{AUTHORIZATION, HeaderValue},
};
use process_server::ProcessServer;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Implementation of a server.
#[derive(Debug, Clone)]
pub enum ServerKind {
    /// `vllm-sim`, with additional flags.
    Simulated {
        /// Flags after those that every server of the testbed has.
        flags: Vec<String>,
    },
    /// A real vLLM, running on the CPU.
    Real {
        /// Folder with `venv/bin/python` and `tiny/`.
        home: PathBuf,
    },
}

impl ServerKind {
    /// Returns a simulated server, which responds within milliseconds, with these additional flags.
    pub fn simulated(flags: &[&str]) -> Self {
        Self::Simulated { flags: flags.iter().map(|&flag| flag.to_owned()).collect() }
    }

    /// Returns the command line, without listen address and API key.
    pub fn command(&self) -> Result<Command> {
        match self {
            Self::Simulated { flags } => simulator_command(flags),
            Self::Real { home } => Ok(real_command(home)),
        }
    }

    /// Returns the time between SIGTERM and SIGKILL: a real vLLM that is killed leaves shared memory behind.
    pub fn termination_grace(&self) -> Duration {
        match self {
            Self::Simulated { .. } => Duration::ZERO,
            Self::Real { .. } => Duration::from_secs(10),
        }
    }

    /// Returns how long a start may take.
    pub fn start_timeout(&self) -> Duration {
        match self {
            Self::Simulated { .. } => Duration::from_mins(2),
            Self::Real { .. } => Duration::from_mins(5),
        }
    }
}

/// Starts and kills the process of a server. A server that was killed restarts at the same address.
pub trait ServerSupervisor: fmt::Debug + Send + Sync {
    /// Starts the server; a running one is killed first.
    fn start(&mut self) -> Result<()>;
    /// Kills the server with SIGKILL, with all of its child processes. It stays down until it is started.
    fn kill(&mut self);
    /// Sets the kind of server that the next start uses.
    fn set_kind(&mut self, kind: ServerKind);
    /// Returns whether the process is running.
    fn is_running(&self) -> bool;
    /// Returns how the process exited, or `None` if it runs or is about to be restarted.
    fn exit_reason(&self) -> Option<String>;
    /// Returns the last lines of the server's output.
    fn log_tail(&self, lines: usize) -> String;
}

/// A vLLM server, killed when it is dropped.
#[derive(Debug)]
pub struct VllmServer {
    name: String,
    address: SocketAddr,
    api_key: Option<String>,
    /// Time limit of [`VllmServer::wait_ready`].
    start_timeout: Duration,
    supervisor: Box<dyn ServerSupervisor>,
}

impl VllmServer {
    /// Starts a server on a reserved port of 127.0.0.1. It is ready some time later, see [`VllmServer::wait_ready`].
    pub fn spawn(name: &str, kind: ServerKind, api_key: Option<&str>, logs: &Path) -> Result<Self> {
        let start_timeout = kind.start_timeout();
        let server = ProcessServer::start(name, kind, api_key, logs)?;
        let address = server.address();
        Ok(Self {
            name: address.to_string(),
            address,
            api_key: api_key.map(str::to_owned),
            start_timeout,
            supervisor: Box::new(server),
        })
    }

    /// Returns a server that another component runs, such as the kubelet stand-in.
    pub fn supervised(
        name: &str,
        address: SocketAddr,
        api_key: Option<&str>,
        kind: &ServerKind,
        supervisor: Box<dyn ServerSupervisor>,
    ) -> Self {
        let (name, api_key) = (name.to_owned(), api_key.map(str::to_owned));
        Self { name, address, api_key, start_timeout: kind.start_timeout(), supervisor }
    }

    /// Starts the server at its address; a running one is killed first.
    pub fn start(&mut self) -> Result<()> {
        self.supervisor.start()
    }

    /// Sets the kind of server that the next start uses.
    pub fn set_kind(&mut self, kind: ServerKind) {
        self.start_timeout = kind.start_timeout();
        self.supervisor.set_kind(kind);
    }

    /// Kills the server with SIGKILL, with all of its child processes.
    pub fn kill(&mut self) {
        self.supervisor.kill();
    }

    /// Waits until the server responds to `/health`.
    pub async fn wait_ready(&self) -> Result<()> {
        let start = clock::now();
        while http::send_request(&self.address(), http::request("GET", "/health", None)).await.is_err() {
            let ended = self.supervisor.exit_reason();
            if ended.is_some() || start.elapsed() > self.start_timeout {
                let tail = self.log_tail(30);
                bail!("the vLLM server {} does not respond ({ended:?}) after {:?}\n{tail}", self.name, start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Returns whether the process is running.
    pub fn is_running(&self) -> bool {
        self.supervisor.is_running()
    }

    /// Returns the name that Rollora uses for the server.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Returns the base URL of the server.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn address(&self) -> ListenAddress {
        self.address.into()
    }

    /// Returns the adapters that the server's `/v1/models` lists.
    pub async fn loaded_adapters(&self) -> Result<BTreeSet<String>> {
        let (status, body) = self.request("GET", "/v1/models", None).await?;
        let body: Value = serde_json::from_slice(&body).with_context(|| format!("/v1/models: {status}"))?;
        let models = body["data"].as_array().with_context(|| format!("/v1/models: {status} {body}"))?;
        let adapters = models.iter().filter(|model| !model["parent"].is_null());
        Ok(adapters.filter_map(|model| model["id"].as_str()).map(str::to_owned).collect())
    }

    /// Returns the request counts of a simulated server since it started.
    pub async fn counters(&self) -> Result<RequestCounters> {
        http::get_json(&self.address(), "/sim/requests").await
    }

    /// Changes knobs of a simulated server, and returns all of them.
    pub async fn patch_knobs(&self, knobs: Value) -> Result<Knobs> {
        let (status, body) =
            http::send_request(&self.address(), http::request("PATCH", "/sim/knobs", Some(&knobs))).await?;
        serde_json::from_slice(&body).with_context(|| format!("{status} {}", String::from_utf8_lossy(&body)))
    }

    /// Unloads an adapter through the API, as an outsider would who ignores the desired state.
    pub async fn unload_adapter(&self, id: &str) -> Result<()> {
        let body = json!({ "lora_name": id });
        let (status, body) = self.request("POST", "/v1/unload_lora_adapter", Some(&body)).await?;
        ensure!(status.is_success(), "{status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    /// Sends a request, with the API key if the server has one.
    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes)> {
        let mut request = http::request(method, path, body);
        if let Some(key) = &self.api_key {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {key}"))?);
        }
        http::send_request(&self.address(), request).await
    }

    /// Returns the last lines of the server's output.
    pub fn log_tail(&self, lines: usize) -> String {
        self.supervisor.log_tail(lines)
    }
}

fn simulator_command(flags: &[String]) -> Result<Command> {
    let mut command = Command::new(built_program("vllm-sim")?);
    command.args(["--any-source", "--served-model-name", BASE_MODEL]).args(flags);
    Ok(command)
}

/// The command of vLLM 0.32.0 on a CPU, with one thread a server, so that several fit on two cores.
fn real_command(home: &Path) -> Command {
    let mut command = Command::new(home.join("venv/bin/python"));
    command.current_dir(home);
    command.args(["-m", "vllm.entrypoints.openai.api_server", "--model", "tiny/base"]);
    command.args(["--served-model-name", BASE_MODEL, "--enable-lora", "--max-loras", "2", "--max-cpu-loras", "4"]);
    command.args(["--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "1024"]);
    for (name, value) in [
        ("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "True"),
        ("VLLM_CPU_KVCACHE_SPACE", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("OMP_NUM_THREADS", "1"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("DO_NOT_TRACK", "1"),
        ("HF_HUB_OFFLINE", "1"),
    ] {
        command.env(name, value);
    }
    command
}
