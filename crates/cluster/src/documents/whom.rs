//! Whom to ask: the pods of a pool, whoever else reads the same ConfigMap, and the routers.

use super::{Books, Documents, ReadError};
use crate::{
    index::Index,
    kinds,
    pods::{Pod, Pool},
    shelf::{ObjectName, Shelf, State},
};
use std::collections::{BTreeSet, HashSet};

/// Who reads a ConfigMap beside the pods of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharers {
    /// Every other pool beside it, with those of its pods that read it.
    pub pools: Vec<(Pool, Vec<Pod>)>,
    /// Pods in none of these pools that say that a sidecar runs in them.
    pub alone: Vec<Pod>,
}

/// What a pod that has a sidecar is there for: the ConfigMaps that it reads. One of which that cannot be read is there for
/// [`nobody_knows`] what of its namespace.
pub(super) fn read_by(name: &ObjectName, pod: &Pod) -> BTreeSet<ObjectName> {
    // Before it has an address nothing runs in it, and after its end neither.
    if pod.ip.is_none() || pod.ended {
        return BTreeSet::new();
    }
    let mounted = pod.maps.iter().map(|map| ObjectName::new(&name.namespace, map));
    let watched = pod.watches.iter().map(|watched| watched.clone().unwrap_or_else(|_| nobody_knows(&name.namespace)));
    mounted.chain(watched).collect()
}

fn nobody_knows(namespace: &str) -> ObjectName {
    ObjectName::new(namespace, "")
}

impl Documents {
    /// The pool of this name, and its pods.
    pub async fn pool(&self, name: &ObjectName) -> Result<(Pool, Vec<Pod>), ReadError> {
        self.wait(|books| books.pools.state_now(), &kinds::POOL.resource()).await?;
        let pool = match self.books().pools.get(name) {
            None => {
                return Err(ReadError::Invalid(format!(
                    "there is no InferencePool {name}: make it, or mend spec.poolRef (a new Rollout is needed for that)"
                )));
            }
            Some((_, Err(why))) => {
                return Err(ReadError::Invalid(format!("the InferencePool {name} cannot be used: {why}")));
            }
            Some((_, Ok(pool))) => pool.clone(),
        };
        let pods = self.pods_of(&name.namespace, &pool, |pod| Some(pod.clone())).await?;
        Ok((pool, pods))
    }

    /// What is read of the pods of a pool.
    async fn pods_of<T>(
        &self,
        namespace: &str,
        pool: &Pool,
        read: impl Fn(&Pod) -> Option<T>,
    ) -> Result<Vec<T>, ReadError> {
        let key = (namespace.to_owned(), pool.selector());
        let state = |books: &Books| books.pods.get(&key).map_or(State::Waiting, Shelf::state_now);
        self.wait(state, &kinds::POD.resource()).await?;
        let books = self.books();
        let pods = books.pods.get(&key).into_iter().flat_map(Shelf::iter);
        Ok(pods.filter_map(|(_, _, pod)| read(pod)).collect())
    }

    /// The UIDs of all pods of pools beside Rollouts.
    pub fn pod_uids(&self) -> HashSet<String> {
        self.books().pods.values().flat_map(Shelf::iter).map(|(_, _, pod)| pod.uid.clone()).collect()
    }

    /// Who reads a ConfigMap beside the pods of this pool.
    pub async fn sharers(&self, pool: &ObjectName, map: &ObjectName) -> Result<Sharers, ReadError> {
        self.wait(|books| books.pools.state_now(), &kinds::POOL.resource()).await?;
        self.wait(|books| books.sidecars.state_now(), &kinds::POD.resource()).await?;
        let (own, others) = {
            let books = self.books();
            let own = books.pools.get(pool).and_then(|(_, pool)| pool.as_ref().ok().cloned());
            (own, beside(&books.pools, pool)?)
        };
        // Whoever asks for them asks the pods of its own pool anyway.
        let mut counted = HashSet::new();
        if let Some(own) = own {
            counted.extend(self.pods_of(&pool.namespace, &own, |pod| Some(pod.uid.clone())).await?);
        }
        let mut pools = Vec::new();
        for other in others {
            let reading = |pod: &Pod| pod.reads(&pool.namespace, map).then(|| pod.clone());
            let pods = self.pods_of(&pool.namespace, &other, reading).await?;
            counted.extend(pods.iter().map(|pod| pod.uid.clone()));
            pools.push((other, pods));
        }
        let alone = alone(&self.books().sidecars, map, &counted)?;
        Ok(Sharers { pools, alone })
    }

    /// The pods that route for a pool, wherever they are.
    pub async fn routers(&self, pool: &ObjectName) -> Result<Vec<Pod>, ReadError> {
        self.wait(|books| books.routers.state_now(), &kinds::POD.resource()).await?;
        let books = self.books();
        Ok(books.routers.of(pool).map(|(name, router)| named_from(&pool.namespace, name, router)).collect())
    }
}

/// Every other pool of its namespace. One that cannot be read may have pods that read the same ConfigMap.
fn beside(pools: &Shelf<Result<Pool, String>>, pool: &ObjectName) -> Result<Vec<Pool>, ReadError> {
    let others = pools.of_namespace(&pool.namespace).filter(|(name, ..)| *name != pool);
    let readable = others.map(|(name, _, other)| {
        other.clone().map_err(|why| {
            ReadError::Invalid(format!(
                "the InferencePool {name} cannot be used: {why}: nobody knows whether its pods read the same ConfigMap"
            ))
        })
    });
    readable.collect()
}

