//! Errors of calls to vLLM, classified by what to do about them.

use rollora_api::names::AdapterId;
use std::time::Duration;

/// Reason why a call to vLLM failed. The message says what failed, on which object, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VllmError {
    /// The server has no endpoints for loading and unloading adapters.
    #[error(
        "vLLM does not allow loading or unloading adapters at run time: start it with \
         VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    )]
    RuntimeUpdatingOff,
    /// The server was started without LoRA support.
    #[error("vLLM runs without LoRA support: start it with --enable-lora")]
    LoraOff,
    /// The path does not exist, or the hub does not have the adapter or cannot be reached.
    #[error(
        "vLLM found no adapter `{id}` at `{path}`: check that this folder exists where vLLM runs and contains \
         adapter_config.json, or, for a hub name, that the name is correct and vLLM can reach the hub"
    )]
    AdapterNotFound {
        /// Id of the adapter.
        id: AdapterId,
        /// Path or hub name that was sent to vLLM.
        path: String,
    },
    /// The adapter's rank exceeds the server's `--max-lora-rank`.
    #[error(
        "adapter `{id}` has rank {rank} and vLLM takes at most {max}: start vLLM with --max-lora-rank {rank}, or train \
         the adapter with a lower rank"
    )]
    RankTooHigh {
        /// Id of the adapter.
        id: AdapterId,
        /// Rank of the adapter.
        rank: u32,
        /// Highest rank that the server accepts.
        max: u32,
    },
    /// vLLM read the adapter and cannot use its weights, configuration or modules.
    #[error("vLLM cannot use adapter `{id}` from `{path}` ({detail}): fix its files and give them a new id")]
    BadAdapter {
        /// Id of the adapter.
        id: AdapterId,
        /// Path or hub name that vLLM read.
        path: String,
        /// Error message of vLLM.
        detail: String,
    },
    /// The id is the name of a base model of the server.
    #[error("`{id}` is the name of a base model of this server: give the adapter another id")]
    NameConflict {
        /// Id of the adapter.
        id: AdapterId,
    },
    /// The id is already loaded, from the same or another path.
    #[error("adapter `{id}` is already loaded: use a new id, unless it was loaded from the same source")]
    AlreadyLoaded {
        /// Id of the adapter.
        id: AdapterId,
    },
    /// The id is not loaded on the server.
    #[error("vLLM does not know adapter `{id}`: it was never loaded, or it is already unloaded")]
    UnknownAdapter {
        /// Id of the adapter.
        id: AdapterId,
    },
    /// The API key is missing or wrong.
    #[error("vLLM rejected the API key: configure the key that it was started with (--api-key or VLLM_API_KEY)")]
    Unauthorized,
    /// vLLM rejected the request as invalid.
    #[error("vLLM refused to {call}: {detail}")]
    Refused {
        /// The call, as a verb phrase such as "list its models".
        call: String,
        /// Error message of vLLM.
        detail: String,
    },
    /// The server's engine is dead; the server exits soon.
    #[error("vLLM could not {call} because its engine died ({detail}): check vLLM's log and restart the server")]
    EngineDead {
        /// The call, as a verb phrase such as "list its models".
        call: String,
        /// Error message of vLLM.
        detail: String,
    },
    /// The server is shutting down on request.
    #[error("vLLM is shutting down and refused to {call}")]
    ShuttingDown {
        /// The call, as a verb phrase such as "list its models".
        call: String,
    },
    /// Any other server error (status 5xx).
    #[error("vLLM failed to {call} (status {status}: {detail}): check vLLM's log if this persists")]
    ServerError {
        /// The call, as a verb phrase such as "list its models".
        call: String,
        /// HTTP status of the response.
        status: u16,
        /// Error message of vLLM.
        detail: String,
    },
    /// No response arrived in time. The call may still take effect.
    #[error("vLLM did not {call} within {after:?}; it may still do so")]
    Timeout {
        /// The call, as a verb phrase such as "list its models".
        call: String,
        /// Time limit of the call.
        after: Duration,
    },
    /// No connection was established, so the call had no effect.
    #[error("cannot connect to vLLM at {endpoint} ({detail}): check that it runs and listens at this address")]
    Unreachable {
        /// Base URL of the server.
        endpoint: String,
        /// Error message of the HTTP client.
        detail: String,
    },
    /// The TLS handshake failed, so the call had no effect.
    #[error("cannot establish TLS with vLLM at {endpoint}: {detail}")]
    TlsFailed {
        /// Base URL of the server.
        endpoint: String,
        /// Cause of the failure, and what to do about it.
        detail: String,
    },
    /// The connection ended before the response was complete. The call may have taken effect.
    #[error("lost the connection to vLLM while waiting for it to {call} ({detail}); it may have done so")]
    ConnectionLost {
        /// The call, as a verb phrase such as "list its models".
        call: String,
        /// Error message of the HTTP client.
        detail: String,
    },
    /// The response is not one that vLLM sends.
    #[error(
        "unexpected response when vLLM was asked to {call} (status {status}: {detail}): check that the address is \
         that of a vLLM server"
    )]
    UnexpectedResponse {
        /// The call, as a verb phrase such as "list its models".
        call: String,
        /// HTTP status of the response.
        status: u16,
        /// Beginning of the response body, or what is wrong with it.
        detail: String,
    },
}

impl VllmError {
    /// Returns the class of the error as one CamelCase word, for conditions, events and metric labels.
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
            Self::UnexpectedResponse { .. } => "UnexpectedResponse",
        }
    }

    /// Returns whether the same call may succeed later without any change of configuration.
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

    /// Returns whether the call may have taken effect despite the error: read the server's state before a retry.
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
