//! Which content of an adapters file is in force: the last good one, whatever came after it.
//!
//! Rollora never takes the operator's key away: one that has nothing to say is an empty text. Whoever replaces the whole
//! ConfigMap does, and to a sidecar that would mean at once that nothing is rejected and that nothing serves. So the last
//! content with a key stays in force for [`KEPT`] after it has vanished.

use rollora_api::{
    adapters::{AdaptersText, DesiredAdapters, ParsedAdaptersFile, content_hash},
    names::DIRECTIVES_KEY,
    operator_directives::OperatorDirectives,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// For so long the operator's key is waited for when it has vanished. An operator puts it back as soon as it sees that:
/// this is enough for one that has to be started somewhere else first. And who has removed Rollora waits no longer than
/// that for the plain drop-in.
pub const MISSING_DIRECTIVES_GRACE: Duration = Duration::from_mins(5);

/// Why content without the operator's key is not in force.
const DIRECTIVES_MISSING: &str = "the operator's key `rollora.yaml` has vanished from beside the adapters file: it is waited for, and \
                        after five minutes the file holds without it; whoever replaces the ConfigMap should leave it in";

/// Both texts of one and the same version of a ConfigMap; an error says why one cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigTexts {
    /// The user's file.
    pub user: Result<String, String>,
    /// The operator's key; none where it is not there.
    pub operator: Option<Result<String, String>>,
}

/// What the texts say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedConfig {
    /// What has to become true.
    pub desired: DesiredAdapters,
    /// What a person should know although it is no error.
    pub warnings: Vec<String>,
}

impl ConfigTexts {
    /// Reads both strictly; `place` is what errors call the user's file. Where that is a whole ConfigMap, the user's
    /// text stands under `key`.
    pub fn parse(&self, place: &dyn fmt::Display, key: &str) -> Result<ParsedConfig, String> {
        let user = self.user.clone()?;
        let operator = self.operator.clone().transpose()?;
        let explain = |error: &dyn fmt::Display| format!("{place}: {error}");
        let text = AdaptersText::new(user, key).map_err(|error| explain(&error))?;
        let ParsedAdaptersFile { file, in_both_lists: in_both } = text.parse().map_err(|error| explain(&error))?;
        let hash = content_hash(text.inner(), operator.as_deref());
        let key = operator.as_deref().map(OperatorDirectives::parse).transpose();
        let key = key.map_err(|error| format!("{DIRECTIVES_KEY} beside {place}: {error}"))?;
        let warnings = in_both.iter().map(|both| explain(&both)).collect();
        Ok(ParsedConfig { desired: DesiredAdapters { file, directives: key, hash }, warnings })
    }
}

/// The content in force, published as it changes.
#[derive(Debug, Default)]
pub struct LastGoodConfig {
    desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    error: watch::Sender<Option<String>>,
    /// Since when the key has been missed that the content in force has.
    directives_missing_since: Mutex<Option<Instant>>,
}

impl LastGoodConfig {
    /// The last good content; none before the first.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.desired.subscribe()
    }

    /// Why newer content is not in force; none where the newest is.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.error.subscribe()
    }

    /// Takes what was read last: it comes into force, or it is said why not.
    pub fn update(&self, reading: Result<ParsedConfig, String>, now: Instant) {
        let error = reading.map_or_else(Some, |reading| self.apply(reading, now));
        self.publish_error(error);
    }

    /// Takes a good reading into force, and says nothing of whether there is something newer. Gives why it stays out of
    /// force for now.
    #[must_use]
    pub fn apply(&self, reading: ParsedConfig, now: Instant) -> Option<String> {
        if self.awaits_directives(&reading.desired, now) {
            return Some(DIRECTIVES_MISSING.to_owned());
        }
        let ParsedConfig { desired, warnings } = reading;
        let changed = self.desired.send_if_modified(|current| {
            let changed = current.as_deref() != Some(&desired);
            if changed {
                *current = Some(Arc::new(desired));
            }
            changed
        });
        for warning in warnings.iter().filter(|_| changed) {
            tracing::warn!("{warning}");
        }
        None
    }

    /// Until when the key is waited for: then what was read last is to be taken once more.
    pub fn missing_directives_deadline(&self, now: Instant) -> Option<Instant> {
        let missed = *self.directives_missing_since.lock().unwrap_or_else(PoisonError::into_inner);
        missed.map(|since| since + MISSING_DIRECTIVES_GRACE).filter(|end| now < *end)
    }

    /// Waits until then, or for ever.
    pub async fn wait_for_deadline(&self) {
        match self.missing_directives_deadline(Instant::now()) {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    fn awaits_directives(&self, desired: &DesiredAdapters, now: Instant) -> bool {
        // An empty key says what none says.
        let says_something = |current: &Arc<DesiredAdapters>| {
            current.directives.as_ref().is_some_and(|key| *key != OperatorDirectives::default())
        };
        let had = self.desired.borrow().as_ref().is_some_and(says_something);
        let mut missed = self.directives_missing_since.lock().unwrap_or_else(PoisonError::into_inner);
        *missed = (had && desired.directives.is_none()).then(|| missed.unwrap_or(now));
        missed.is_some_and(|since| now < since + MISSING_DIRECTIVES_GRACE)
    }

    /// Says why newer content is not in force, or that it is.
    pub fn publish_error(&self, error: Option<String>) {
        self.error.send_if_modified(|current| {
            let changed = *current != error;
            if let Some(error) = error.as_deref().filter(|_| changed) {
                if self.desired.borrow().is_some() {
                    tracing::warn!("the last good adapters file stays in force: {error}");
                } else {
                    tracing::warn!("no adapters file is in force yet: {error}");
                }
            }
            *current = error;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
