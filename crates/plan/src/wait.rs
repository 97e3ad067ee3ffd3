//! What a rollout waits for: every state that does not end by itself names it.

use jiff::Timestamp;

/// One thing that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// A reason of [`rollora_api::condition::reason`].
    pub(crate) reason: &'static str,
    /// For what, on whom, since when, until when.
    pub(crate) message: String,
    /// When it is looked at again.
    pub(crate) again: Again,
}

/// When something is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Again {
    /// Soon: servers or routers are on their way there.
    Soon,
    /// At this time.
    At(Timestamp),
    /// When a document changes.
    OnChange,
}

impl Wait {
    /// Waits for servers or routers, which are asked again soon.
    pub(crate) fn soon(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), again: Again::Soon }
    }

    /// Waits for the clock.
    pub(crate) fn until(reason: &'static str, at: Timestamp, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), again: Again::At(at) }
    }

    /// Waits for a person, or for a document.
    pub(crate) fn on_change(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), again: Again::OnChange }
    }
}
