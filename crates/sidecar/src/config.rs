//! How a sidecar behaves; everything that is not the adapters file.

use crate::backoff::Backoff;
use rollora_vllm::{Endpoint, Timeouts};
use std::time::Duration;

/// One sidecar.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// The server's name: its pod, or on one machine its `host:port`. The same word as in the operator's key.
    pub server_name: String,
    /// Where vLLM is.
    pub endpoint: Endpoint,
    /// How long calls may take.
    pub timeouts: Timeouts,
    /// What is decided how.
    pub policy: SidecarPolicy,
    /// How long calls under way may take to end when it is stopped.
    pub shutdown_grace: Duration,
}

impl SidecarConfig {
    /// A sidecar of `endpoint` with everything else at its default.
    pub fn new(name: impl Into<String>, endpoint: Endpoint) -> Self {
        let shutdown_grace = Duration::from_secs(1);
        Self {
            server_name: name.into(),
            endpoint,
            timeouts: Timeouts::default(),
            policy: SidecarPolicy::default(),
            shutdown_grace,
        }
    }
}

/// The numbers that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarPolicy {
    /// Loads of local paths at the same time. Hub names go one at a time.
    pub max_parallel: usize,
    /// Whether a registered adapter is proven by a completion. Without it, registration counts as proof.
    pub probe_enabled: bool,
    /// An adapter that was used within this time is not unloaded.
    pub unload_grace: Duration,
    /// How long adapters that neither serve nor are required hold the readiness of a server that started.
    pub settle_timeout: Duration,
    /// Waits after failures, per adapter.
    pub backoff: Backoff,
    /// How often things are looked at.
    pub intervals: PollIntervals,
}

impl Default for SidecarPolicy {
    fn default() -> Self {
        Self {
            max_parallel: 4,
            probe_enabled: true,
            unload_grace: Duration::from_secs(30),
            settle_timeout: Duration::from_mins(5),
            backoff: Backoff::default(),
            intervals: PollIntervals::default(),
        }
    }
}

/// How often things are looked at when nothing hurries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollIntervals {
    /// `/health`.
    pub health: Duration,
    /// `/v1/models`, for changes by others.
    pub models: Duration,
    /// `/metrics` while an adapter is on its way out, for its last use.
    pub metrics_retiring: Duration,
    /// `/metrics` otherwise, for the server's identity. It costs the server 10 ms.
    pub metrics: Duration,
}

impl Default for PollIntervals {
    fn default() -> Self {
        Self {
            health: Duration::from_millis(250),
            models: Duration::from_secs(5),
            metrics_retiring: Duration::from_secs(1),
            metrics: Duration::from_secs(15),
        }
    }
}
