//! A simulated vLLM server: answers over HTTP as vLLM 0.32.0 was recorded to answer, and can be made to fail.
//!
//! [`Simulator`] runs one inside a test; the program `vllm-sim` is the same as a process. Statuses, content types,
//! shapes and texts come from the recordings in `testbed/testdata/vllm/` (`transcript.jsonl`, `edges.jsonl` and a whole
//! `metrics.txt`), which `testbed/tests/replay/` plays against the simulator.
//!
//! What a person or a scenario can see of a real server is there: names that load and unload, `/v1/models`, chat and
//! text completions (whole and streamed), the metrics that tell a server's identity and an adapter's last use, the
//! worker's cache that reads an adapter again from disk and dies when it is gone, the API key that guards `/v1/*` only,
//! what clients still get from a server whose engine has failed.
//! Each adapter says other words than any other, the same ones every time. Failures, deaths, hangs and delays are
//! [`Knobs`]; what a server was asked is counted ([`Counters`]). The same is reached from outside under `/sim` (see
//! `sim/admin.rs`).
//!
//! Not simulated: the limit of `--max-loras` adapters that generate at a time, batching, sampling, tokenizing (three
//! characters count as a token), whether an adapter's tensors fit the model, and every other endpoint of vLLM.

mod adapters;
mod admin;
mod clock;
mod config;
mod generate;
mod handler;
mod knobs;
mod lora;
mod metrics;
mod request;
mod request_log;
mod response;
mod route;
mod sanitize;
mod serve;
mod server;
mod source;
mod text;
mod validation;
mod vllm_error;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use config::{AllowedSources, SimulatorConfig};
pub use knobs::{CrashMode, InvalidKnobValue, Knobs, LoadFault, ServingMode};
pub use request_log::{LogEntry, ModelCounters, OVERFLOW_MODEL, RequestCounters};

use server::SimulatedServer;

/// A running simulated server. Dropping it cuts every connection and frees the port.
#[derive(Debug)]
pub struct Simulator {
    server: Arc<SimulatedServer>,
    address: SocketAddr,
    tasks: JoinSet<()>,
}

impl Simulator {
    /// Starts a server. Like vLLM it fails when an adapter of `lora_modules` cannot be loaded.
    pub async fn start(config: SimulatorConfig) -> Result<Self, SimulatorStartError> {
        let asked_for = SocketAddr::new(config.host, config.port);
        let listener = TcpListener::bind(asked_for)
            .await
            .map_err(|source| SimulatorStartError::Bind { address: asked_for, source })?;
        let address =
            listener.local_addr().map_err(|source| SimulatorStartError::Bind { address: asked_for, source })?;
        let server = Arc::new(SimulatedServer::new(config));
        lora::load_modules(&server).map_err(|refusal| SimulatorStartError::LoraModules(refusal.to_string()))?;
        let mut running = JoinSet::new();
        running.spawn(serve::serve(Arc::clone(&server), listener));
        Ok(Self { server, address, tasks: running })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes knobs; what is in flight sees it at its next step.
    pub fn update_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        self.server.update_knobs(change);
    }

    /// The knobs as they are.
    pub fn knobs(&self) -> Knobs {
        self.server.knobs()
    }

    /// What the server was asked so far.
    pub fn counters(&self) -> RequestCounters {
        self.server.request_log().counters.clone()
    }

    /// The last answered requests, oldest first.
    pub fn answered_requests(&self) -> Vec<LogEntry> {
        self.server.request_log().log.iter().cloned().collect()
    }

    /// Names and sources of the loaded adapters, without asking the server (so nothing is counted).
    pub fn adapters(&self) -> Vec<(String, String)> {
        let adapters = self.server.adapters();
        adapters.iter().map(|adapter| (adapter.name.clone(), adapter.source.clone())).collect()
    }

    /// Cuts every connection and stops listening, as `kill -9` does. The same port can be started on again.
    pub async fn crash(mut self) {
        self.server.crash("told to crash");
        self.wait_exit().await;
    }

    /// Waits for the server's end, and says why it ended.
    pub async fn wait_exit(&mut self) -> String {
        while self.tasks.join_next().await.is_some() {}
        self.server.end_reason().unwrap_or_else(|| "stopped".to_owned())
    }
}

/// Why a simulator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorStartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another --port (0 takes a free one)")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// An adapter of `--lora-modules` cannot be loaded; the text is vLLM's.
    #[error("{0}")]
    LoraModules(String),
}
