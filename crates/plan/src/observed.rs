//! What the world looks like: plain data that whoever calls the plan has gathered.

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

/// Everything one decision looks at, each part as far as it could be observed.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedState {
    /// The adapters ConfigMap; none where it does not exist.
    pub adapters: Result<Option<AdaptersConfigMap>, ObserveError>,
    /// Every rewrite of both groups in the Rollout's namespace.
    pub rewrites: Result<Vec<Arc<InferenceModelRewrite>>, ObserveError>,
    /// Every server of the pool.
    pub servers: Result<Vec<ObservedServer>, ObserveError>,
    /// Every server of another pool that reads the same adapters file.
    pub other_pool_servers: Result<Vec<ObservedServer>, ObserveError>,
    /// Every router replica.
    pub routers: Result<Vec<ObservedRouter>, ObserveError>,
    /// How soon servers and routers that are on their way there can have something new to say.
    pub poll_after: Duration,
    /// Every Rollout, this one among them.
    pub rollouts: Result<Vec<Arc<Rollout>>, ObserveError>,
    /// The API group of a rewrite that has to be made.
    pub new_rewrite_group: RewriteGroup,
    /// Whether a Rollout can be held back from its deletion until its traffic is in order.
    pub supports_finalizers: bool,
    /// Why the last write was refused, where it was.
    pub write_refusal: Option<String>,
    /// The sequence of a rewrite that was taken from us since the last look, and that `rewrites` are not older than.
    pub overwritten_sequence: Option<Sequence>,
}

/// Why a part of the world could not be observed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObserveError {
    /// Asking again may help.
    #[error("{0}")]
    Unavailable(String),
    /// What is stored cannot be read; a person must change it.
    #[error("{0}")]
    Invalid(String),
    /// It was not asked, because the decision could not wait for it.
    #[error("not asked yet")]
    NotAttempted,
}

/// The adapters ConfigMap.
#[derive(Debug, Clone, PartialEq)]
pub struct AdaptersConfigMap {
    /// Its version.
    pub version: String,
    /// When this version was read first.
    pub first_read_at: Timestamp,
    /// The hash of the present content, see [`rollora_api::adapters::content_hash`].
    pub hash: ContentHash,
    /// The user's key, as it stands.
    pub user_text: String,
    /// The user's key as it is read, or why it cannot be, with line and fix.
    pub file: Result<AdaptersFile, String>,
    /// The operator's key; empty where there is none.
    pub directives: OperatorDirectives,
    /// Who else writes this ConfigMap, where its labels or annotations say so.
    pub gitops_owner: Option<String>,
}

/// Where an id stands in the adapters file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterListing {
    /// Under `ensureExist` only.
    EnsureExist,
    /// Under `ensureNotExist` only.
    EnsureNotExist,
    /// In both lists: left alone.
    Both,
    /// In neither.
    Absent,
}

impl AdapterListing {
    /// Where `id` stands in `file`.
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

/// One vLLM server of a pool: a pod and a port; on one machine a URL.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedServer {
    /// The pod's name; the same word as in [`rollora_api::operator_directives::Pilot::pod`].
    pub name: String,
    /// The pod's UID; on one machine the server's URL.
    pub uid: String,
    /// Whether Kubernetes (on one machine: the gateway) sends requests there.
    pub ready: bool,
    /// Since when it is not; none where it is, or where that is not known.
    pub unready_since: Option<Timestamp>,
    /// Whether its pod is being deleted: it will not be Ready again.
    pub terminating: bool,
    /// What its sidecar says, or why it could not be asked.
    pub status: Result<Arc<SidecarStatus>, String>,
}

#[cfg(test)]
impl ObservedServer {
    /// One that is Ready, and whose sidecar says this.
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

/// One router replica.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedRouter {
    /// The replica's name.
    pub name: String,
    /// The rules in force there, or why it could not be asked.
    pub report: Result<Arc<RulesReport>, String>,
}
