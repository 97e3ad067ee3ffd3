//! The observed state: plain data that the caller of [`crate::decide()`] has gathered.

use jiff::Timestamp;
use rollora_api::{
    adapters::{AdaptersFile, ContentHash},
    names::{AdapterId, Sequence},
    operator_directives::OperatorDirectives,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::Rollout,
    router_report::RulesReport,
    sidecar_status::SidecarStatus,
};
use std::{sync::Arc, time::Duration};

/// Everything that one decision reads. A part that could not be observed is an [`ObserveError`].
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedState {
    /// The adapters ConfigMap; `None` if it does not exist.
    pub adapters: Result<Option<AdaptersConfigMap>, ObserveError>,
    /// Every rewrite of both API groups in the Rollout's namespace.
    pub rewrites: Result<Vec<Arc<InferenceModelRewrite>>, ObserveError>,
    /// Every server of the Rollout's pool, Ready or not.
    pub servers: Result<Vec<ObservedServer>, ObserveError>,
    /// Every server of other pools that reads the same adapters file.
    pub other_pool_servers: Result<Vec<ObservedServer>, ObserveError>,
    /// Every router replica that exists.
    pub routers: Result<Vec<ObservedRouter>, ObserveError>,
    /// How soon servers and routers that are changing are polled again.
    pub poll_after: Duration,
    /// Every Rollout, including this one.
    pub rollouts: Result<Vec<Arc<Rollout>>, ObserveError>,
    /// The API group of a rewrite that is created.
    pub new_rewrite_group: RewriteGroup,
    /// Whether the deletion of a Rollout can be held back by a finalizer (not with `rollora local`).
    pub supports_finalizers: bool,
    /// Why the last write was refused; `None` if it was not.
    pub write_refusal: Option<String>,
    /// The sequence of our last write of the rewrite, if another writer has overwritten it since the last decision;
    /// `rewrites` are at least as new as that.
    pub overwritten_sequence: Option<Sequence>,
}

/// Why a part of the state could not be observed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObserveError {
    /// The part may be observable later; polling again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The stored data cannot be parsed; a person must fix it.
    #[error("{0}")]
    Invalid(String),
    /// The part was not queried, because the decision could not wait for it.
    #[error("not queried yet")]
    NotAttempted,
}

/// One version of the adapters ConfigMap: the adapters file and the operator directives.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptersConfigMap {
    /// The `resourceVersion` of the ConfigMap.
    pub version: String,
    /// When this process first read this version.
    pub first_read_at: Timestamp,
    /// The hash of the current content, see [`rollora_api::adapters::content_hash`].
    pub hash: ContentHash,
    /// The user's key as text, byte for byte.
    pub user_text: String,
    /// The user's key as parsed, or why it cannot be parsed, with the line and the fix.
    pub file: Result<AdaptersFile, String>,
    /// The operator directives (the key `rollora.yaml`); empty if the key is missing.
    pub directives: OperatorDirectives,
    /// The GitOps tool that owns this ConfigMap according to its labels or annotations, such as `Argo CD`; else `None`.
    pub gitops_owner: Option<String>,
}

/// Which lists of the adapters file contain an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterListing {
    /// Listed under `ensureExist` only.
    EnsureExist,
    /// Listed under `ensureNotExist` only.
    EnsureNotExist,
    /// Listed in both: neither the operator nor a sidecar acts on it.
    Both,
    /// Listed in neither of them.
    Absent,
}

impl AdapterListing {
    /// Returns which lists of `file` contain `id`.
    pub fn of(id: &AdapterId, file: &AdaptersFile) -> Self {
        let exist = file.ensure_exist.iter().any(|entry| entry.id == *id);
        let not_exist = file.ensure_not_exist.iter().any(|entry| entry.id == *id);
        match (exist, not_exist) {
            (true, false) => Self::EnsureExist,
            (false, true) => Self::EnsureNotExist,
            (true, true) => Self::Both,
            (false, false) => Self::Absent,
        }
    }
}

/// One vLLM server of a pool: a pod and a port, or a URL with `rollora local`.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedServer {
    /// The pod's name, as in [`rollora_api::operator_directives::Pilot::pod`].
    pub name: String,
    /// The pod's UID, or the server's URL with `rollora local`.
    pub uid: String,
    /// Whether Kubernetes (with `rollora local`: the gateway) sends requests to it.
    pub ready: bool,
    /// Since when it is not Ready; `None` if it is Ready or the time is not known.
    pub unready_since: Option<Timestamp>,
    /// Whether its pod is being deleted and so will not become Ready again.
    pub terminating: bool,
    /// The report of its sidecar, or why the sidecar could not be queried.
    pub status: Result<Arc<SidecarStatus>, String>,
}

#[cfg(test)]
impl ObservedServer {
    /// Returns a Ready server whose sidecar reports `status`.
    pub(crate) fn ready(name: &str, status: SidecarStatus) -> Self {
        Self {
            name: name.to_owned(),
            uid: name.to_owned(),
            ready: true,
            unready_since: None,
            terminating: false,
            status: Ok(status.into()),
        }
    }
}

/// One replica of the router that applies the rules.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedRouter {
    /// The replica's name: of its pod, or `gateway` with `rollora local`.
    pub name: String,
    /// The rules active at the replica, or why it could not be queried.
    pub report: Result<Arc<RulesReport>, String>,
}
