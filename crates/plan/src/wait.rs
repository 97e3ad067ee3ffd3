//! What a rollout waits for. Every state that does not end by itself has a [`Wait`].

use crate::{observed::ObserveError, text};
use jiff::Timestamp;
use rollora_api::condition::reason;
use std::time::Duration;

/// How often it is checked whether a person has fixed an input. Usually a watch reports the fix earlier.
const FIX_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// One thing that a rollout waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wait {
    /// A reason of [`rollora_api::condition::reason`].
    pub(crate) reason: &'static str,
    /// What is waited for, on which object, since when or until when, and what to do.
    pub(crate) message: String,
    /// When to check it again.
    pub(crate) requeue: RequeueWhen,
}

/// When a wait is checked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RequeueWhen {
    /// After the poll interval: servers or routers are changing.
    Soon,
    /// At this time, or earlier if something changes.
    At(Timestamp),
    /// When an object changes; there is nothing to poll.
    OnChange,
}

impl Wait {
    /// Waits for servers or routers, which are polled.
    pub(crate) fn soon(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), requeue: RequeueWhen::Soon }
    }

    /// Waits until the time `at`.
    pub(crate) fn until(reason: &'static str, at: Timestamp, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), requeue: RequeueWhen::At(at) }
    }

    /// Waits for a person to fix an input other than the Rollout itself.
    pub(crate) fn for_fix(now: Timestamp, message: impl Into<String>) -> Self {
        Self::until(reason::INVALID, text::after(now, FIX_POLL_INTERVAL), message)
    }

    /// Waits until a part of the observed state is available; `what` says what failed.
    pub(crate) fn while_unobservable(what: &str, error: &ObserveError, now: Timestamp) -> Self {
        let message = format!("{what}: {error}");
        match error {
            ObserveError::Invalid(_) => Self::for_fix(now, message),
            ObserveError::Unavailable(_) | ObserveError::NotAttempted => Self::soon(reason::UNAVAILABLE, message),
        }
    }

    /// Waits for a person, or for the change of an object.
    pub(crate) fn on_change(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), requeue: RequeueWhen::OnChange }
    }
}
