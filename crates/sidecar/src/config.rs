//! Configuration of a sidecar: everything except the adapters file.

use crate::backoff::Backoff;
use rollora_vllm::{Endpoint, Timeouts};
use std::time::Duration;

/// Configuration of one sidecar.
#[derive(Debug, Clone)]
pub struct SidecarConfig {
    /// The server's name as the operator directives use it: its pod, or on one machine its `host:port`.
    pub server_name: String,
    /// Address, API key and TLS settings of vLLM.
    pub endpoint: Endpoint,
    /// Timeouts of the calls to vLLM.
    pub timeouts: Timeouts,
    /// Limits and delays that decisions depend on.
    pub policy: SidecarPolicy,
    /// How long a stop waits for calls in flight; 1 s by default.
    pub shutdown_grace: Duration,
}

impl SidecarConfig {
    /// Returns the configuration for the server at `endpoint`, with everything else at its default.
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

/// Limits and delays that decisions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SidecarPolicy {
    /// The most concurrent loads of local paths; 4 by default. Hub names are loaded one at a time.
    pub max_parallel: usize,
    /// Whether a registered adapter is verified by a completion. If `false`, registration counts as verified.
    pub probe_enabled: bool,
    /// An adapter that was used within this time is not unloaded; 30 s by default.
    pub unload_grace: Duration,
    /// For how long after its start a server stays unready because of adapters that are neither serving nor required;
    /// 5 min by default.
    pub settle_timeout: Duration,
    /// Retry delays after failures, per adapter.
    pub backoff: Backoff,
    /// Intervals of the polls of vLLM.
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

/// Intervals of the polls of vLLM while no event requests an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollIntervals {
    /// Interval of `/health`; 250 ms by default.
    pub health: Duration,
    /// Interval of `/v1/models`, which shows changes by other clients; 5 s by default.
    pub models: Duration,
    /// Interval of `/metrics` while an adapter is retiring, for its last use; 1 s by default.
    pub metrics_retiring: Duration,
    /// Interval of `/metrics` otherwise, for the identity of the server process; 15 s by default. One read costs the
    /// server 10 ms.
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
