//! One ConfigMap, watched.
//!
//! Invariants:
//! - What was seen last stays until something newer is seen; an outage takes nothing back and is told beside it.
//! - Nothing older follows something newer: a read of its own and the watch may overtake each other.
//!
//! Nothing but get, list and watch of this one name is asked for, so that a role can be as narrow.

use crate::{
    Cluster,
    api_error::{ApiError, ApiRequest},
};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// How long one watch call lasts. A connection that died without a word is noticed a little later than this.
const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// A watch that was to end by itself is given up after this much longer.
const WATCH_TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// How long a list may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long somebody who waits for a read waits.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between tries that fail double from the first to the longest.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(3);

/// What is known of the ConfigMap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMapState {
    /// The last content; none before it was seen for the first time. It stays when the ConfigMap is deleted.
    pub content: Option<Arc<ConfigMapContent>>,
    /// Why that may not be what stands there now, in words: nobody answers, it is forbidden, it is not there.
    pub problem: Option<String>,
}

/// What stands in the ConfigMap, as far as somebody asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMapContent {
    /// The texts of the keys that were asked for.
    pub texts: BTreeMap<String, String>,
    /// Every key.
    pub keys: BTreeSet<String>,
}

/// A watch of one ConfigMap.
pub struct ConfigMapWatch {
    api: Api<ConfigMap>,
    namespace: String,
    name: String,
    keys: Vec<String>,
    state: watch::Sender<ConfigMapState>,
    /// The version of what was seen last. Held while something is read, so that readings come one after the other.
    version: Mutex<Option<u128>>,
}

impl fmt::Debug for ConfigMapWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigMapWatch").field("name", &self.to_string()).finish_non_exhaustive()
    }
}

impl fmt::Display for ConfigMapWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConfigMap {}/{}", self.namespace, self.name)
    }
}

impl ConfigMapWatch {
    /// A watch of the texts under `keys`. Asks nobody before it runs.
    pub fn new(cluster: &Cluster, namespace: &str, name: &str, keys: &[&str]) -> Self {
        Self {
            api: Api::namespaced(cluster.kube_client(), namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            state: watch::Sender::new(ConfigMapState::default()),
            version: Mutex::new(None),
        }
    }

    /// What was seen last, and from now on every change.
    pub fn subscribe(&self) -> watch::Receiver<ConfigMapState> {
        self.state.subscribe()
    }

    /// Reads it now. When this returns, what was seen is not older than the call, or it says why.
    pub async fn refresh(&self) {
        let read = async {
            let mut version = self.version.lock().await;
            match self.api.get_opt(&self.name).await {
                Ok(found) => self.update(&mut version, found.as_ref()),
                Err(error) => self.set_problem(&self.describe_error("get", &error)),
            }
        };
        if timeout(REFRESH_TIMEOUT, read).await.is_err() {
            self.set_problem(&format!("the API server did not answer within {REFRESH_TIMEOUT:?}"));
        }
    }

    /// Watches until it is stopped, over every outage.
    pub async fn run(&self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            let mut pause = INITIAL_BACKOFF;
            loop {
                let began = Instant::now();
                let ended = self.list_and_watch().await;
                // One that worked for a while has not failed again and again.
                let lasted = began.elapsed() > MAX_BACKOFF;
                pause = if lasted { INITIAL_BACKOFF } else { (pause * 2).min(MAX_BACKOFF) };
                match ended {
                    Ok(()) if lasted => continue,
                    Ok(()) => {}
                    Err(problem) => self.set_problem(&problem),
                }
                // Sidecars that lost the same API server do not come back to it all at once.
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        })
        .await;
    }

    /// Lists it, and takes changes from there on until the call ends. Listing one object costs less than knowing
    /// whether an earlier version can be gone on from.
    async fn list_and_watch(&self) -> Result<(), String> {
        let field = format!("metadata.name={}", self.name);
        let from = {
            let mut version = self.version.lock().await;
            let list = ListParams::default().fields(&field);
            let list = timeout(LIST_TIMEOUT, self.api.list(&list)).await;
            let list = list.map_err(|_| format!("the API server did not answer within {LIST_TIMEOUT:?}"))?;
            let list = list.map_err(|error| self.describe_error("list", &error))?;
            self.update(&mut version, list.items.iter().find(|item| item.name_any() == self.name));
            list.metadata.resource_version.unwrap_or_default()
        };
        let watch = WatchParams::default().fields(&field).timeout(WATCH_TIMEOUT_SECONDS);
        let changes = async {
            let mut events =
                Box::pin(self.api.watch(&watch, &from).await.map_err(|error| self.describe_error("watch", &error))?);
            while let Some(event) = events.next().await {
                match event.map_err(|error| self.describe_error("watch", &error))? {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => self.handle_event(&object).await,
                    WatchEvent::Deleted(_) => self.set_problem(&self.missing_message()),
                    WatchEvent::Bookmark(_) => {}
                    // The version is too old, or the server ends: the next list tells.
                    WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                    WatchEvent::Error(status) => return Err(self.describe_error("watch", &kube::Error::Api(status))),
                }
            }
            Ok(())
        };
        let limit = Duration::from_secs(WATCH_TIMEOUT_SECONDS.into()) + WATCH_TIMEOUT_GRACE;
        timeout(limit, changes).await.unwrap_or_else(|_| Err("the API server has gone silent".to_owned()))
    }

    /// Takes an event of the watch, which may be older than what was read meanwhile.
    async fn handle_event(&self, object: &ConfigMap) {
        let mut version = self.version.lock().await;
        if is_older(resource_version(object), *version) {
            return;
        }
        self.update(&mut version, Some(object));
    }

    /// Takes what stands there now.
    fn update(&self, version: &mut Option<u128>, object: Option<&ConfigMap>) {
        let Some(object) = object else {
            self.set_problem(&self.missing_message());
            return;
        };
        *version = resource_version(object);
        let content = self.read_content(object);
        self.state.send_if_modified(|seen| {
            let changed = seen.problem.take().is_some() || seen.content.as_deref() != Some(&content);
            seen.content = Some(Arc::new(content));
            changed
        });
    }

    fn read_content(&self, object: &ConfigMap) -> ConfigMapContent {
        let data = object.data.iter().flatten();
        let binary = object.binary_data.iter().flatten().map(|(key, _)| key);
        ConfigMapContent {
            texts: data
                .clone()
                .filter(|(key, _)| self.keys.contains(key))
                .map(|(key, text)| (key.clone(), text.clone()))
                .collect(),
            keys: data.map(|(key, _)| key).chain(binary).cloned().collect(),
        }
    }

    /// What was seen may be old, and this is why.
    fn set_problem(&self, problem: &str) {
        self.state.send_if_modified(|seen| {
            let changed = seen.problem.as_deref() != Some(problem);
            seen.problem = Some(problem.to_owned());
            changed
        });
    }

    fn missing_message(&self) -> String {
        format!("{self} is not there: create it, or name another one")
    }

    fn describe_error(&self, verb: &'static str, error: &kube::Error) -> String {
        let resource = format!("configmaps/{}", self.name);
        let error = ApiError::of(error, ApiRequest { verb, resource: &resource, namespace: Some(&self.namespace) });
        format!("{self}: {error}")
    }
}

/// Versions rise with every write; where they are no numbers, nothing can be said.
fn resource_version(object: &ConfigMap) -> Option<u128> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}

fn is_older(version: Option<u128>, seen: Option<u128>) -> bool {
    matches!((version, seen), (Some(version), Some(seen)) if version < seen)
}

#[cfg(test)]
mod tests;
