//! The data that `rollora local` sends over the control socket, in the types that both sides use.

use crate::snapshot::EventRecord;
use jiff::Timestamp;
use rollora_api::{rollout::Rollout, router_report::RulesReport, sidecar_status::SidecarStatus};
use serde::{Deserialize, Serialize};

/// Everything that the CLI shows of one Rollout, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// When the overview was created.
    pub at: Timestamp,
    /// Address on which the gateway listens. `None` if the Rollout is on a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The Rollout, including its status.
    pub rollout: Rollout,
    /// State of the Rollout file.
    pub rollout_file: FileView,
    /// State of the adapters file.
    pub adapters_file: FileView,
    /// All vLLM servers behind the gateway; empty if the Rollout is on a cluster.
    pub servers: Vec<ServerView>,
    /// The rules that the gateway applies; empty if the Rollout is on a cluster.
    pub rules: RulesReport,
    /// The last events, oldest first.
    pub events: Vec<EventRecord>,
}

/// State of one input file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileView {
    /// Path of the file; empty if the Rollout is on a cluster.
    pub path: String,
    /// Why the current content is not active: file, line and fix. The last valid content stays active. `None` if the
    /// current content is active.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// State of one vLLM server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    /// Host and port of the server.
    pub name: String,
    /// Whether the gateway sends requests to the server.
    pub ready: bool,
    /// Number of requests in flight on the server.
    pub in_flight: usize,
    /// Whether an adapter is on trial there, so that requests go to other servers if possible.
    pub pilot: bool,
    /// Status that the server's sidecar reports.
    pub status: SidecarStatus,
}

/// Body of an error response of the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// Why the request was refused, for people.
    pub error: String,
}
