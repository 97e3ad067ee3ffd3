//! The two ports through which the operator knows the world: [`Store`] for documents, [`Fleet`] for who has what and
//! who routes by what. Three implementations earn them: a cluster, one machine, and the simulated world of the tests.

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

/// The version of a stored document, to be sent with the next write. Opaque.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ResourceVersion(pub String);

/// A document and its version.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// The version that was read.
    pub resource_version: ResourceVersion,
    /// The document.
    pub value: T,
}

/// Which Rollout.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RolloutKey {
    /// Its namespace; none on one machine.
    pub namespace: Option<String>,
    /// Its name.
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

/// What must be true of a document before it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// It does not exist.
    Absent,
    /// It still is the version that was read.
    Unchanged(ResourceVersion),
}

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is written, and this is the new version.
    Done(ResourceVersion),
    /// Somebody wrote in between: read again.
    Conflict,
    /// It will never be taken as it is; the reason in words.
    Refused(String),
    /// It was not written; trying again may help.
    Unavailable(String),
    /// Nobody knows whether it was written: read before anything else.
    Unknown(String),
}

/// Why a read gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The store could not be asked; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// What is stored cannot be read; a person must change it. Says file, line and fix.
    #[error("{0}")]
    Invalid(String),
}

/// The adapters ConfigMap, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersDocument {
    /// The user's key, as it stands: the edit keeps its bytes.
    pub user_text: String,
    /// The operator's key.
    pub directives_text: Option<String>,
    /// Who else writes this ConfigMap, where labels or annotations say so (Argo CD, Flux).
    pub gitops_owner: Option<String>,
}

/// What changes in the adapters ConfigMap; what is none stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersWrite {
    /// The user's key, edited.
    pub user_text: Option<String>,
    /// The operator's key.
    pub directives_text: Option<String>,
}

/// Documents with versions.
///
/// A read never gives a version older than the last write that this store ended with [`Written::Done`]; after
/// [`Written::Unknown`] the next read of that document asks the source, not a cache.
pub trait DocumentStore: Send + Sync {
    /// Keys of Rollouts that something happened to, or to what they refer to. Begins with every Rollout there is.
    /// Where the fleet's news are cheap to hear of (one machine), they are among it; else they are polled.
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send;
    /// Whether somebody asked something of this Rollout that was not answered yet, as far as that is known without asking:
    /// it goes before others.
    fn has_pending_intent(&self, _key: &RolloutKey) -> bool {
        false
    }
    /// Every Rollout, for conflicts and references.
    fn rollouts(&self) -> impl Future<Output = Result<Vec<Versioned<Arc<Rollout>>>, ReadError>> + Send;
    /// Those of them that may matter to this one, itself among them; a store may leave out the others.
    fn related_rollouts(
        &self,
        _key: &RolloutKey,
    ) -> impl Future<Output = Result<Vec<Versioned<Arc<Rollout>>>, ReadError>> + Send {
        self.rollouts()
    }
    /// One Rollout; none where it was deleted.
    fn rollout(
        &self,
        key: &RolloutKey,
    ) -> impl Future<Output = Result<Option<Versioned<Arc<Rollout>>>, ReadError>> + Send;
    /// Every rewrite of both groups in the Rollout's namespace that may matter to it.
    fn rewrites(
        &self,
        key: &RolloutKey,
    ) -> impl Future<Output = Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError>> + Send;
    /// The adapters ConfigMap; none where it does not exist. Where `at_least` was read before, by whomever, nothing older
    /// is given: then the source is asked.
    fn adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        at_least: Option<&ResourceVersion>,
    ) -> impl Future<Output = Result<Option<Versioned<AdaptersDocument>>, ReadError>> + Send;
    /// Whether both name the same adapters ConfigMap.
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
    /// The group of rewrites that have to be made, where the store knows better than whoever started the operator:
    /// kinds are installed and removed while it runs. `kept` is the group that the Rollout has worked with so far.
    fn new_rewrite_group(&self, _kept: Option<RewriteGroup>) -> Option<RewriteGroup> {
        None
    }
    /// Whether a Rollout can be held back from its deletion until its traffic is in order.
    fn supports_finalizers(&self) -> bool {
        false
    }
    /// Puts our finalizer on the Rollout that was read as `version`, or takes it off.
    fn set_finalizer(
        &self,
        _key: &RolloutKey,
        _version: &ResourceVersion,
        _guarded: bool,
    ) -> impl Future<Output = WriteOutcome> + Send {
        std::future::ready(WriteOutcome::Refused("nothing is deleted here".to_owned()))
    }
    /// Tells people. Best effort: an event that is lost changes nothing.
    fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) -> impl Future<Output = ()> + Send;
}

/// No pod is asked the same more often than once in this time; until then its last answer is all there is.
pub const RESPONSE_TTL: Duration = Duration::from_secs(1);

/// What all of a kind said.
#[derive(Debug, Clone, PartialEq)]
pub struct Polled<T> {
    /// Each with its answer.
    pub responses: Vec<T>,
    /// When the oldest answer was asked for; none where nobody has to be asked, because it is known at any time.
    pub oldest_request: Option<Instant>,
}

impl<T> From<Vec<T>> for Polled<T> {
    fn from(answers: Vec<T>) -> Self {
        Self { responses: answers, oldest_request: None }
    }
}

/// Who has what, and who routes by what.
pub trait Fleet: Send + Sync {
    /// Every server of the pool, Ready or not.
    fn servers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
    ) -> impl Future<Output = Result<Polled<ObservedServer>, ReadError>> + Send;
    /// Every server of another pool, or of none, that reads the same adapters file: what leaves it leaves them too.
    fn other_pool_servers(
        &self,
        _key: &RolloutKey,
        _pool: &PoolRef,
        _reference: &AdaptersRef,
    ) -> impl Future<Output = Result<Polled<ObservedServer>, ReadError>> + Send {
        std::future::ready(Ok(Vec::new().into()))
    }
    /// Every router replica that executes rewrites of the pool, also terminating and unready ones.
    fn routers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        model: &ModelName,
    ) -> impl Future<Output = Result<Polled<ObservedRouter>, ReadError>> + Send;
}
