//! The two ports of the operator: [`DocumentStore`] for versioned documents, [`Fleet`] for servers and routers.
//!
//! Three implementations justify the traits: a cluster, one machine, and the simulated world of the tests.

use futures_util::Stream;
use rollora_api::{
    names::ModelName,
    rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup},
    rollout::{Rollout, RolloutStatus, spec::AdaptersRef},
};
use std::{fmt, future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;

pub use rollora_plan::{
    event::RolloutEvent,
    observed::{ObservedRouter, ObservedServer},
};

/// Opaque version of a stored document, sent as the precondition of the next write.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceVersion(pub String);

/// A document together with the version that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// Version of the document at the time of the read.
    pub resource_version: ResourceVersion,
    /// The document's content at that version.
    pub value: T,
}

/// Namespace and name of a Rollout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RolloutKey {
    /// `None` on one machine, where there are no namespaces.
    pub namespace: Option<String>,
    /// `metadata.name` of the Rollout.
    pub name: String,
}

impl fmt::Display for RolloutKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// Condition that a document must meet for a write to succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// The document does not exist: the write creates it.
    Absent,
    /// The document still has the version that was read.
    Unchanged(ResourceVersion),
}

/// Outcome of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The write succeeded; holds the new version.
    Done(ResourceVersion),
    /// The document changed since it was read; read it again before the next attempt.
    Conflict,
    /// The write will not be accepted as it is, for the given reason; retrying without a change does not help.
    Refused(String),
    /// The write did not happen, for the given reason; a retry may succeed.
    Unavailable(String),
    /// The write may or may not have happened, for the given reason; read the document before anything else.
    Unknown(String),
}

/// Reason why a read returned nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store could not be reached; a retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The stored document cannot be parsed; a person must fix it. The text names file, line and fix.
    #[error("{0}")]
    Invalid(String),
}

/// The adapters ConfigMap as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersDocument {
    /// Text under the user's key, byte for byte: edits preserve everything that they do not change.
    pub user_text: String,
    /// Text under the operator's key `rollora.yaml`; `None` if the ConfigMap has no such key.
    pub directives_text: Option<String>,
    /// The GitOps tool that manages this ConfigMap according to its labels or annotations (Argo CD, Flux).
    pub gitops_owner: Option<String>,
}

/// A partial write of the adapters ConfigMap; keys that are `None` stay unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersWrite {
    /// New text for the user's key.
    pub user_text: Option<String>,
    /// New text for the operator's key `rollora.yaml`.
    pub directives_text: Option<String>,
}