/// Those that read a ConfigMap and were not counted yet.
fn alone(sidecars: &Index<Pod>, map: &ObjectName, counted: &HashSet<String>) -> Result<Vec<Pod>, ReadError> {
    let new = |purpose: &ObjectName| sidecars.of(purpose).filter(|(_, pod)| !counted.contains(&pod.uid));
    for (name, pod) in new(&nobody_knows(&map.namespace)) {
        if let Some(Err(why)) = &pod.watches {
            return Err(ReadError::Invalid(format!("nobody knows which ConfigMap the pod {name} reads: {why}")));
        }
    }
    Ok(new(map).map(|(name, pod)| named_from(&map.namespace, name, pod)).collect())
}

/// The pod as it is named in this namespace: with its own, where that is another one.
fn named_from(namespace: &str, name: &ObjectName, pod: &Pod) -> Pod {
    let name = if name.namespace == namespace { name.name.clone() } else { name.to_string() };
    Pod { name, ..pod.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pods::tests::bare_pod, shelf::Item, watch::News};

    fn pool(label: &str) -> Pool {
        Pool { labels: [("app".to_owned(), label.to_owned())].into(), ports: vec![8000] }
    }

    fn shelf<T: Clone + PartialEq>(all: &[(&str, &str, T)]) -> Shelf<T> {
        let item = |(namespace, name, value): &(&str, &str, T)| Item {
            name: ObjectName::new(*namespace, *name),
            version: "1".to_owned(),
            value: value.clone(),
        };
        let mut shelf = Shelf::default();
        shelf.hear(Ok(News::Reset(all.iter().map(item).collect())));
        shelf
    }

    #[test]
    fn a_pool_beside_that_cannot_be_read_is_named() {
        let bad = || Err("its selector is empty".to_owned());
        let all = [("prod", "a", Ok(pool("a"))), ("prod", "b", Ok(pool("b"))), ("test", "c", bad())];
        let ours = ObjectName::new("prod", "a");
        assert_eq!(beside(&shelf(&all), &ours), Ok(vec![pool("b")]), "what is elsewhere does not matter");

        let all = [("prod", "a", bad()), ("prod", "b", Ok(pool("b")))];
        assert_eq!(beside(&shelf(&all), &ours), Ok(vec![pool("b")]), "of its own pool something else tells");

        let all = [("prod", "a", Ok(pool("a"))), ("prod", "b", bad())];
        let Err(ReadError::Invalid(words)) = beside(&shelf(&all), &ours) else { panic!("it is not said") };
        assert!(words.starts_with("the InferencePool prod/b cannot be used: its selector is empty: "), "{words}");
    }

    #[test]
    fn a_pod_elsewhere_is_named_with_its_namespace() {
        let name = |from| named_from(from, &ObjectName::new("prod", "a"), &bare_pod("a")).name;
        assert_eq!([name("prod"), name("models")], ["a", "prod/a"]);
    }

    fn index(all: &[(&str, Pod)]) -> Index<Pod> {
        let item = |(namespace, pod): &(&str, Pod)| Item {
            name: ObjectName::new(*namespace, &pod.name),
            version: "1".to_owned(),
            value: pod.clone(),
        };
        let mut index = Index::default();
        index.hear(Ok(News::Reset(all.iter().map(item).collect())), read_by);
        index
    }

    fn reading(name: &str, watches: Option<Result<ObjectName, String>>) -> Pod {
        let maps = if watches.is_some() { Vec::new() } else { vec!["map".to_owned()] };
        Pod { maps, watches, has_sidecar: true, ..bare_pod(name) }
    }

    #[test]
    fn a_pod_in_no_pool_that_reads_the_map_is_asked_too_while_it_runs() {
        let map = ObjectName::new("prod", "map");
        let sidecars = index(&[
            ("prod", reading("mounts", None)),
            ("prod", reading("watches", Some(Ok(map.clone())))),
            ("prod", reading("other", Some(Ok(ObjectName::new("prod", "other"))))),
            ("prod", Pod { ip: None, ..reading("pending", None) }),
            ("prod", Pod { ended: true, ..reading("ended", None) }),
            ("prod", reading("counted", None)),
            ("test", reading("mounts-another", None)),
            ("test", reading("watches", Some(Ok(map.clone())))),
            ("test", reading("bad", Some(Err("bad".to_owned())))),
        ]);
        let counted = HashSet::from(["uid of counted".to_owned()]);
        let names = |map: &ObjectName| {
            let pods = alone(&sidecars, map, &counted)?.into_iter();
            Ok::<Vec<String>, ReadError>(pods.map(|pod| pod.name).collect())
        };
        assert_eq!(names(&map).unwrap(), ["mounts", "watches", "test/watches"]);
        let Err(ReadError::Invalid(words)) = names(&ObjectName::new("test", "map")) else { panic!("it is not said") };
        assert_eq!(words, "nobody knows which ConfigMap the pod test/bad reads: bad");
    }
}
