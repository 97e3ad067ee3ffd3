//! A watched copy of the objects of one kind, so that polling costs no requests.

use futures_util::TryStreamExt as _;
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;
use std::{collections::BTreeMap, fmt::Debug, pin::pin};
use tokio::sync::watch;

/// Objects of one kind, by name.
pub type ObjectsByName<K> = BTreeMap<String, K>;

/// A copy that the watch keeps up to date, with the delay of the watch.
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
    /// Returns all objects of the copy.
    pub fn all(&self) -> Vec<K> {
        self.objects.borrow().values().cloned().collect()
    }

    /// Returns an object by its name.
    pub fn get(&self, name: &str) -> Option<K> {
        self.objects.borrow().get(name).cloned()
    }

    /// Returns a receiver that is notified of every change.
    pub fn subscribe(&self) -> watch::Receiver<ObjectsByName<K>> {
        self.objects.subscribe()
    }

    /// Watches the API server; never returns.
    pub async fn run(&self, api: Api<K>) {
        let mut listed = ObjectsByName::new();
        let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
        loop {
            // The watch fails while the API server is unavailable, and is retried.
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