/// Port for versioned documents: Rollouts, rewrites, and adapters ConfigMaps.
///
/// A read never returns a version older than the last write that this store ended with [`WriteOutcome::Done`]. After
/// [`WriteOutcome::Unknown`] the next read of that document goes to the source, not to a cache.
pub trait DocumentStore: Send + Sync {
    /// Returns the keys of Rollouts that changed, or whose related objects changed, starting with every existing
    /// Rollout.
    ///
    /// Changes of servers and routers are included if the implementation can watch them cheaply (one machine);
    /// otherwise the operator polls them.
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send;
    /// Returns whether the Rollout has an intent that its status has not answered, as far as the cache knows.
    /// Such Rollouts are reconciled first.
    fn has_pending_intent(&self, _key: &RolloutKey) -> bool {
        false
    }
    /// Returns every Rollout, to detect conflicts and shared references.
    fn rollouts(&self) -> impl Future<Output = Result<Vec<Versioned<Arc<Rollout>>>, ReadError>> + Send;
    /// Returns this Rollout and all others that may matter to it; an implementation may leave out the rest.
    fn related_rollouts(
        &self,
        _key: &RolloutKey,
    ) -> impl Future<Output = Result<Vec<Versioned<Arc<Rollout>>>, ReadError>> + Send {
        self.rollouts()
    }
    /// Returns one Rollout; `None` if it does not exist.
    fn rollout(
        &self,
        key: &RolloutKey,
    ) -> impl Future<Output = Result<Option<Versioned<Arc<Rollout>>>, ReadError>> + Send;
    /// Returns the rewrites of both API groups in the Rollout's namespace that may matter to it.
    fn rewrites(
        &self,
        key: &RolloutKey,
    ) -> impl Future<Output = Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError>> + Send;
    /// Returns the adapters ConfigMap; `None` if it does not exist.
    ///
    /// The result is never older than `at_least`, a version that this or another operator has read before; if the
    /// cache is older, the source is read.
    fn adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        at_least: Option<&ResourceVersion>,
    ) -> impl Future<Output = Result<Option<Versioned<AdaptersDocument>>, ReadError>> + Send;
    /// Returns whether both references name the same adapters ConfigMap.
    fn is_same_adapters_file(&self, one: &AdaptersRef, other: &AdaptersRef) -> bool {
        one.name == other.name
    }
    /// Writes the status of a Rollout that was read as `version`.
    fn write_status(
        &self,
        key: &RolloutKey,
        version: &ResourceVersion,
        status: &RolloutStatus,
    ) -> impl Future<Output = WriteOutcome> + Send;
    /// Creates or replaces a rewrite.
    fn write_rewrite(
        &self,
        key: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> impl Future<Output = WriteOutcome> + Send;
    /// Writes keys of the adapters ConfigMap that was read as `version`.
    fn write_adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        version: &ResourceVersion,
        write: &AdaptersWrite,
    ) -> impl Future<Output = WriteOutcome> + Send;
    /// Returns the API group for rewrites that have to be created, or `None` to use the operator's setting.
    ///
    /// The store overrides the setting because CRDs can be installed and removed at run time. `kept` is the group that
    /// the Rollout has used so far.
    fn new_rewrite_group(&self, _kept: Option<RewriteGroup>) -> Option<RewriteGroup> {
        None
    }
    /// Returns whether a finalizer can delay the deletion of a Rollout until its traffic is restored.
    fn supports_finalizers(&self) -> bool {
        false
    }
    /// Adds (`present`) or removes our finalizer on the Rollout that was read as `version`.
    fn set_finalizer(
        &self,
        _key: &RolloutKey,
        _version: &ResourceVersion,
        _present: bool,
    ) -> impl Future<Output = WriteOutcome> + Send {
        std::future::ready(WriteOutcome::Refused("this store does not support finalizers".to_owned()))
    }
    /// Publishes an event for people to read. Best effort: a lost event changes no decision.
    fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) -> impl Future<Output = ()> + Send;
}

/// Time for which a pod's response is reused: the same request is not sent to a pod more often than this.
pub const RESPONSE_TTL: Duration = Duration::from_secs(1);

/// Responses of all pods of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct Polled<T> {
    /// One response per pod.
    pub responses: Vec<T>,
    /// When the oldest response was requested; `None` if nothing is requested because the state is known at any time.
    pub oldest_request: Option<Instant>,
}

impl<T> From<Vec<T>> for Polled<T> {
    fn from(responses: Vec<T>) -> Self {
        Self { responses, oldest_request: None }
    }
}

/// Port for the observed state of servers and routers: loaded adapters and applied weights.
pub trait Fleet: Send + Sync {
    /// Returns every server of the pool, Ready or not.
    fn servers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
    ) -> impl Future<Output = Result<Polled<ObservedServer>, ReadError>> + Send;
    /// Returns the servers of other pools, or of no pool, that read the same adapters file.
    ///
    /// An id that leaves the file is unloaded on these servers too.
    fn other_pool_servers(
        &self,
        _key: &RolloutKey,
        _pool: &PoolRef,
        _reference: &AdaptersRef,
    ) -> impl Future<Output = Result<Polled<ObservedServer>, ReadError>> + Send {
        std::future::ready(Ok(Vec::new().into()))
    }
    /// Returns every router replica that executes rewrites of the pool, including terminating and unready ones.
    fn routers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        model: &ModelName,
    ) -> impl Future<Output = Result<Polled<ObservedRouter>, ReadError>> + Send;
}
