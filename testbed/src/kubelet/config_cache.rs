//! A watched cache of the ConfigMaps and Secrets of a namespace.

use futures_util::TryStreamExt as _;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use std::{
    collections::BTreeMap,
    fmt::{self, Debug},
    pin::pin,
};
use tokio::sync::watch;

/// Data of one object, by key.
pub(super) type ConfigData = BTreeMap<String, Vec<u8>>;

/// Kind of an object in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConfigKind {
    ConfigMap,
    Secret,
}

impl fmt::Display for ConfigKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        })
    }
}

type ConfigObjects = BTreeMap<(ConfigKind, String), ConfigData>;

/// The cache: the objects of both kinds, and whether they were listed.
#[derive(Debug)]
pub(super) struct ConfigCache {
    objects: watch::Sender<ConfigObjects>,
    /// Number of kinds (of two) whose first list is complete.
    synced_kinds: watch::Sender<usize>,
}

impl ConfigCache {
    pub(super) fn new() -> Self {
        Self { objects: watch::Sender::new(ConfigObjects::new()), synced_kinds: watch::Sender::new(0) }
    }

    /// Returns the data of one object, or `None` if it does not exist.
    pub(super) fn get(&self, kind: ConfigKind, name: &str) -> Option<ConfigData> {
        self.objects.borrow().get(&(kind, name.to_owned())).cloned()
    }

    /// Waits until both kinds were listed once.
    pub(super) async fn wait_synced(&self) {
        // An error means that the testbed ends.
        drop(self.synced_kinds.subscribe().wait_for(|kinds| *kinds >= 2).await);
    }

    /// Returns a receiver that is notified of every change.
    pub(super) fn subscribe(&self) -> watch::Receiver<ConfigObjects> {
        self.objects.subscribe()
    }

    /// Watches both kinds; never returns.
    pub(super) async fn run(&self, client: &Client, namespace: &str) {
        let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        let secrets = Api::<Secret>::namespaced(client.clone(), namespace);
        let maps = self.watch_kind(maps, ConfigKind::ConfigMap, |map: ConfigMap| {
            let text = map.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.into_bytes()));
            let binary = map.binary_data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
            text.chain(binary).collect()
        });
        let secrets = self.watch_kind(secrets, ConfigKind::Secret, |secret: Secret| {
            secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect()
        });
        tokio::join!(maps, secrets);
    }

    async fn watch_kind<K>(&self, api: Api<K>, kind: ConfigKind, data: impl Fn(K) -> ConfigData)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let (mut listed, mut is_first) = (ConfigObjects::new(), true);
        let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
        loop {
            // The watch fails while the API server is unavailable, and is retried.
            let Ok(Some(event)) = events.try_next().await else { continue };
            let is_list_complete = matches!(event, watcher::Event::InitDone);
            let entry = |object: K| ((kind, object.name_any()), data(object));
            self.objects.send_modify(|objects| match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) => listed.extend([entry(object)]),
                watcher::Event::InitDone => {
                    objects.retain(|(known, _), _| *known != kind);
                    objects.append(&mut listed);
                }
                watcher::Event::Apply(object) => objects.extend([entry(object)]),
                watcher::Event::Delete(object) => drop(objects.remove(&(kind, object.name_any()))),
            });
            if is_list_complete && std::mem::take(&mut is_first) {
                self.synced_kinds.send_modify(|kinds| *kinds += 1);
            }
        }
    }

    /// Stores an object as if the watch had delivered it.
    #[cfg(test)]
    pub(super) fn put(&self, kind: ConfigKind, name: &str, data: &[(&str, &str)]) {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec())).collect();
        self.objects.send_modify(|objects| drop(objects.insert((kind, name.to_owned()), data)));
    }
}
