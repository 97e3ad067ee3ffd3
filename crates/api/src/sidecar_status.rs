//! Response of a sidecar's `GET /status`: the adapters of one vLLM server, and what the sidecar does about each.
//!
//! `cargo xtask crds` writes its JSON Schema to `docs/sidecar-status.schema.json`.

use crate::{adapters::ContentHash, names::AdapterId};
use serde::{Deserialize, Serialize};

#[cfg(feature = "kube")]
mod schema;
#[cfg(feature = "kube")]
pub use schema::schema;

/// State of one vLLM server, as its sidecar last observed it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SidecarStatus {
    /// Server process that the other fields describe; null while it cannot be reached.
    pub server: Option<ServerIdentity>,
    /// Whether requests may be sent to the server, and why.
    pub readiness: ReadinessStatus,
    /// Adapters file that is active, and the error of a newer one.
    pub config: ConfigStatus,
    /// Base models that the server lists in `/v1/models`.
    #[serde(default)]
    pub base_models: Vec<String>,
    /// Every adapter that the adapters file or vLLM's `/v1/models` lists, sorted by id.
    #[serde(default)]
    pub adapters: Vec<AdapterStatus>,
    /// Error of the server as a whole that a person must fix (runtime updating off, wrong API key, unreachable).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ReportedError>,
    /// `max_loras` of the server. Absent while the server's metrics do not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_loras: Option<u32>,
    /// When the sidecar last read the use of adapters from vLLM's metrics, by the same clock as lastUsed. Every earlier
    /// use is included in lastUsed. Absent if the metrics do not show use (endpoint closed, or statistics disabled).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub usage_read_at: Option<jiff::Timestamp>,
}

impl SidecarStatus {
    /// Returns the entry of the adapter `id`.
    pub fn adapter(&self, id: &AdapterId) -> Option<&AdapterStatus> {
        self.adapters.iter().find(|adapter| adapter.id == *id)
    }

    /// Returns whether the server answers requests for `id`: it is registered and not about to be unloaded.
    pub fn is_resident(&self, id: &AdapterId) -> bool {
        self.server.is_some() && self.adapter(id).is_some_and(|adapter| adapter.state.is_resident())
    }

    /// Returns whether the server has answered a completion with `id`.
    pub fn is_verified(&self, id: &AdapterId) -> bool {
        self.server.is_some() && self.adapter(id).is_some_and(|adapter| adapter.state == AdapterState::Verified)
    }
}

/// Identity of one vLLM process. Changes with every restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServerIdentity {
    /// Base URL of the server.
    pub endpoint: String,
    /// `process_start_time_seconds` of the server's metrics, as written there.
    pub start: String,
}

/// Reason of a [`ReadinessStatus`] that comes from vLLM itself, because no sidecar is needed to prove residency.
pub const NO_SIDECAR: &str = "NoSidecar";

/// Reason of a [`ReadinessStatus`] that is not ready until the serving and the required adapters are verified.
pub const ADAPTERS_NOT_VERIFIED: &str = "AdaptersNotVerified";

/// Reason of a [`ReadinessStatus`] while the sidecar checks whether the vLLM process is still the one it observed.
pub const SUSPECT: &str = "Suspect";

/// Whether requests may be sent to the server, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReadinessStatus {
    /// Whether requests may be sent to the server.
    pub ready: bool,
    /// Reason for `ready`, one word in CamelCase.
    pub reason: String,
    /// Details of the reason, for people.
    pub message: String,
}

impl Default for ReadinessStatus {
    fn default() -> Self {
        Self { ready: false, reason: "Starting".to_owned(), message: "the sidecar has not polled vLLM yet".to_owned() }
    }
}

/// Adapters file that is active in a sidecar, and the error of a newer one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// Hash of the active content: the user's file and the key `rollora.yaml` together. Null before the first
    /// valid content.
    pub hash: Option<ContentHash>,
    /// Whether the key `rollora.yaml` is present.
    pub operator_directives: bool,
    /// Why newer content is not active. The last valid content stays active meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

