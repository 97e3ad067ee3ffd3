//! What a rollout waits for: every state that does not end by itself names it.

use crate::{observed::ObserveError, text};
use jiff::Timestamp;
use rollora_api::condition::reason;
use std::time::Duration;

/// How soon it is looked whether a person has mended something. What they mend is mostly heard of at once.
const FIX_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// One thing that is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// A reason of [`rollora_api::condition::reason`].
    pub(crate) reason: &'static str,
    /// For what, on whom, since when, until when.
    pub(crate) message: String,
    /// When it is looked at again.
    pub(crate) requeue: RequeueWhen,
}

/// When something is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RequeueWhen {
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
        Self { reason, message: message.into(), requeue: RequeueWhen::Soon }
    }

    /// Waits for the clock.
    pub(crate) fn until(reason: &'static str, at: Timestamp, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), requeue: RequeueWhen::At(at) }
    }

    /// Waits for a person to mend something that is not the Rollout's own.
    pub(crate) fn for_fix(now: Timestamp, message: impl Into<String>) -> Self {
        Self::until(reason::INVALID, text::after(now, FIX_POLL_INTERVAL), message)
    }

    /// Waits for a part of the world that could not be observed.
    pub(crate) fn while_unobservable(what: &str, unseen: &ObserveError, now: Timestamp) -> Self {
        let message = format!("{what}: {unseen}");
        match unseen {
            ObserveError::Invalid(_) => Self::for_fix(now, message),
            ObserveError::Unavailable(_) | ObserveError::NotAttempted => Self::soon(reason::UNAVAILABLE, message),
        }
    }

    /// Waits for a person, or for a document.
    pub(crate) fn on_change(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), requeue: RequeueWhen::OnChange }
    }
}
