//! Whom to ask: the pods of a pool, whoever else reads the same ConfigMap, and the routers.

use super::{CachedClient, Caches, ObjectReadError};
use crate::{
    index::Index,
    object_cache::{NamespacedName, ObjectCache, SyncState},
    pods::{InferencePool, Pod},
    resource_kind,
};
use std::collections::{BTreeSet, HashSet};

/// Who reads a ConfigMap beside the pods of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMapReaders {
    /// Every other pool beside it, with those of its pods that read it.
    pub other_pools: Vec<(InferencePool, Vec<Pod>)>,
    /// Pods in none of these pools that say that a sidecar runs in them.
    pub unpooled_pods: Vec<Pod>,
}

/// What a pod that has a sidecar is there for: the ConfigMaps that it reads. One of which that cannot be read is there for
/// [`nobody_knows`] what of its namespace.
pub(super) fn config_maps_read_by(name: &NamespacedName, pod: &Pod) -> BTreeSet<NamespacedName> {
    // Before it has an address nothing runs in it, and after its end neither.
    if pod.ip.is_none() || pod.finished {
        return BTreeSet::new();
    }
    let mounted = pod.config_maps.iter().map(|map| NamespacedName::new(&name.namespace, map));
    let watched = pod
        .watched_config_map
        .iter()
        .map(|watched| watched.clone().unwrap_or_else(|_| unknown_config_map(&name.namespace)));
    mounted.chain(watched).collect()
}

fn unknown_config_map(namespace: &str) -> NamespacedName {
    NamespacedName::new(namespace, "")
}

impl CachedClient {
    /// The pool of this name, and its pods.
    pub async fn pool(&self, name: &NamespacedName) -> Result<(InferencePool, Vec<Pod>), ObjectReadError> {
        self.wait_for_sync(|books| books.pools.permitted_state(), &resource_kind::POOL.group_resource()).await?;
        let pool = match self.caches().pools.get(name) {
            None => {
                return Err(ObjectReadError::Invalid(format!(
                    "there is no InferencePool {name}: make it, or mend spec.poolRef (a new Rollout is needed for that)"
                )));
            }
            Some((_, Err(why))) => {
                return Err(ObjectReadError::Invalid(format!("the InferencePool {name} cannot be used: {why}")));
            }
            Some((_, Ok(pool))) => pool.clone(),
        };
        let pods = self.pool_pods(&name.namespace, &pool, |pod| Some(pod.clone())).await?;
        Ok((pool, pods))
    }

    /// What is read of the pods of a pool.
    async fn pool_pods<T>(
        &self,
        namespace: &str,
        pool: &InferencePool,
        read: impl Fn(&Pod) -> Option<T>,
    ) -> Result<Vec<T>, ObjectReadError> {
        let key = (namespace.to_owned(), pool.label_selector());
        let state = |books: &Caches| books.pods.get(&key).map_or(SyncState::Pending, ObjectCache::permitted_state);
        self.wait_for_sync(state, &resource_kind::POD.group_resource()).await?;
        let books = self.caches();
        let pods = books.pods.get(&key).into_iter().flat_map(ObjectCache::iter);
        Ok(pods.filter_map(|(_, _, pod)| read(pod)).collect())
    }

    /// The UIDs of all pods of pools beside Rollouts.
    pub fn pod_uids(&self) -> HashSet<String> {
        self.caches().pods.values().flat_map(ObjectCache::iter).map(|(_, _, pod)| pod.uid.clone()).collect()
    }

    /// Who reads a ConfigMap beside the pods of this pool.
    pub async fn config_map_readers(
        &self,
        pool: &NamespacedName,
        map: &NamespacedName,
    ) -> Result<ConfigMapReaders, ObjectReadError> {
        self.wait_for_sync(|books| books.pools.permitted_state(), &resource_kind::POOL.group_resource()).await?;
        self.wait_for_sync(|books| books.sidecars.permitted_state(), &resource_kind::POD.group_resource()).await?;
        let (own, others) = {
            let books = self.caches();
            let own = books.pools.get(pool).and_then(|(_, pool)| pool.as_ref().ok().cloned());
            (own, other_pools(&books.pools, pool)?)
        };
        // Whoever asks for them asks the pods of its own pool anyway.
        let mut counted = HashSet::new();
        if let Some(own) = own {
            counted.extend(self.pool_pods(&pool.namespace, &own, |pod| Some(pod.uid.clone())).await?);
        }
        let mut pools = Vec::new();
        for other in others {
            let reading = |pod: &Pod| pod.reads_config_map(&pool.namespace, map).then(|| pod.clone());
            let pods = self.pool_pods(&pool.namespace, &other, reading).await?;
            counted.extend(pods.iter().map(|pod| pod.uid.clone()));
            pools.push((other, pods));
        }
        let alone = unpooled_readers(&self.caches().sidecars, map, &counted)?;
        Ok(ConfigMapReaders { other_pools: pools, unpooled_pods: alone })
    }

    /// The pods that route for a pool, wherever they are.
    pub async fn routers(&self, pool: &NamespacedName) -> Result<Vec<Pod>, ObjectReadError> {
        self.wait_for_sync(|books| books.routers.permitted_state(), &resource_kind::POD.group_resource()).await?;
        let books = self.caches();
        Ok(books.routers.lookup(pool).map(|(name, router)| qualify_name(&pool.namespace, name, router)).collect())
    }
}