// The operator keeps tens of thousands of these, so fields that are rarely set are boxed.
/// State of one adapter on one server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AdapterStatus {
    /// Id of the adapter.
    pub id: AdapterId,
    /// State of the adapter on this server.
    pub state: AdapterState,
    /// Source of the adapter in the adapters file: a path or a hub name. Absent if the file does not list it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Path from which vLLM loaded the adapter, as listed in `/v1/models`. Absent while it is not registered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Number of failed attempts since the entry or the server process last changed.
    #[serde(default)]
    pub attempts: u32,
    /// Last error, with what a person can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<Box<ReportedError>>,
    /// When the sidecar tries again. Absent if no retry is scheduled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub next_try: Option<jiff::Timestamp>,
    /// When a request last used the adapter, according to vLLM's metrics, which show requests that generate two or more
    /// tokens. This is the time at which the sidecar read the metrics that showed the use, by the sidecar's clock, so
    /// it is never earlier than the use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(with = "Option<crate::schema::Time>"))]
    pub last_used: Option<jiff::Timestamp>,
    /// Progress of the download from a hub, if the sidecar downloads the adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Box<FetchStatus>>,
}

impl AdapterStatus {
    /// Creates the status of an adapter of which only the state is known.
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

/// Progress of the download of an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FetchStatus {
    /// Number of bytes on disk.
    pub bytes: u64,
    /// Total number of bytes. Absent while it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Commit that the revision resolved to at the time of the download.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

/// State of an adapter on one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum AdapterState {
    /// Desired; queued for loading.
    Pending,
    /// Desired, but managed by a Rollout that has not admitted the adapter on this server.
    AwaitingAdmission,
    /// The sidecar downloads the adapter from a hub into the directory that vLLM reads.
    Fetching,
    /// vLLM is loading the adapter.
    Loading,
    /// Registered, but not verified with a completion yet.
    Loaded,
    /// Registered, and the server has answered a completion with the adapter.
    Verified,
    /// Loading or verifying the adapter failed; the sidecar tries again at `nextTry`.
    Failed,
    /// The server crashed while loading the adapter or at its first use. The sidecar waits for the operator's decision
    /// before it tries again.
    ServerDied,
    /// The server crashed twice because of the adapter. The sidecar does not try again on this server.
    Quarantined,
    /// The operator rejected the adapter.
    Rejected,
    /// The id is registered from another source. The sidecar does nothing: new weights need a new id.
    SourceChanged,
    /// The source is not among those that the sidecar accepts: the adapter is neither downloaded nor loaded.
    SourceRefused,
    /// No longer desired: will be unloaded when it is idle. Also while an earlier unload may still be in progress.
    Unloading,
    /// Under `ensureNotExist`, but kept loaded because the operator lists it as serving.
    UnloadHeld,
    /// Neither registered nor desired.
    Gone,
    /// Registered, but under neither `ensureExist` nor `ensureNotExist`: left unchanged.
    Unlisted,
    /// Under both `ensureExist` and `ensureNotExist`: neither loaded nor unloaded.
    InBothLists,
}

impl AdapterState {
    /// Returns whether the server answers requests for the adapter and is not about to unload it.
    pub fn is_resident(self) -> bool {
        matches!(
            self,
            Self::Loaded | Self::Verified | Self::UnloadHeld | Self::SourceChanged | Self::Unlisted | Self::InBothLists
        )
    }
}

/// Error of a server or an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ReportedError {
    /// Class of the error, one word in CamelCase.
    pub reason: String,
    /// What failed, on which object, why, and what to do.
    pub message: String,
}

impl ReportedError {
    /// Returns whether the adapter itself is at fault, so that no retry, on this or another server, can succeed.
    pub fn is_adapter_error(&self) -> bool {
        matches!(self.reason.as_str(), "RankTooHigh" | "BadAdapter" | "NameConflict")
    }

    /// Returns whether the error says nothing about the adapter, however often it occurs: the hub is unreachable or
    /// limits requests, or the disk is full.
    pub fn is_infrastructure_error(&self) -> bool {
        matches!(self.reason.as_str(), "HubUnreachable" | "HubRateLimited" | "HubError" | "Disk")
    }
}
