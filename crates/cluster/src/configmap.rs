//! Watch of a single ConfigMap.
//!
//! Invariants:
//! - The last content stays until newer content is read; an outage removes nothing and is reported as a problem.
//! - Older content never replaces newer content, although a direct read and the watch may overtake each other.
//!
//! It needs only get, list and watch of this one name, so that a Role can be as narrow.

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

/// Duration of one watch call. A connection that broke silently is noticed shortly after this.
const WATCH_TIMEOUT_SECONDS: u32 = 60;
/// Time after which a watch call that should have ended is aborted.
const WATCH_TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// Timeout of one list request.
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a refresh for its caller.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(2);
/// First and maximum delay between failed attempts; the delay doubles in between.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(3);

/// Last known content of the ConfigMap, and whether it may be out of date.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMapState {
    /// Last content; `None` before the first successful read. It stays when the ConfigMap is deleted.
    pub content: Option<Arc<ConfigMapContent>>,
    /// Why the content may be out of date: the API server does not respond, access is forbidden, or it does not exist.
    pub problem: Option<String>,
}

/// Content of the ConfigMap, restricted to the requested keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigMapContent {
    /// Texts of the requested keys that exist.
    pub texts: BTreeMap<String, String>,
    /// Names of all keys, including binary ones.
    pub keys: BTreeSet<String>,
}

/// Watch of one ConfigMap, with its last content.
pub struct ConfigMapWatch {
    api: Api<ConfigMap>,
    namespace: String,
    name: String,
    keys: Vec<String>,
    state: watch::Sender<ConfigMapState>,
    /// Version of the content. Locked during a read, so that reads are serialized.
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
    /// Returns a watch of the texts under `keys`. Sends no request before it runs.
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

    /// Returns a receiver of the current state and all later changes.
    pub fn subscribe(&self) -> watch::Receiver<ConfigMapState> {
        self.state.subscribe()
    }

    /// Reads the ConfigMap now. Afterwards the state is not older than this call, or it has a problem.
    pub async fn refresh(&self) {
        let read = async {
            let mut version = self.version.lock().await;
            match self.api.get_opt(&self.name).await {
                Ok(found) => self.update(&mut version, found.as_ref()),
                Err(error) => self.set_problem(&self.describe_error("get", &error)),
            }
        };
        if timeout(REFRESH_TIMEOUT, read).await.is_err() {
            self.set_problem(&format!("the API server did not respond within {REFRESH_TIMEOUT:?}"));
        }
    }

    /// Watches until `stop` fires, and reconnects after every outage.
    pub async fn run(&self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            let mut pause = INITIAL_BACKOFF;
            loop {
                let began = Instant::now();
                let result = self.list_and_watch().await;
                // A watch that worked for a while does not count as a repeated failure.
                let lasted = began.elapsed() > MAX_BACKOFF;
                pause = if lasted { INITIAL_BACKOFF } else { (pause * 2).min(MAX_BACKOFF) };
                match result {
                    Ok(()) if lasted => continue,
                    Ok(()) => {}
                    Err(problem) => self.set_problem(&problem),
                }
                // Jitter: sidecars that lost the same API server must not reconnect all at the same time.
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        })
        .await;
    }

    /// Lists the object and applies changes until the watch call ends. Listing one object is cheaper than finding out
    /// whether the watch can resume from an earlier version.
    async fn list_and_watch(&self) -> Result<(), String> {
        let field = format!("metadata.name={}", self.name);
        let from = {
            let mut version = self.version.lock().await;
            let list = ListParams::default().fields(&field);
            let list = timeout(LIST_TIMEOUT, self.api.list(&list)).await;
            let list = list.map_err(|_| format!("the API server did not respond within {LIST_TIMEOUT:?}"))?;
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
                    // The version is too old or the server shuts down: the next list returns the current state.
                    WatchEvent::Error(status) if status.code == 410 => return Ok(()),
                    WatchEvent::Error(status) => return Err(self.describe_error("watch", &kube::Error::Api(status))),
                }
            }
            Ok(())
        };
        let limit = Duration::from_secs(WATCH_TIMEOUT_SECONDS.into()) + WATCH_TIMEOUT_GRACE;
        timeout(limit, changes).await.unwrap_or_else(|_| Err("the watch of the API server received nothing".to_owned()))
    }

    /// Applies a watch event unless a direct read returned a newer version.
    async fn handle_event(&self, object: &ConfigMap) {
        let mut version = self.version.lock().await;
        if is_older(resource_version(object), *version) {
            return;
        }
        self.update(&mut version, Some(object));
    }

    /// Stores the current object, or the problem that it does not exist.
    fn update(&self, version: &mut Option<u128>, object: Option<&ConfigMap>) {
        let Some(object) = object else {
            self.set_problem(&self.missing_message());
            return;
        };
        *version = resource_version(object);
        let content = self.read_content(object);
        self.state.send_if_modified(|state| {
            let changed = state.problem.take().is_some() || state.content.as_deref() != Some(&content);
            state.content = Some(Arc::new(content));
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

    /// Records why the content may be out of date.
    fn set_problem(&self, problem: &str) {
        self.state.send_if_modified(|state| {
            let changed = state.problem.as_deref() != Some(problem);
            state.problem = Some(problem.to_owned());
            changed
        });
    }

    fn missing_message(&self) -> String {
        format!("{self} does not exist: create it, or name another one")
    }

    fn describe_error(&self, verb: &'static str, error: &kube::Error) -> String {
        let resource = format!("configmaps/{}", self.name);
        let error = ApiError::of(error, ApiRequest { verb, resource: &resource, namespace: Some(&self.namespace) });
        format!("{self}: {error}")
    }
}

/// Parses the version. Versions increase with every write; one that is not a number cannot be compared.
fn resource_version(object: &ConfigMap) -> Option<u128> {
    object.metadata.resource_version.as_ref()?.parse().ok()
}

fn is_older(version: Option<u128>, known: Option<u128>) -> bool {
    matches!((version, known), (Some(version), Some(known)) if version < known)
}

#[cfg(test)]
mod tests;
