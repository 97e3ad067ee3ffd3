//! The objects of one kind as the API server last told of them, so that looking often costs nobody anything.

use futures_util::TryStreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, fmt::Debug, pin::pin};
use tokio::sync::watch;

/// Objects by name.
pub type ObjectsByName<K> = BTreeMap<String, K>;

/// A copy that is always a moment old.
#[derive(Debug)]
pub struct Reflector<K> {
    objects: watch::Sender<ObjectsByName<K>>,
}

impl<K> Default for Reflector<K> {
    fn default() -> Self {
        Self { objects: watch::Sender::new(ObjectsByName::new()) }
    }
}

impl<K> Reflector<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// All objects.
    pub fn all(&self) -> Vec<K> {
        self.objects.borrow().values().cloned().collect()
    }

    /// One object.
    pub fn get(&self, name: &str) -> Option<K> {
        self.objects.borrow().get(name).cloned()
    }

    /// Hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<ObjectsByName<K>> {
        self.objects.subscribe()
    }

    /// Follows the API server; never returns.
    pub async fn run(&self, api: Api<K>) {
        let mut listed = ObjectsByName::new();
        let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
        loop {
            // An error of the watch is one of the API server's being away: it is tried again.
            let Ok(Some(event)) = events.try_next().await else { continue };
            self.objects.send_modify(|objects| match event {
                watcher::Event::Init => listed.clear(),
                watcher::Event::InitApply(object) => drop(listed.insert(object.name_any(), object)),
                watcher::Event::InitDone => *objects = std::mem::take(&mut listed),
                watcher::Event::Apply(object) => drop(objects.insert(object.name_any(), object)),
                watcher::Event::Delete(object) => drop(objects.remove(&object.name_any())),
            });
        }
    }
}
