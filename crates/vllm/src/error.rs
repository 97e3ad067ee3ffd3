//! Failures of calls to vLLM, classified by what to do about them.

use rollora_api::names::AdapterId;
use std::time::Duration;

/// Why a call failed. The texts say what failed, on which object, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VllmError {
    /// The server does not have the endpoints for loading and unloading adapters.
    #[error(
        "vLLM does not allow loading or unloading while it runs: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    )]
    RuntimeUpdatingOff,
    /// The server was started without `--enable-lora`.
    #[error("vLLM runs without LoRA: start it with --enable-lora")]
    LoraOff,
    /// The path does not exist, or the hub does not have the adapter or cannot be reached.
    #[error(
        "vLLM found no adapter `{id}` at `{path}`: check that this folder exists where vLLM runs and holds \
         adapter_config.json, or, for a hub name, that the name is right and vLLM can reach the hub"
    )]
    AdapterNotFound {
        /// Id of the adapter.
        id: AdapterId,
        /// Path or hub name that vLLM was given.
        path: String,
    },
    /// The adapter's rank is higher than the server's `--max-lora-rank`.
    #[error(
        "adapter `{id}` has rank {rank} and vLLM takes at most {max}: start vLLM with --max-lora-rank {rank}, or train a smaller rank"
    )]
    RankTooHigh {
        /// Id of the adapter.
        id: AdapterId,
        /// Rank of the adapter.
        rank: u32,
        /// Highest rank that the server accepts.
        max: u32,
    },
    /// vLLM read the adapter and cannot use it because of its weights, configuration, or modules.
    #[error("vLLM cannot use adapter `{id}` from `{path}` ({detail}): fix its files and give them a new id")]
    BadAdapter {
        /// Id of the adapter.
        id: AdapterId,
        /// Path or hub name that vLLM was given.
        path: String,
        /// Error message of vLLM.
        detail: String,
    },
    /// A base model of the server has this name.
    #[error("`{id}` is the name of a base model of this server: give the adapter another id")]
    NameConflict {
        /// Id of the adapter.
        id: AdapterId,
    },
    /// The id is already registered, from the same or another path.
    #[error("adapter `{id}` is loaded already: nothing to do if it came from the same source, else use a new id")]
    AlreadyLoaded {
        /// Id of the adapter.
        id: AdapterId,
    },
    /// The server does not know the id.
    #[error("vLLM does not know adapter `{id}`: it was never loaded, or is already unloaded")]
    UnknownAdapter {
        /// Id of the adapter.
        id: AdapterId,
    },
    /// The API key is missing or wrong.
    #[error("vLLM refused the API key: give the key that it was started with (--api-key or VLLM_API_KEY)")]
    Unauthorized,
    /// vLLM rejected the request as invalid.
    #[error("vLLM refused to {call}: {detail}")]
    Refused {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
        /// Error message of vLLM.
        detail: String,
    },
    /// The engine behind the server died; the server exits soon.
    #[error("vLLM's engine died during the request to {call} ({detail}): check vLLM's log and restart the server")]
    EngineDead {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
        /// Error message of vLLM.
        detail: String,
    },
    /// The server is shutting down after a signal.
    #[error("vLLM is shutting down and refused to {call}")]
    ShuttingDown {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
    },
    /// Any other failure of the server.
    #[error("vLLM failed to {call} (status {status}: {detail}): check vLLM's log if this persists")]
    ServerError {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
        /// HTTP status of the response.
        status: u16,
        /// Error message of vLLM.
        detail: String,
    },
    /// No response in time. vLLM may still execute the call.
    #[error("vLLM did not {call} within {after:?}; it may still do so")]
    Timeout {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
        /// Timeout of the call.
        after: Duration,
    },
    /// The connection could not be established, so nothing was sent.
    #[error("vLLM at {endpoint} cannot be reached ({detail}): check that it runs and listens there")]
    Unreachable {
        /// Base URL of the server.
        endpoint: String,
        /// Error of the network layer.
        detail: String,
    },
    /// The TLS handshake failed, so nothing was sent.
    #[error("TLS handshake with vLLM at {endpoint} failed: {detail}")]
    TlsFailed {
        /// Base URL of the server.
        endpoint: String,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// The connection ended before the response was complete. vLLM may have executed the call.
    #[error("the connection to vLLM broke during the request to {call} ({detail}); vLLM may have done it")]
    ConnectionLost {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
        /// Error of the network layer.
        detail: String,
    },
    /// The response is not one that vLLM gives.
    #[error(
        "unexpected response to the request to {call} (status {status}: {detail}): check that the address is a vLLM \
         server"
    )]
    UnexpectedResponse {
        /// Description of the call, for example "unload adapter `a1`".
        call: String,
        /// HTTP status of the response.
        status: u16,
        /// Beginning of the response, or what is wrong with it.
        detail: String,
    },
}

impl VllmError {
    /// Returns the class of the error, one word in CamelCase, for conditions, events and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RuntimeUpdatingOff => "RuntimeUpdatingOff",
            Self::LoraOff => "LoraOff",
            Self::AdapterNotFound { .. } => "AdapterNotFound",
            Self::RankTooHigh { .. } => "RankTooHigh",
            Self::BadAdapter { .. } => "BadAdapter",
            Self::NameConflict { .. } => "NameConflict",
            Self::AlreadyLoaded { .. } => "AlreadyLoaded",
            Self::UnknownAdapter { .. } => "UnknownAdapter",
            Self::Unauthorized => "Unauthorized",
            Self::Refused { .. } => "Refused",
            Self::EngineDead { .. } => "EngineDead",
            Self::ShuttingDown { .. } => "ShuttingDown",
            Self::ServerError { .. } => "ServerError",
            Self::Timeout { .. } => "Timeout",
            Self::Unreachable { .. } => "Unreachable",
            Self::TlsFailed { .. } => "TlsFailed",
            Self::ConnectionLost { .. } => "ConnectionLost",
            Self::UnexpectedResponse { .. } => "UnexpectedAnswer",
        }
    }

    /// Returns whether the same call may succeed later without any change by a person.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::EngineDead { .. }
                | Self::ShuttingDown { .. }
                | Self::ServerError { .. }
                | Self::Timeout { .. }
                | Self::Unreachable { .. }
                | Self::ConnectionLost { .. }
        )
    }

    /// Returns whether vLLM may have executed the call despite the error. Read the server's state before a retry.
    pub fn may_have_succeeded(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. }
                | Self::ConnectionLost { .. }
                | Self::ServerError { .. }
                | Self::EngineDead { .. }
                | Self::UnexpectedResponse { .. }
        )
    }

    /// Returns whether a person must change something (a flag of the server, the adapter's files, a key) before the
    /// call can succeed.
    pub fn needs_intervention(&self) -> bool {
        matches!(
            self,
            Self::RuntimeUpdatingOff
                | Self::LoraOff
                | Self::AdapterNotFound { .. }
                | Self::RankTooHigh { .. }
                | Self::BadAdapter { .. }
                | Self::NameConflict { .. }
                | Self::Unauthorized
                | Self::TlsFailed { .. }
                | Self::Refused { .. }
                | Self::UnexpectedResponse { .. }
        )
    }

    /// Returns whether the error concerns the server as a whole rather than one adapter.
    pub fn is_server_wide(&self) -> bool {
        matches!(
            self,
            Self::RuntimeUpdatingOff
                | Self::LoraOff
                | Self::Unauthorized
                | Self::EngineDead { .. }
                | Self::ShuttingDown { .. }
                | Self::Unreachable { .. }
                | Self::TlsFailed { .. }
        )
    }
}
