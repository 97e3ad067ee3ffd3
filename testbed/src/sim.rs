//! A simulated vLLM server: responds over HTTP as vLLM 0.32.0 was recorded to respond, and fails on demand.
//!
//! [`Simulator`] runs a server inside a test; the program `vllm-sim` runs it as a process. Statuses, content types,
//! shapes and texts come from the recordings in `testbed/testdata/vllm/` (`transcript.jsonl`, `edges.jsonl` and a
//! complete `metrics.txt`), which `testbed/tests/replay/` plays against the simulator.
//!
//! What a client can observe of a real server is simulated: adapters that are loaded and unloaded, `/v1/models`, chat
//! and text completions (complete and streamed), the metrics that identify a server process and tell when an adapter
//! was last used, the worker's cache that reads an adapter from disk again and crashes when it is gone, the API key
//! that protects only `/v1/*`, and the responses of a server whose engine has failed. Each adapter generates a
//! different text, the same one every time. Failures, crashes, hangs and delays are set by [`Knobs`]; requests are
//! counted in [`RequestCounters`]. Both are available over HTTP under `/sim` (see `sim/admin.rs`).
//!
//! Not simulated: the limit of `--max-loras` adapters in one batch, batching, sampling, tokenizing (three characters
//! count as a token), whether an adapter's tensors fit the model, and all other endpoints of vLLM.

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
    /// Starts a server. Like vLLM, it fails if an adapter of `lora_modules` cannot be loaded.
    pub async fn start(config: SimulatorConfig) -> Result<Self, SimulatorStartError> {
        let requested = SocketAddr::new(config.host, config.port);
        let listener = TcpListener::bind(requested)
            .await
            .map_err(|source| SimulatorStartError::Bind { address: requested, source })?;
        let address =
            listener.local_addr().map_err(|source| SimulatorStartError::Bind { address: requested, source })?;
        let server = Arc::new(SimulatedServer::new(config));
        lora::load_modules(&server).map_err(|refusal| SimulatorStartError::LoraModules(refusal.to_string()))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(serve::serve(Arc::clone(&server), listener));
        Ok(Self { server, address, tasks })
    }

    /// Returns the address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the base URL of the server.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes knobs. Requests in flight observe the change at their next step.
    pub fn update_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        self.server.update_knobs(change);
    }

    /// Returns a copy of the current knobs.
    pub fn knobs(&self) -> Knobs {
        self.server.knobs()
    }

    /// Returns the request counts so far.
    pub fn counters(&self) -> RequestCounters {
        self.server.request_log().counters.clone()
    }

    /// Returns the last 4096 requests that were answered, the oldest first.
    pub fn answered_requests(&self) -> Vec<LogEntry> {
        self.server.request_log().log.iter().cloned().collect()
    }

    /// Returns names and sources of the loaded adapters. No request is made, so nothing is counted.
    pub fn adapters(&self) -> Vec<(String, String)> {
        let adapters = self.server.adapters();
        adapters.iter().map(|adapter| (adapter.name.clone(), adapter.source.clone())).collect()
    }

    /// Closes every connection and stops listening, as `kill -9` does. A new server can use the same port.
    pub async fn crash(mut self) {
        self.server.crash("crash was requested");
        self.wait_exit().await;
    }

    /// Waits until the server ends, and returns the reason.
    pub async fn wait_exit(&mut self) -> String {
        while self.tasks.join_next().await.is_some() {}
        self.server.end_reason().unwrap_or_else(|| "stopped".to_owned())
    }
}

/// Why a simulator cannot start.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorStartError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}; choose another --port (0 picks a free one)")]
    Bind {
        /// Address that was requested.
        address: SocketAddr,
        /// Error of the operating system.
        source: io::Error,
    },
    /// An adapter of `--lora-modules` cannot be loaded; the text is vLLM's.
    #[error("{0}")]
    LoraModules(String),
}
