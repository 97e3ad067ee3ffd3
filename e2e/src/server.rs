//! One vLLM server of the bed: simulated, or a real one on the CPU. A server that was killed comes back on its port.

use crate::{
    clock,
    guide::BASE_MODEL,
    http::{self, Address},
    ports::Port,
    process::{Process, program},
    sim::{Counters, Knobs},
};
use anyhow::{Context as _, Result, bail};
use hyper::header::{AUTHORIZATION, HeaderValue};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Which kind of server.
#[derive(Debug, Clone)]
pub enum Kind {
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

impl Kind {
    /// A simulated server that answers within milliseconds, with these flags beside.
    pub fn simulated(flags: &[&str]) -> Self {
        Self::Simulated { flags: flags.iter().map(|&flag| flag.to_owned()).collect() }
    }

    /// How long it may take to end: a real vLLM that is killed leaves shared memory behind.
    fn farewell(&self) -> Duration {
        match self {
            Self::Simulated { .. } => Duration::ZERO,
            Self::Real { .. } => Duration::from_secs(10),
        }
    }

    /// How long a start may take.
    fn patience(&self) -> Duration {
        match self {
            Self::Simulated { .. } => Duration::from_secs(10),
            Self::Real { .. } => Duration::from_mins(5),
        }
    }
}

/// A server; ended when it is dropped.
#[derive(Debug)]
pub struct Server {
    kind: Kind,
    name: String,
    port: Port,
    api_key: Option<String>,
    logs: PathBuf,
    process: Option<Process>,
}

impl Server {
    /// Starts a server. It answers some time later, see [`Server::answers`].
    pub fn start(name: &str, kind: Kind, api_key: Option<&str>, logs: &Path) -> Result<Self> {
        let (name, api_key) = (name.to_owned(), api_key.map(str::to_owned));
        let port = Port::reserve()?;
        let mut server = Self { kind, name, port, api_key, logs: logs.to_owned(), process: None };
        server.restart()?;
        Ok(server)
    }

    /// Starts it (again) on its port; what was there before is ended.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        let mut command = match &self.kind {
            Kind::Simulated { flags } => simulator(flags)?,
            Kind::Real { home } => real(home),
        };
        command.args(["--host", "127.0.0.1", "--port", &self.port.number().to_string()]);
        if let Some(key) = &self.api_key {
            command.args(["--api-key", key]);
        }
        let process = Process::start(&self.name, command, &self.logs)?;
        self.process = Some(process.with_farewell(self.kind.farewell()));
        Ok(())
    }

    /// From its next start on it is this kind of server.
    pub fn become_kind(&mut self, kind: Kind) {
        self.kind = kind;
    }

    /// Ends it as `kill -9` does, with everything it started.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    /// Waits until it answers.
    pub async fn answers(&self) -> Result<()> {
        let (start, patience) = (clock::now(), self.kind.patience());
        while http::call(&self.address(), http::request("GET", "/health", None)).await.is_err() {
            let ended = self.process.as_ref().and_then(Process::ended);
            if ended.is_some() || start.elapsed() > patience {
                let tail = self.log_tail(30);
                bail!("the vLLM server {} does not answer ({ended:?}) after {:?}\n{tail}", self.name, start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.ended().is_none())
    }

    /// How Rollora calls it.
    pub fn name(&self) -> String {
        self.port.address().to_string()
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.port.address())
    }

    fn address(&self) -> Address {
        self.port.address().into()
    }

    /// What `/v1/models` lists without the base model, asked of the server itself.
    pub async fn adapters(&self) -> Result<BTreeSet<String>> {
        let mut request = http::request("GET", "/v1/models", None);
        if let Some(key) = &self.api_key {
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {key}"))?);
        }
        let (status, body) = http::call(&self.address(), request).await?;
        let body: Value = serde_json::from_slice(&body).with_context(|| format!("/v1/models: {status}"))?;
        let models = body["data"].as_array().with_context(|| format!("/v1/models: {status} {body}"))?;
        let adapters = models.iter().filter(|model| !model["parent"].is_null());
        Ok(adapters.filter_map(|model| model["id"].as_str()).map(str::to_owned).collect())
    }

    /// What a simulated server was asked since it started.
    pub async fn counters(&self) -> Result<Counters> {
        http::get_json(&self.address(), "/sim/requests").await
    }

    /// Turns knobs of a simulated server.
    pub async fn turn(&self, knobs: Value) -> Result<Knobs> {
        let (status, body) = http::call(&self.address(), http::request("PATCH", "/sim/knobs", Some(&knobs))).await?;
        serde_json::from_slice(&body).with_context(|| format!("{status} {}", String::from_utf8_lossy(&body)))
    }

    /// The end of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        crate::process::tail(&self.logs.join(format!("{}.log", self.name)), lines)
    }
}

fn simulator(flags: &[String]) -> Result<Command> {
    let mut command = Command::new(program("vllm-sim", "rollora-e2e")?);
    command.args(["--any-source", "--served-model-name", BASE_MODEL]).args(flags);
    Ok(command)
}

/// As vLLM 0.32.0 runs on a CPU: one thread a server, so that several fit on two cores.
fn real(home: &Path) -> Command {
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
