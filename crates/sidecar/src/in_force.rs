//! Which content of an adapters file is in force: the last good one, whatever came after it.

use rollora_api::{
    adapters::{AdaptersText, DesiredAdapters, Parsed, content_hash},
    names::OPERATOR_KEY,
    operator_key::OperatorKey,
};
use std::{fmt, sync::Arc};
use tokio::sync::watch;

/// Both texts of one and the same version of a ConfigMap; an error says why one cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Texts {
    /// The user's file.
    pub user: Result<String, String>,
    /// The operator's key; none where it is not there.
    pub operator: Option<Result<String, String>>,
}

/// What the texts say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What has to become true.
    pub desired: DesiredAdapters,
    /// What a person should know although it is no error.
    pub warnings: Vec<String>,
}

impl Texts {
    /// Reads both strictly; `place` is what errors call the user's file. Where that is a whole ConfigMap, the user's
    /// text stands under `key`.
    pub fn read(&self, place: &dyn fmt::Display, key: &str) -> Result<Reading, String> {
        let user = self.user.clone()?;
        let operator = self.operator.clone().transpose()?;
        let explain = |error: &dyn fmt::Display| format!("{place}: {error}");
        let text = AdaptersText::new(user, key).map_err(|error| explain(&error))?;
        let Parsed { file, in_both } = text.parse().map_err(|error| explain(&error))?;
        let hash = content_hash(text.inner(), operator.as_deref());
        let key = operator.as_deref().map(OperatorKey::parse).transpose();
        let key = key.map_err(|error| format!("{OPERATOR_KEY} beside {place}: {error}"))?;
        let warnings = in_both.iter().map(|both| explain(&both)).collect();
        Ok(Reading { desired: DesiredAdapters { file, key, hash }, warnings })
    }
}

/// The content in force, published as it changes.
#[derive(Debug, Default)]
pub struct InForce {
    desired: watch::Sender<Option<Arc<DesiredAdapters>>>,
    error: watch::Sender<Option<String>>,
}

impl InForce {
    /// The last good content; none before the first.
    pub fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.desired.subscribe()
    }

    /// Why newer content is not in force; none where the newest is.
    pub fn error(&self) -> watch::Receiver<Option<String>> {
        self.error.subscribe()
    }

    /// Takes what was read last: it comes into force, or it is said why not.
    pub fn take(&self, reading: Result<Reading, String>) {
        let error = match reading {
            Ok(reading) => {
                self.adopt(reading);
                None
            }
            Err(error) => Some(error),
        };
        self.tell(error);
    }

    /// Takes a good reading into force, and says nothing of whether there is something newer.
    pub fn adopt(&self, Reading { desired, warnings }: Reading) {
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
    }

    /// Says why newer content is not in force, or that it is.
    pub fn tell(&self, error: Option<String>) {
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
