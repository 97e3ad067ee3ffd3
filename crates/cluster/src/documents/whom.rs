//! Whom to ask: the pods of a pool, those of other pools that read the same ConfigMap, and the routers.

use super::{Books, Documents, ReadError};
use crate::{
    kinds,
    pods::{Pod, Pool},
    shelf::{ObjectName, Shelf, State},
};
use std::collections::HashSet;

impl Documents {
    /// The pool of this name, and its pods.
    pub async fn pool(&self, name: &ObjectName) -> Result<(Pool, Vec<Pod>), ReadError> {
        self.wait(|books| books.pools.state(), &kinds::POOL.resource()).await?;
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
        let pods = self.pods_of(&name.namespace, &pool, |_| true).await?;
        Ok((pool, pods))
    }

    /// The pods of a pool that are wanted.
    async fn pods_of(
        &self,
        namespace: &str,
        pool: &Pool,
        wanted: impl Fn(&Pod) -> bool,
    ) -> Result<Vec<Pod>, ReadError> {
        let key = (namespace.to_owned(), pool.selector());
        let state = |books: &Books| books.pods.get(&key).map_or(State::Waiting, Shelf::state);
        self.wait(state, &kinds::POD.resource()).await?;
        let books = self.books();
        let pods = books.pods.get(&key).into_iter().flat_map(Shelf::iter).map(|(_, _, pod)| pod);
        Ok(pods.filter(|pod| wanted(pod)).cloned().collect())
    }

    /// The UIDs of all pods of pools beside Rollouts.
    pub fn pod_uids(&self) -> HashSet<String> {
        self.books().pods.values().flat_map(Shelf::iter).map(|(_, _, pod)| pod.uid.clone()).collect()
    }

    /// Every other pool beside this one, with those of its pods that mount this ConfigMap too.
    pub async fn sharers(&self, pool: &ObjectName, map: &str) -> Result<Vec<(Pool, Vec<Pod>)>, ReadError> {
        self.wait(|books| books.pools.state(), &kinds::POOL.resource()).await?;
        let others = beside(&self.books().pools, pool)?;
        let mut sharers = Vec::new();
        for other in others {
            let mounts = |pod: &Pod| pod.maps.iter().any(|mounted| mounted == map);
            let pods = self.pods_of(&pool.namespace, &other, mounts).await?;
            sharers.push((other, pods));
        }
        Ok(sharers)
    }

    /// The pods that route for a pool, wherever they are.
    pub async fn routers(&self, pool: &ObjectName) -> Result<Vec<Pod>, ReadError> {
        self.wait(|books| books.routers.state(), &kinds::POD.resource()).await?;
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
}