/// Every other pool of its namespace. One that cannot be read may have pods that read the same ConfigMap.
fn other_pools(
    pools: &ObjectCache<Result<InferencePool, String>>,
    pool: &NamespacedName,
) -> Result<Vec<InferencePool>, ObjectReadError> {
    let others = pools.in_namespace(&pool.namespace).filter(|(name, ..)| *name != pool);
    let readable = others.map(|(name, _, other)| {
        other.clone().map_err(|why| {
            ObjectReadError::Invalid(format!(
                "the InferencePool {name} cannot be used: {why}: nobody knows whether its pods read the same ConfigMap"
            ))
        })
    });
    readable.collect()
}

/// Those that read a ConfigMap and were not counted yet.
fn unpooled_readers(
    sidecars: &Index<Pod>,
    map: &NamespacedName,
    counted: &HashSet<String>,
) -> Result<Vec<Pod>, ObjectReadError> {
    let new = |purpose: &NamespacedName| sidecars.lookup(purpose).filter(|(_, pod)| !counted.contains(&pod.uid));
    for (name, pod) in new(&unknown_config_map(&map.namespace)) {
        if let Some(Err(why)) = &pod.watched_config_map {
            return Err(ObjectReadError::Invalid(format!("nobody knows which ConfigMap the pod {name} reads: {why}")));
        }
    }
    Ok(new(map).map(|(name, pod)| qualify_name(&map.namespace, name, pod)).collect())
}

/// The pod as it is named in this namespace: with its own, where that is another one.
fn qualify_name(namespace: &str, name: &NamespacedName, pod: &Pod) -> Pod {
    let name = if name.namespace == namespace { name.name.clone() } else { name.to_string() };
    Pod { name, ..pod.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{object_cache::CacheItem, pods::tests::bare_pod, watch::WatchEvent};

    fn pool(label: &str) -> InferencePool {
        InferencePool { labels: [("app".to_owned(), label.to_owned())].into(), target_ports: vec![8000] }
    }

    fn cache_of<T: Clone + PartialEq>(all: &[(&str, &str, T)]) -> ObjectCache<T> {
        let item = |(namespace, name, value): &(&str, &str, T)| CacheItem {
            name: NamespacedName::new(*namespace, *name),
            version: "1".to_owned(),
            value: value.clone(),
        };
        let mut shelf = ObjectCache::default();
        shelf.handle_event(Ok(WatchEvent::Reset(all.iter().map(item).collect())));
        shelf
    }

    #[test]
    fn a_pool_beside_that_cannot_be_read_is_named() {
        let bad = || Err("its selector is empty".to_owned());
        let all = [("prod", "a", Ok(pool("a"))), ("prod", "b", Ok(pool("b"))), ("test", "c", bad())];
        let ours = NamespacedName::new("prod", "a");
        assert_eq!(other_pools(&cache_of(&all), &ours), Ok(vec![pool("b")]), "what is elsewhere does not matter");

        let all = [("prod", "a", bad()), ("prod", "b", Ok(pool("b")))];
        assert_eq!(other_pools(&cache_of(&all), &ours), Ok(vec![pool("b")]), "of its own pool something else tells");

        let all = [("prod", "a", Ok(pool("a"))), ("prod", "b", bad())];
        let Err(ObjectReadError::Invalid(words)) = other_pools(&cache_of(&all), &ours) else {
            panic!("it is not said")
        };
        assert!(words.starts_with("the InferencePool prod/b cannot be used: its selector is empty: "), "{words}");
    }

    #[test]
    fn a_pod_elsewhere_is_named_with_its_namespace() {
        let name = |from| qualify_name(from, &NamespacedName::new("prod", "a"), &bare_pod("a")).name;
        assert_eq!([name("prod"), name("models")], ["a", "prod/a"]);
    }

    fn index_of(all: &[(&str, Pod)]) -> Index<Pod> {
        let item = |(namespace, pod): &(&str, Pod)| CacheItem {
            name: NamespacedName::new(*namespace, &pod.name),
            version: "1".to_owned(),
            value: pod.clone(),
        };
        let mut index = Index::default();
        index.handle_event(Ok(WatchEvent::Reset(all.iter().map(item).collect())), config_maps_read_by);
        index
    }

    fn reading(name: &str, watches: Option<Result<NamespacedName, String>>) -> Pod {
        let maps = if watches.is_some() { Vec::new() } else { vec!["map".to_owned()] };
        Pod { config_maps: maps, watched_config_map: watches, has_sidecar: true, ..bare_pod(name) }
    }

    #[test]
    fn a_pod_in_no_pool_that_reads_the_map_is_asked_too_while_it_runs() {
        let map = NamespacedName::new("prod", "map");
        let sidecars = index_of(&[
            ("prod", reading("mounts", None)),
            ("prod", reading("watches", Some(Ok(map.clone())))),
            ("prod", reading("other", Some(Ok(NamespacedName::new("prod", "other"))))),
            ("prod", Pod { ip: None, ..reading("pending", None) }),
            ("prod", Pod { finished: true, ..reading("ended", None) }),
            ("prod", reading("counted", None)),
            ("test", reading("mounts-another", None)),
            ("test", reading("watches", Some(Ok(map.clone())))),
            ("test", reading("bad", Some(Err("bad".to_owned())))),
        ]);
        let counted = HashSet::from(["uid of counted".to_owned()]);
        let names = |map: &NamespacedName| {
            let pods = unpooled_readers(&sidecars, map, &counted)?.into_iter();
            Ok::<Vec<String>, ObjectReadError>(pods.map(|pod| pod.name).collect())
        };
        assert_eq!(names(&map).unwrap(), ["mounts", "watches", "test/watches"]);
        let Err(ObjectReadError::Invalid(words)) = names(&NamespacedName::new("test", "map")) else {
            panic!("it is not said")
        };
        assert_eq!(words, "nobody knows which ConfigMap the pod test/bad reads: bad");
    }
}
