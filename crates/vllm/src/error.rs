//! Everything that can go wrong between us and vLLM, told apart by what to do about it.

use rollora_api::names::AdapterId;
use std::time::Duration;

/// Why a call did not do what was asked. The texts say what happened, to what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VllmError {
    /// The endpoints for loading and unloading do not exist.
    #[error(
        "vLLM does not allow loading or unloading while it runs: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
    )]
    RuntimeUpdatingOff,
    /// The server was started without LoRA.
    #[error("vLLM runs without LoRA: start it with --enable-lora")]
    LoraOff,
    /// Nothing is at the path, or the hub does not have it or cannot be reached.
    #[error(
        "vLLM found no adapter `{id}` at `{path}`: check that this folder exists where vLLM runs and holds \
         adapter_config.json, or, for a hub name, that the name is right and vLLM can reach the hub"
    )]
    AdapterNotFound {
        /// The adapter.
        id: AdapterId,
        /// The path or hub name that vLLM was given.
        path: String,
    },
    /// The adapter's rank is above what the server was started for.
    #[error(
        "adapter `{id}` has rank {rank} and vLLM takes at most {max}: start vLLM with --max-lora-rank {rank}, or train a smaller rank"
    )]
    RankTooHigh {
        /// The adapter.
        id: AdapterId,
        /// Its rank.
        rank: u32,
        /// The server's maximum.
        max: u32,
    },
    /// vLLM read the adapter and cannot use it: weights, configuration, or modules.
    #[error("vLLM cannot use adapter `{id}` from `{path}` ({detail}): mend its files and give them a new id")]
    BadAdapter {
        /// The adapter.
        id: AdapterId,
        /// Where it was read from.
        path: String,
        /// vLLM's own words.
        detail: String,
    },
    /// A base model has this name.
    #[error("`{id}` is the name of a base model of this server: give the adapter another id")]
    NameConflict {
        /// The adapter.
        id: AdapterId,
    },
    /// The id is registered already, from the same or another path.
    #[error("adapter `{id}` is loaded already: nothing to do if it came from the same source, else use a new id")]
    AlreadyLoaded {
        /// The adapter.
        id: AdapterId,
    },
    /// The server does not know the id.
    #[error("vLLM does not know adapter `{id}`: it was never loaded, or is unloaded already")]
    UnknownAdapter {
        /// The adapter.
        id: AdapterId,
    },
    /// The key is missing or wrong.
    #[error("vLLM refused the API key: give the key that it was started with (--api-key or VLLM_API_KEY)")]
    Unauthorized,
    /// vLLM did not like the request itself.
    #[error("vLLM refused to {call}: {detail}")]
    Refused {
        /// What was asked.
        call: String,
        /// vLLM's own words.
        detail: String,
    },
    /// The engine behind the server is dead; the server ends soon.
    #[error(
        "vLLM's engine died while asked to {call} ({detail}): look into vLLM's log; the server has to be started again"
    )]
    EngineDead {
        /// What was asked.
        call: String,
        /// vLLM's own words.
        detail: String,
    },
    /// The server is on its way out, on purpose.
    #[error("vLLM is shutting down and refused to {call}")]
    ShuttingDown {
        /// What was asked.
        call: String,
    },
    /// Any other failure of the server.
    #[error("vLLM failed to {call} (status {status}: {detail}): look into vLLM's log if this stays")]
    ServerError {
        /// What was asked.
        call: String,
        /// The HTTP status.
        status: u16,
        /// vLLM's own words.
        detail: String,
    },
    /// No answer in time. It may still be done.
    #[error("vLLM did not {call} within {after:?}; it may still do so")]
    Timeout {
        /// What was asked.
        call: String,
        /// How long was waited.
        after: Duration,
    },
    /// No connection: nothing was asked.
    #[error("vLLM at {endpoint} cannot be reached ({detail}): check that it runs and listens there")]
    Unreachable {
        /// The server's base URL.
        endpoint: String,
        /// What the network said.
        detail: String,
    },
    /// No secure connection: nothing was asked.
    #[error("no TLS with vLLM at {endpoint}: {detail}")]
    TlsFailed {
        /// The server's base URL.
        endpoint: String,
        /// What is wrong, and what to do.
        detail: String,
    },
    /// The connection ended before the answer. It may have been done.
    #[error("vLLM's connection broke while asked to {call} ({detail}); it may have been done")]
    ConnectionLost {
        /// What was asked.
        call: String,
        /// What the network said.
        detail: String,
    },
    /// Not an answer that vLLM gives.
    #[error(
        "unexpected answer when asked to {call} (status {status}: {detail}): check that the address is a vLLM server"
    )]
    UnexpectedResponse {
        /// What was asked.
        call: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer.
        detail: String,
    },
}

impl VllmError {
    /// The class of the error as one CamelCase word, for conditions, events and metric labels.
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

    /// Whether the same call may succeed later although nobody changed anything.
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

    /// Whether what was asked may have been done all the same: look before asking again.
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

    /// Whether a person must change something (a flag of the server, the adapter's files, a key) before it can succeed.
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

    /// Whether this is about the server as a whole rather than about one adapter.
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
