//! One vLLM server of the bed: simulated, or a real one on the CPU. Who starts it and ends it is its [`Keeper`]: the bed
//! itself on one machine ([`own`]), the kubelet on a cluster.

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

/// Which kind of server.
#[derive(Debug, Clone)]
pub enum ServerKind {
    /// `vllm-sim`, with more flags.
    Simulated {
        /// Flags behind those that every server of the bed has.
        flags: Vec<String>,
    },
    /// A real vLLM.
    Real {
        /// The folder with `venv/bin/python` and `tiny/`.
        home: PathBuf,
    },
}

impl ServerKind {
    /// A simulated server that answers within milliseconds, with these flags beside.
    pub fn simulated(flags: &[&str]) -> Self {
        Self::Simulated { flags: flags.iter().map(|&flag| flag.to_owned()).collect() }
    }

    /// How it is started, but for where it listens and the key.
    pub fn command(&self) -> Result<Command> {
        match self {
            Self::Simulated { flags } => simulator_command(flags),
            Self::Real { home } => Ok(real_command(home)),
        }
    }

    /// How long it may take to end: a real vLLM that is killed leaves shared memory behind.
    pub fn termination_grace(&self) -> Duration {
        match self {
            Self::Simulated { .. } => Duration::ZERO,
            Self::Real { .. } => Duration::from_secs(10),
        }
    }

    /// How long a start may take.
    pub fn start_timeout(&self) -> Duration {
        match self {
            Self::Simulated { .. } => Duration::from_secs(10),
            Self::Real { .. } => Duration::from_mins(5),
        }
    }
}

/// Who starts a server and ends it. One that was killed comes back where it was.
pub trait ServerSupervisor: fmt::Debug + Send + Sync {
    /// Starts it (again); what was there before is ended.
    fn start(&mut self) -> Result<()>;
    /// Ends it as `kill -9` does, with everything it started. It stays down until it is started.
    fn kill(&mut self);
    /// From its next start on it is this kind of server.
    fn set_kind(&mut self, kind: ServerKind);
    /// Whether its process runs.
    fn is_running(&self) -> bool;
    /// How it ended, where nobody is about to start it again.
    fn exit_reason(&self) -> Option<String>;
    /// The end of its output.
    fn log_tail(&self, lines: usize) -> String;
}

/// A server; ended when it is dropped.
#[derive(Debug)]
pub struct VllmServer {
    name: String,
    address: SocketAddr,
    api_key: Option<String>,
    /// How long a start may take.
    start_timeout: Duration,
    supervisor: Box<dyn ServerSupervisor>,
}

impl VllmServer {
    /// Starts a server of our own, on a port of 127.0.0.1 that stays ours. It answers some time later, see
    /// [`Server::answers`].
    pub fn spawn(name: &str, kind: ServerKind, api_key: Option<&str>, logs: &Path) -> Result<Self> {
        let patience = kind.start_timeout();
        let own = ProcessServer::start(name, kind, api_key, logs)?;
        let address = own.address();
        Ok(Self {
            name: address.to_string(),
            address,
            api_key: api_key.map(str::to_owned),
            start_timeout: patience,
            supervisor: Box::new(own),
        })
    }

    /// A server that somebody else keeps.
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

    /// Starts it (again) where it was; what was there before is ended.
    pub fn start(&mut self) -> Result<()> {
        self.supervisor.start()
    }

    /// From its next start on it is this kind of server.
    pub fn set_kind(&mut self, kind: ServerKind) {
        self.start_timeout = kind.start_timeout();
        self.supervisor.set_kind(kind);
    }

    /// Ends it as `kill -9` does, with everything it started.
    pub fn kill(&mut self) {
        self.supervisor.kill();
    }

    /// Waits until it answers.
    pub async fn wait_ready(&self) -> Result<()> {
        let start = clock::now();
        while http::send_request(&self.address(), http::request("GET", "/health", None)).await.is_err() {
            let ended = self.supervisor.exit_reason();
            if ended.is_some() || start.elapsed() > self.start_timeout {
                let tail = self.log_tail(30);
                bail!("the vLLM server {} does not answer ({ended:?}) after {:?}\n{tail}", self.name, start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Whether its process runs.
    pub fn is_running(&self) -> bool {
        self.supervisor.is_running()
    }

    /// How Rollora calls it.
    pub fn name(&self) -> String {
        self.name.clone()
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn address(&self) -> ListenAddress {
        self.address.into()
    }

    /// What `/v1/models` lists without the base model, asked of the server itself.
    pub async fn loaded_adapters(&self) -> Result<BTreeSet<String>> {
        let (status, body) = self.request("GET", "/v1/models", None).await?;
        let body: Value = serde_json::from_slice(&body).with_context(|| format!("/v1/models: {status}"))?;
        let models = body["data"].as_array().with_context(|| format!("/v1/models: {status} {body}"))?;
        let adapters = models.iter().filter(|model| !model["parent"].is_null());
        Ok(adapters.filter_map(|model| model["id"].as_str()).map(str::to_owned).collect())
    }

    /// What a simulated server was asked since it started.
    pub async fn counters(&self) -> Result<RequestCounters> {
        http::get_json(&self.address(), "/sim/requests").await
    }

    /// Turns knobs of a simulated server.
    pub async fn patch_knobs(&self, knobs: Value) -> Result<Knobs> {
        let (status, body) =
            http::send_request(&self.address(), http::request("PATCH", "/sim/knobs", Some(&knobs))).await?;
        serde_json::from_slice(&body).with_context(|| format!("{status} {}", String::from_utf8_lossy(&body)))
    }

    /// Somebody unloads an adapter there, whatever anybody else wants.
    pub async fn unload_adapter(&self, id: &str) -> Result<()> {
        let body = json!({ "lora_name": id });
        let (status, body) = self.request("POST", "/v1/unload_lora_adapter", Some(&body)).await?;
        ensure!(status.is_success(), "{status} {}", String::from_utf8_lossy(&body));
        Ok(())
    }

    /// With the key that it asks for, where it does.
    async fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(StatusCode, Bytes)> {
        let mut request = http::request(method, path, body);
        if let Some(key) = &self.api_key {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {key}"))?);
        }
        http::send_request(&self.address(), request).await
    }

    /// The end of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        self.supervisor.log_tail(lines)
    }
}

fn simulator_command(flags: &[String]) -> Result<Command> {
    let mut command = Command::new(built_program("vllm-sim")?);
    command.args(["--any-source", "--served-model-name", BASE_MODEL]).args(flags);
    Ok(command)
}

/// As vLLM 0.32.0 runs on a CPU: one thread a server, so that several fit on two cores.
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
