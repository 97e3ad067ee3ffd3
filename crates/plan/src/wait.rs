//! What a rollout waits for: every state that does not end by itself names it.

use crate::{observed::Unseen, text};
use jiff::Timestamp;
use rollora_api::condition::reason;
use std::time::Duration;

/// How soon it is looked whether a person has mended something. What they mend is mostly heard of at once.
const MENDED: Duration = Duration::from_secs(5);

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

    /// Waits for a person to mend something that is not the Rollout's own.
    pub(crate) fn for_mending(now: Timestamp, message: impl Into<String>) -> Self {
        Self::until(reason::INVALID, text::after(now, MENDED), message)
    }

    /// Waits for a part of the world that could not be observed.
    pub(crate) fn for_sight(what: &str, unseen: &Unseen, now: Timestamp) -> Self {
        let message = format!("{what}: {unseen}");
        match unseen {
            Unseen::Invalid(_) => Self::for_mending(now, message),
            Unseen::Unavailable(_) | Unseen::NotAsked => Self::soon(reason::UNAVAILABLE, message),
        }
    }

    /// Waits for a person, or for a document.
    pub(crate) fn on_change(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), again: Again::OnChange }
    }
}
