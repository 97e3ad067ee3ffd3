//! What `GET /status` of a sidecar answers: what one vLLM server holds, and what the sidecar is doing about it.
//!
//! Its JSON Schema is kept in `docs/sidecar-status.schema.json`; `cargo xtask crds` writes it.

use crate::{adapters::ContentHash, names::AdapterId};
use serde::{Deserialize, Serialize};

#[cfg(feature = "kube")]
mod schema;
#[cfg(feature = "kube")]
pub use schema::schema;

/// The state of one server, as its sidecar last saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// The server that everything below speaks of; none while it cannot be reached.
    pub server: Option<ServerIdentity>,
    /// Whether requests may be sent here, and if not, why.
    pub readiness: ReadinessStatus,
    /// The file in force.
    pub config: ConfigStatus,
    /// Base models that the server names in `/v1/models`.
    #[serde(default)]
    pub base_models: Vec<String>,
    /// Every id that is wanted, unwanted or registered, sorted by id.
    #[serde(default)]
    pub adapters: Vec<AdapterStatus>,
    /// What vLLM said of the server as a whole, where that needs a person (runtime updating off, wrong key, unreachable).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ReportedError>,
    /// `max_loras` of the server, where its metrics say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loras: Option<u32>,
    /// When vLLM's metrics were asked last, as far as they told of uses; by the same clock as lastUsed: what was used
    /// before says so in lastUsed. None where they do not tell (closed, or without statistics).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub usage_read_at: Option<jiff::Timestamp>,
}

impl SidecarStatus {
    /// The entry for `id`.
    pub fn adapter(&self, id: &AdapterId) -> Option<&AdapterStatus> {
        self.adapters.iter().find(|adapter| adapter.id == *id)
    }

    /// Whether requests for `id` will be answered here: registered, not about to be unloaded.
    pub fn is_resident(&self, id: &AdapterId) -> bool {
        self.server.is_some() && self.adapter(id).is_some_and(|adapter| adapter.state.is_resident())
    }

    /// Whether `id` has been proven here with a completion.
    pub fn is_verified(&self, id: &AdapterId) -> bool {
        self.server.is_some() && self.adapter(id).is_some_and(|adapter| adapter.state == AdapterState::Verified)
    }
}

/// Which process answers: changes with every restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServerIdentity {
    /// The server's base URL.
    pub endpoint: String,
    /// `process_start_time_seconds` of its metrics, as written there.
    pub start: String,
}

/// The reason of a [`Readiness`] that no sidecar said: vLLM was asked itself, because that suffices.
pub const NO_SIDECAR: &str = "NoSidecar";

/// The reason of a [`Readiness`] that is held back until the adapters that serve, or are required, are verified.
pub const ADAPTERS_NOT_VERIFIED: &str = "AdaptersNotVerified";

/// The reason of a [`Readiness`] while it is found out whether vLLM is still the one that was looked at.
pub const SUSPECT: &str = "Suspect";

/// Whether requests may be sent to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReadinessStatus {
    /// Whether they may.
    pub ready: bool,
    /// Why not, or why so, as one CamelCase word.
    pub reason: String,
    /// The same in words.
    pub message: String,
}

impl Default for ReadinessStatus {
    fn default() -> Self {
        Self { ready: false, reason: "Starting".to_owned(), message: "the sidecar has not asked vLLM yet".to_owned() }
    }
}

/// The adapters file in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// The hash of the content in force (user's file and operator's key together).
    pub hash: Option<ContentHash>,
    /// Whether the operator's key is seen.
    pub operator_directives: bool,
    /// Why newer content is not in force; the last good one stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

// The operator keeps tens of thousands of them: what most do not have is in a box.
/// One adapter on one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AdapterStatus {
    /// The adapter.
    pub id: AdapterId,
    /// Where it stands.
    pub state: AdapterState,
    /// Where the file says it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What vLLM has it from, as it lists it; none while it is not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Failed attempts since the entry or the server last changed.
    #[serde(default)]
    pub attempts: u32,
    /// What went wrong last, in words a person can act on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Box<ReportedError>>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub next_try: Option<jiff::Timestamp>,
    /// When a request last used it, as far as vLLM's metrics tell (requests of two tokens and more): when they were
    /// there that showed it, by the sidecar's clock, so not earlier than the use was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub last_used: Option<jiff::Timestamp>,
    /// What was brought of it from a hub, where the sidecar does that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Box<FetchStatus>>,
}

impl AdapterStatus {
    /// An adapter of which nothing else is known.
    pub fn new(id: AdapterId, state: AdapterState) -> Self {
        Self {
            id,
            state,
            source: None,
            root: None,
            attempts: 0,
            last_error: None,
            next_try: None,
            last_used: None,
            fetch: None,
        }
    }
}

/// How far the fetch of an adapter is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FetchStatus {
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes in all; none while they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// The commit that the revision stood for, when it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// Where an adapter stands on one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum AdapterState {
    /// Wanted; its turn comes.
    Pending,
    /// Wanted and governed by a Rollout that has not admitted it here.
    AwaitingAdmission,
    /// It is brought from a hub into the folder that vLLM reads.
    Fetching,
    /// vLLM has been asked to load it.
    Loading,
    /// Registered, not proven yet.
    Loaded,
    /// Registered, and a completion with it was answered.
    Verified,
    /// Loading or proving it failed; tried again at `nextTry`.
    Failed,
    /// The server died while loading it or at its first use; not tried again before the operator has answered.
    ServerDied,
    /// The server died twice over it: not tried again on this server.
    Quarantined,
    /// The operator rejected it.
    Rejected,
    /// Registered under this id from another source: nothing is done, use a new id.
    SourceChanged,
    /// Its source is not among those that the sidecar was told to accept: neither fetched nor loaded.
    SourceRefused,
    /// Unwanted, and it waits for the end of its use; or, whatever is wanted by now, an unload of it may still be done.
    Unloading,
    /// Unwanted by the file, held because the operator says that it is serving.
    UnloadHeld,
    /// Not registered, and not wanted.
    Gone,
    /// Registered, and in neither list: left alone.
    Unlisted,
    /// Registered, and in both lists: left alone.
    InBothLists,
}

impl AdapterState {
    /// Whether requests for the adapter are answered and nothing is about to change that.
    pub fn is_resident(self) -> bool {
        matches!(
            self,
            Self::Loaded | Self::Verified | Self::UnloadHeld | Self::SourceChanged | Self::Unlisted | Self::InBothLists
        )
    }
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReportedError {
    /// One CamelCase word, the class of the error.
    pub reason: String,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl ReportedError {
    /// Whether the adapter itself is at fault, so that another try, here or on another server, cannot help.
    pub fn is_adapter_error(&self) -> bool {
        matches!(self.reason.as_str(), "RankTooHigh" | "BadAdapter" | "NameConflict")
    }

    /// Whether it says nothing about the adapter, however often it happens: the hub is away, or the disk is full.
    pub fn is_infrastructure_error(&self) -> bool {
        matches!(self.reason.as_str(), "HubUnreachable" | "HubRateLimited" | "HubError" | "Disk")
    }
}
