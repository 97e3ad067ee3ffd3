//! The active content of an adapters file: the last good one, even if newer content is invalid.
//!
//! Rollora itself never removes the operator directives: without content, the key `rollora.yaml` holds an empty text. A
//! tool that replaces the whole ConfigMap does remove it, and a sidecar would conclude immediately that no id is
//! rejected and no id serves. Therefore the last content with directives stays active for [`MISSING_DIRECTIVES_GRACE`]
//! after they have vanished.

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

/// How long content without operator directives is not activated after they have vanished. An operator restores them as
/// soon as it observes that, and five minutes suffice even if it has to be started on another node first. After an
/// uninstallation of Rollora, the plain adapters file is active after this time.
pub const MISSING_DIRECTIVES_GRACE: Duration = Duration::from_mins(5);

const DIRECTIVES_MISSING: &str = "the key `rollora.yaml` has vanished from the adapters ConfigMap: the last \
    content with it stays active for up to five minutes, then the file is used without it; tools that replace the \
    ConfigMap must keep this key";

/// Both texts of one version of a ConfigMap. An `Err` says why a text cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigTexts {
    /// The text of the user's adapters file.
    pub user: Result<String, String>,
    /// The text under the key `rollora.yaml`; `None` if the key does not exist.
    pub operator: Option<Result<String, String>>,
}

/// The parsed texts of one version of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedConfig {
    /// The desired adapters, with the hash of both texts.
    pub desired: DesiredAdapters,
    /// Findings for the log that are no errors, such as an id in both lists.
    pub warnings: Vec<String>,
}

impl ConfigTexts {
    /// Parses both texts strictly. Errors call the user's file `location`. If it is a whole ConfigMap, the adapters
    /// file is its text under `key`.
    pub fn parse(&self, location: &dyn fmt::Display, key: &str) -> Result<ParsedConfig, String> {
        let user = self.user.clone()?;
        let operator = self.operator.clone().transpose()?;
        let at_location = |error: &dyn fmt::Display| format!("{location}: {error}");
        let text = AdaptersText::new(user, key).map_err(|error| at_location(&error))?;
        let ParsedAdaptersFile { file, in_both_lists: in_both } = text.parse().map_err(|error| at_location(&error))?;
        let hash = content_hash(text.inner(), operator.as_deref());
        let directives = operator.as_deref().map(OperatorDirectives::parse).transpose();
        let directives = directives.map_err(|error| format!("{DIRECTIVES_KEY} next to {location}: {error}"))?;
        let warnings = in_both.iter().map(|both| at_location(&both)).collect();
        Ok(ParsedConfig { desired: DesiredAdapters { file, directives, hash }, warnings })
    }
}

/// Publishes the active content and why newer content is not active.
#[derive(Debug, Default)]
pub struct LastGoodConfig {
    desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    error: watch::Sender<Option<String>>,
    /// Since when the directives of the active content are missing in newer content.
    directives_missing_since: Mutex<Option<Instant>>,
}

impl LastGoodConfig {
    /// Returns the last good content; `None` before the first.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.desired.subscribe()
    }

    /// Returns why newer content is not active; `None` if the newest content is.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.error.subscribe()
    }

    /// Activates the content that was read last, or publishes why it is not active.
    pub fn update(&self, content: Result<ParsedConfig, String>, now: Instant) {
        let error = content.map_or_else(Some, |content| self.apply(content, now));
        self.publish_error(error);
    }

    /// Activates valid content without a change of the published error. Returns why the content is not active yet, if
    /// it is not.
    #[must_use]
    pub fn apply(&self, content: ParsedConfig, now: Instant) -> Option<String> {
        if self.awaits_directives(&content.desired, now) {
            return Some(DIRECTIVES_MISSING.to_owned());
        }
        let ParsedConfig { desired, warnings } = content;
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

    /// Returns when the wait for missing directives ends. The content that was read last must be applied again then.
    pub fn missing_directives_deadline(&self, now: Instant) -> Option<Instant> {
        let missing_since = *self.directives_missing_since.lock().unwrap_or_else(PoisonError::into_inner);
        missing_since.map(|since| since + MISSING_DIRECTIVES_GRACE).filter(|end| now < *end)
    }

    /// Waits until [`Self::missing_directives_deadline`]; never returns if no directives are missing.
    pub async fn wait_for_deadline(&self) {
        match self.missing_directives_deadline(Instant::now()) {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    }

    fn awaits_directives(&self, desired: &DesiredAdapters, now: Instant) -> bool {
        // Empty directives mean the same as none.
        let is_governed = |current: &Arc<DesiredAdapters>| {
            current.directives.as_ref().is_some_and(|directives| *directives != OperatorDirectives::default())
        };
        let had_directives = self.desired.borrow().as_ref().is_some_and(is_governed);
        let mut missing_since = self.directives_missing_since.lock().unwrap_or_else(PoisonError::into_inner);
        *missing_since = (had_directives && desired.directives.is_none()).then(|| missing_since.unwrap_or(now));
        missing_since.is_some_and(|since| now < since + MISSING_DIRECTIVES_GRACE)
    }

    /// Publishes and logs why newer content is not active; `None` if it is.
    pub fn publish_error(&self, error: Option<String>) {
        self.error.send_if_modified(|current| {
            let changed = *current != error;
            if let Some(error) = error.as_deref().filter(|_| changed) {
                if self.desired.borrow().is_some() {
                    tracing::warn!("the last good adapters file stays active: {error}");
                } else {
                    tracing::warn!("no adapters file is active yet: {error}");
                }
            }
            *current = error;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
