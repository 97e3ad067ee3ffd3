//! Discovery of the pods to poll: those of a pool, other readers of its ConfigMap, and its routers.

use super::{CachedClient, Caches, ObjectReadError};
use crate::{
    index::Index,
    object_cache::{NamespacedName, ObjectCache, SyncState},
    pods::{InferencePool, Pod},
    resource_kind,
};
use std::collections::{BTreeSet, HashSet};

/// Pods that read a ConfigMap and do not belong to a given pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMapReaders {
    /// The other pools of the namespace, each with its pods that read the ConfigMap.
    pub other_pools: Vec<(InferencePool, Vec<Pod>)>,
    /// Pods with the sidecar label that belong to none of the pools.
    pub unpooled_pods: Vec<Pod>,
}

/// Returns the ConfigMaps that a pod with the sidecar label reads. A pod whose annotation cannot be parsed is indexed
/// under the [`unknown_config_map`] of its namespace.
pub(super) fn config_maps_read_by(name: &NamespacedName, pod: &Pod) -> BTreeSet<NamespacedName> {
    // Before a pod has an address nothing runs in it, and nothing does after it has finished.
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
    /// Returns the pool of this name and its pods.
    pub async fn pool(&self, name: &NamespacedName) -> Result<(InferencePool, Vec<Pod>), ObjectReadError> {
        self.wait_for_sync(|caches| caches.pools.permitted_state(), &resource_kind::POOL.group_resource()).await?;
        let pool = match self.caches().pools.get(name) {
            None => {
                return Err(ObjectReadError::Invalid(format!(
                    "there is no InferencePool {name}: create it, or name another one in spec.poolRef of a new Rollout"
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

    /// Returns the pods of a pool, each converted by `read`; those that it maps to `None` are left out.
    async fn pool_pods<T>(
        &self,
        namespace: &str,
        pool: &InferencePool,
        read: impl Fn(&Pod) -> Option<T>,
    ) -> Result<Vec<T>, ObjectReadError> {
        let key = (namespace.to_owned(), pool.label_selector());
        let state = |caches: &Caches| caches.pods.get(&key).map_or(SyncState::Pending, ObjectCache::permitted_state);
        self.wait_for_sync(state, &resource_kind::POD.group_resource()).await?;
        let caches = self.caches();
        let pods = caches.pods.get(&key).into_iter().flat_map(ObjectCache::iter);
        Ok(pods.filter_map(|(_, _, pod)| read(pod)).collect())
    }

    /// Returns the UIDs of all pods that belong to a watched pool.
    pub fn pod_uids(&self) -> HashSet<String> {
        self.caches().pods.values().flat_map(ObjectCache::iter).map(|(_, _, pod)| pod.uid.clone()).collect()
    }

    /// Returns the pods that read a ConfigMap and do not belong to this pool.
    pub async fn config_map_readers(
        &self,
        pool: &NamespacedName,
        map: &NamespacedName,
    ) -> Result<ConfigMapReaders, ObjectReadError> {
        self.wait_for_sync(|caches| caches.pools.permitted_state(), &resource_kind::POOL.group_resource()).await?;
        self.wait_for_sync(|caches| caches.sidecars.permitted_state(), &resource_kind::POD.group_resource()).await?;
        let (own, others) = {
            let caches = self.caches();
            let own = caches.pools.get(pool).and_then(|(_, pool)| pool.as_ref().ok().cloned());
            (own, other_pools(&caches.pools, pool)?)
        };
        // The caller polls the pods of its own pool anyway.
        let mut counted_uids = HashSet::new();
        if let Some(own) = own {
            counted_uids.extend(self.pool_pods(&pool.namespace, &own, |pod| Some(pod.uid.clone())).await?);
        }
        let mut pools = Vec::new();
        for other in others {
            let matching = |pod: &Pod| pod.reads_config_map(&pool.namespace, map).then(|| pod.clone());
            let pods = self.pool_pods(&pool.namespace, &other, matching).await?;
            counted_uids.extend(pods.iter().map(|pod| pod.uid.clone()));
            pools.push((other, pods));
        }
        let unpooled_pods = unpooled_readers(&self.caches().sidecars, map, &counted_uids)?;
        Ok(ConfigMapReaders { other_pools: pools, unpooled_pods })
    }

    /// Returns the pods that route for a pool, in any namespace of the scope.
    pub async fn routers(&self, pool: &NamespacedName) -> Result<Vec<Pod>, ObjectReadError> {
        self.wait_for_sync(|caches| caches.routers.permitted_state(), &resource_kind::POD.group_resource()).await?;
        let caches = self.caches();
        Ok(caches.routers.lookup(pool).map(|(name, router)| qualify_name(&pool.namespace, name, router)).collect())
    }
}

/// Returns the other pools of the namespace. Fails if one cannot be parsed, because its pods may read the same
/// ConfigMap.
fn other_pools(
    pools: &ObjectCache<Result<InferencePool, String>>,
    pool: &NamespacedName,
) -> Result<Vec<InferencePool>, ObjectReadError> {
    let others = pools.in_namespace(&pool.namespace).filter(|(name, ..)| *name != pool);
    let readable = others.map(|(name, _, other)| {
        other.clone().map_err(|why| {
            ObjectReadError::Invalid(format!(
                "the InferencePool {name} cannot be used: {why}: cannot determine whether its pods read the same \
                 ConfigMap"
            ))
        })
    });
    readable.collect()
}

/// Returns the pods that read a ConfigMap and are not in `counted`.
fn unpooled_readers(
    sidecars: &Index<Pod>,
    map: &NamespacedName,
    counted_uids: &HashSet<String>,
) -> Result<Vec<Pod>, ObjectReadError> {
    let new = |purpose: &NamespacedName| sidecars.lookup(purpose).filter(|(_, pod)| !counted_uids.contains(&pod.uid));
    for (name, pod) in new(&unknown_config_map(&map.namespace)) {
        if let Some(Err(why)) = &pod.watched_config_map {
            return Err(ObjectReadError::Invalid(format!("cannot determine which ConfigMap pod {name} reads: {why}")));
        }
    }
    Ok(new(map).map(|(name, pod)| qualify_name(&map.namespace, name, pod)).collect())
}

/// Qualifies the name of a pod in another namespace with that namespace.
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
        let mut cache = ObjectCache::default();
        cache.handle_event(Ok(WatchEvent::Reset(all.iter().map(item).collect())));
        cache
    }

    #[test]
    fn invalid_other_pool_is_named_in_the_error() {
        let bad = || Err("its selector is empty".to_owned());
        let all = [("prod", "a", Ok(pool("a"))), ("prod", "b", Ok(pool("b"))), ("test", "c", bad())];
        let ours = NamespacedName::new("prod", "a");
        assert_eq!(other_pools(&cache_of(&all), &ours), Ok(vec![pool("b")]), "other namespaces do not matter");

        let all = [("prod", "a", bad()), ("prod", "b", Ok(pool("b")))];
        assert_eq!(other_pools(&cache_of(&all), &ours), Ok(vec![pool("b")]), "its own pool is checked elsewhere");

        let all = [("prod", "a", Ok(pool("a"))), ("prod", "b", bad())];
        let Err(ObjectReadError::Invalid(message)) = other_pools(&cache_of(&all), &ours) else {
            panic!("expected an error")
        };
        assert!(message.starts_with("the InferencePool prod/b cannot be used: its selector is empty: "), "{message}");
    }

    #[test]
    fn pod_of_another_namespace_is_qualified() {
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

    fn reading_pod(name: &str, watches: Option<Result<NamespacedName, String>>) -> Pod {
        let maps = if watches.is_some() { Vec::new() } else { vec!["map".to_owned()] };
        Pod { config_maps: maps, watched_config_map: watches, has_sidecar: true, ..bare_pod(name) }
    }

    #[test]
    fn unpooled_pods_read_the_map_while_they_run() {
        let map = NamespacedName::new("prod", "map");
        let sidecars = index_of(&[
            ("prod", reading_pod("mounts", None)),
            ("prod", reading_pod("watches", Some(Ok(map.clone())))),
            ("prod", reading_pod("other", Some(Ok(NamespacedName::new("prod", "other"))))),
            ("prod", Pod { ip: None, ..reading_pod("pending", None) }),
            ("prod", Pod { finished: true, ..reading_pod("ended", None) }),
            ("prod", reading_pod("counted", None)),
            ("test", reading_pod("mounts-another", None)),
            ("test", reading_pod("watches", Some(Ok(map.clone())))),
            ("test", reading_pod("bad", Some(Err("bad".to_owned())))),
        ]);
        let counted_uids = HashSet::from(["uid of counted".to_owned()]);
        let names = |map: &NamespacedName| {
            let pods = unpooled_readers(&sidecars, map, &counted_uids)?.into_iter();
            Ok::<Vec<String>, ObjectReadError>(pods.map(|pod| pod.name).collect())
        };
        assert_eq!(names(&map).unwrap(), ["mounts", "watches", "test/watches"]);
        let Err(ObjectReadError::Invalid(message)) = names(&NamespacedName::new("test", "map")) else {
            panic!("expected an error")
        };
        assert_eq!(message, "cannot determine which ConfigMap pod test/bad reads: bad");
    }
}
