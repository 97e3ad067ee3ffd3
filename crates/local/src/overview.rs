//! What `rollora local` tells `rollora` over the control socket: plain data, the same type on both sides.

use crate::snapshot::EventRecord;
use jiff::Timestamp;
use rollora_api::{rollout::Rollout, router_report::RulesReport, sidecar_status::SidecarStatus};
use serde::{Deserialize, Serialize};

/// Everything that a person may want to see, at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    /// When this was put together.
    pub at: Timestamp,
    /// Where the gateway listens; none where there is no gateway of ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen: Option<String>,
    /// The Rollout, with its status.
    pub rollout: Rollout,
    /// The Rollout's file.
    pub rollout_file: FileView,
    /// The adapters file.
    pub adapters_file: FileView,
    /// Every vLLM server.
    pub servers: Vec<ServerView>,
    /// The rules in force at the gateway.
    pub rules: RulesReport,
    /// What happened, oldest first.
    pub events: Vec<EventRecord>,
}

/// One of the two files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileView {
    /// Where it is.
    pub path: String,
    /// Why it is not in force as it stands now: file, line, fix. What was in force before stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// One vLLM server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerView {
    /// Its host and port.
    pub name: String,
    /// Whether the gateway sends requests there.
    pub ready: bool,
    /// Requests in flight there.
    pub in_flight: usize,
    /// Whether an adapter is on trial there, so that requests go elsewhere if they can.
    pub pilot: bool,
    /// What its sidecar says.
    pub status: SidecarStatus,
}

/// What the control socket answers where it does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorResponse {
    /// Why, in words.
    pub error: String,
}
