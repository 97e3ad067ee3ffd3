//! What the world looks like: plain data that whoever calls the plan has gathered.

use rollora_api::{router_report::RulesReport, sidecar_status::SidecarStatus};

/// One vLLM server of a pool: a pod and a port; on one machine a URL.
#[derive(Debug, Clone, PartialEq)]
pub struct Server {
    /// The pod's name; the same word as in [`rollora_api::operator_key::Pilot::pod`].
    pub name: String,
    /// The pod's UID; on one machine the server's URL.
    pub uid: String,
    /// Whether Kubernetes (on one machine: the gateway) sends requests there.
    pub ready: bool,
    /// What its sidecar says, or why it could not be asked.
    pub status: Result<SidecarStatus, String>,
}

/// One router replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Router {
    /// The replica's name.
    pub name: String,
    /// The rules in force there, or why it could not be asked.
    pub report: Result<RulesReport, String>,
}
