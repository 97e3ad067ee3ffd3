//! The watches: they keep memory up to date, and tell whom a change concerns.

use super::{Books, Documents, concern, concern::Change, item_of_rewrite, map_item, rollout_item};
use crate::{
    Scope,
    answer::ApiError,
    kinds::{self, Kind},
    pods::{Pod, Pool},
    rewrites::{RewriteNews, Rewrites},
    shelf::{Item, ObjectName},
    watch::{self, News, Selection},
};
use futures_util::{
    Stream, StreamExt,
    future::{AbortHandle, Either, select},
    stream::{self, BoxStream, SelectAll, abortable},
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod as KubePod};
use kube::{Api, core::DynamicObject};
use rollora_api::{names::ROUTER_POOL_LABEL, rollout::Rollout};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
};
use tokio::sync::mpsc;

/// One thing that a watch told.
enum Heard {
    Rollouts(Box<Told<Result<Rollout, String>>>),
    Pools(Told<Result<Pool, String>>),
    Rewrites(RewriteNews),
    Routers(Told<Pod>),
    ConfigMap(ObjectName, Box<Told<ConfigMap>>),
    Pods((String, String), Told<Pod>),
}

type Told<T> = Result<News<Item<T>>, ApiError>;

/// What changes, for as long as it is polled.
pub struct Changes {
    documents: Documents,
    streams: SelectAll<BoxStream<'static, Heard>>,
    maps: BTreeMap<ObjectName, AbortHandle>,
    pods: BTreeMap<(String, String), AbortHandle>,
    bell: Option<mpsc::UnboundedReceiver<ObjectName>>,
    /// Rollouts as they were when they were last told, to tell changes of the spec from those of the status.
    known: BTreeMap<ObjectName, Rollout>,
    /// To be told.
    due: BTreeSet<ObjectName>,
    /// Problems that were logged.
    said: BTreeMap<String, String>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes")
            .field("maps", &self.maps.keys())
            .field("pods", &self.pods.keys())
            .finish_non_exhaustive()
    }
}

impl Changes {
    pub(super) fn new(documents: &Documents) -> Self {
        let inner = &documents.0;
        let (cluster, scope) = (&inner.cluster, &inner.scope);
        let dynamic = |kind: Kind| {
            let resource = kind.api_resource();
            let api: Api<DynamicObject> = match scope {
                Scope::Namespace(namespace) => Api::namespaced_with(cluster.client(), namespace, &resource),
                Scope::All => Api::all_with(cluster.client(), &resource),
            };
            watch::watch(api, &Selection::default(), kind.resource(), scope.namespace().map(str::to_owned))
        };
        let routers: Api<KubePod> = match scope {
            Scope::Namespace(namespace) => Api::namespaced(cluster.client(), namespace),
            Scope::All => Api::all(cluster.client()),
        };
        let selection = Selection { labels: Some(ROUTER_POOL_LABEL.to_owned()), ..Selection::default() };
        let routers = watch::watch(routers, &selection, kinds::POD.resource(), scope.namespace().map(str::to_owned));
        let rewrites = stream::unfold(Rewrites::new(cluster, scope.clone()), |mut rewrites| async move {
            Some((Heard::Rewrites(rewrites.next().await), rewrites))
        });
        let streams = [
            dynamic(kinds::ROLLOUT)
                .map(|told| Heard::Rollouts(Box::new(told.map(|news| news.map(rollout_item)))))
                .boxed(),
            dynamic(kinds::POOL).map(|told| Heard::Pools(told.map(|news| news.map(|pool| Pool::read(&pool))))).boxed(),
            routers.map(|told| Heard::Routers(told.map(|news| news.map(|pod| Pod::read(&pod))))).boxed(),
            rewrites.boxed(),
        ];
        // Whoever took it first is the one who listens.
        let bell = inner.bell.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        Self {
            documents: documents.clone(),
            streams: stream::select_all(streams),
            maps: BTreeMap::new(),
            pods: BTreeMap::new(),
            bell,
            known: BTreeMap::new(),
            due: BTreeSet::new(),
            said: BTreeMap::new(),
        }
    }

    /// As a stream that never ends.
    pub fn into_stream(self) -> impl Stream<Item = ObjectName> + Send {
        stream::unfold(self, |mut changes| async move { Some((changes.next().await, changes)) })
    }

    /// The next Rollout to look at. Nothing is lost where this is given up and called again.
    pub async fn next(&mut self) -> ObjectName {
        loop {
            if let Some(name) = self.due.pop_first() {
                return name;
            }
            let rung = async {
                // The other end lives as long as the documents.
                match &mut self.bell {
                    Some(bell) => match bell.recv().await {
                        Some(name) => name,
                        None => std::future::pending().await,
                    },
                    None => std::future::pending().await,
                }
            };
            let heard = match select(pin!(rung), self.streams.next()).await {
                Either::Left((name, _)) => return name,
                Either::Right((Some(heard), _)) => heard,
                // No watch ends but those that are aborted, and four are never aborted.
                Either::Right((None, _)) => std::future::pending().await,
            };
            self.hear(heard);
            self.documents.0.told.send_modify(|count| *count += 1);
            self.log_problems();
        }
    }

    fn hear(&mut self, heard: Heard) {
        let documents = self.documents.clone();
        let books: &mut Books = &mut documents.books();
        match heard {
            Heard::Rollouts(told) => {
                let changed = books.rollouts.hear(*told);
                self.hear_rollouts(books, changed);
                self.rewatch(books);
            }
            Heard::Pools(told) => {
                for name in books.pools.hear(told) {
                    self.wake(books, &Change::Pool(&name));
                }
                self.rewatch(books);
            }
            Heard::Routers(told) => {
                // Which pool a router that is gone routed for is not known any more: everybody beside it looks.
                let namespaces: BTreeSet<String> =
                    books.routers.hear(told).into_iter().map(|name| name.namespace).collect();
                let beside = books.rollouts.iter().map(|(name, ..)| name);
                self.due.extend(beside.filter(|name| namespaces.contains(&name.namespace)).cloned());
            }
            Heard::ConfigMap(name, told) => {
                let changed = books.config_maps.get_mut(&name).is_some_and(|shelf| {
                    let first = shelf.state() != crate::shelf::State::Listed;
                    let changed = !shelf.hear(*told).is_empty();
                    changed || first
                });
                if changed {
                    self.wake(books, &Change::ConfigMap(&name));
                }
            }
            Heard::Pods(key, told) => {
                let changed = books.pods.get_mut(&key).is_some_and(|shelf| !shelf.hear(told).is_empty());
                if changed {
                    for pool in pools_of(books, &key) {
                        self.wake(books, &Change::Pool(&pool));
                    }
                }
            }
            Heard::Rewrites(news) => self.hear_rewrites(books, news),
        }
    }

    fn hear_rollouts(&mut self, books: &Books, changed: BTreeSet<ObjectName>) {
        for name in changed {
            let now = books.rollouts.get(&name).and_then(|(_, rollout)| rollout.as_ref().ok());
            let before = match now {
                Some(rollout) => self.known.insert(name.clone(), rollout.clone()),
                None => self.known.remove(&name),
            };
            let shape = |rollout: &Rollout| (rollout.metadata.generation, rollout.metadata.deletion_timestamp);
            if before.as_ref().map(shape) != now.map(shape) {
                for rollout in before.iter().chain(now) {
                    self.wake(books, &Change::Rollout(rollout));
                }
            }
            self.due.insert(name);
        }
    }

    fn hear_rewrites(&mut self, books: &mut Books, news: RewriteNews) {
        let (group, told) = match news {
            RewriteNews::Reset { group, rewrites } => {
                (group, News::Reset(rewrites.into_iter().map(item_of_rewrite).collect()))
            }
            RewriteNews::Apply(rewrite) => match rewrite.group() {
                Some(group) => (group, News::Apply(item_of_rewrite(*rewrite))),
                None => return,
            },
            RewriteNews::Delete { group, namespace, name } => {
                let name = ObjectName { namespace, name };
                let Some((_, last)) = books.rewrites(group).get(&name) else { return };
                let (version, value) = (String::new(), last.clone());
                (group, News::Delete(Item { name, version, value }))
            }
            RewriteNews::State(state) => {
                if state.complete || !state.served.is_empty() {
                    let news = books.served.as_ref() != Some(&state.served);
                    books.served = Some(state.served);
                    if news {
                        self.due.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
                    }
                }
                books.rewrites_problem = state.problem;
                return;
            }
        };
        let first = books.rewrites(group).state() != crate::shelf::State::Listed;
        let changed = books.rewrites_mut(group).hear(Ok(told));
        if first {
            self.due.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
            return;
        }
        for name in changed {
            let rewrite = books.rewrites(group).get(&name).map(|(_, rewrite)| rewrite);
            self.wake(books, &Change::Rewrite(&name, rewrite));
        }
    }

    fn wake(&mut self, books: &Books, change: &Change<'_>) {
        let readable = books.rollouts.iter().filter_map(|(name, _, rollout)| Some((name, rollout.as_ref().ok()?)));
        let concerned = readable.filter(|(name, rollout)| concern::concerns(change, name, rollout));
        self.due.extend(concerned.map(|(name, _)| name.clone()));
    }

    /// Watches what Rollouts name now, and nothing else.
    fn rewatch(&mut self, books: &mut Books) {
        let (mut maps, mut pods) = (BTreeSet::new(), BTreeSet::new());
        for (name, _, rollout) in books.rollouts.iter() {
            let Ok(rollout) = rollout else { continue };
            let spec = &rollout.spec;
            maps.insert(ObjectName::new(&name.namespace, &spec.adapters_ref.name));
            let pool = ObjectName::new(&name.namespace, &spec.pool_ref.name);
            if let Some((_, Ok(pool))) = books.pools.get(&pool) {
                pods.insert((name.namespace.clone(), pool.selector()));
            }
        }
        let over = |wanted: bool, watch: &AbortHandle| {
            if !wanted {
                watch.abort();
            }
            wanted
        };
        self.maps.retain(|name, watch| over(maps.contains(name), watch));
        self.pods.retain(|key, watch| over(pods.contains(key), watch));
        books.config_maps.retain(|name, _| maps.contains(name));
        books.pods.retain(|key, _| pods.contains(key));
        for name in maps {
            if !self.maps.contains_key(&name) {
                books.config_maps.entry(name.clone()).or_default();
                let watch = self.watch_map(&name);
                self.maps.insert(name, watch);
            }
        }
        for key in pods {
            if !self.pods.contains_key(&key) {
                books.pods.entry(key.clone()).or_default();
                let watch = self.watch_pods(&key);
                self.pods.insert(key, watch);
            }
        }
    }

    fn watch_map(&mut self, name: &ObjectName) -> AbortHandle {
        let api: Api<ConfigMap> = Api::namespaced(self.documents.0.cluster.client(), &name.namespace);
        let selection = Selection { fields: Some(format!("metadata.name={}", name.name)), ..Selection::default() };
        let watch = watch::watch(api, &selection, kinds::CONFIG_MAP.resource(), Some(name.namespace.clone()));
        let name = name.clone();
        self.add(watch.map(move |told| Heard::ConfigMap(name.clone(), Box::new(told.map(|news| news.map(map_item))))))
    }

    fn watch_pods(&mut self, key: &(String, String)) -> AbortHandle {
        let (namespace, selector) = key;
        let api: Api<KubePod> = Api::namespaced(self.documents.0.cluster.client(), namespace);
        let selection = Selection { labels: Some(selector.clone()), ..Selection::default() };
        let watch = watch::watch(api, &selection, kinds::POD.resource(), Some(namespace.clone()));
        let key = key.clone();
        self.add(watch.map(move |told| Heard::Pods(key.clone(), told.map(|news| news.map(|pod| Pod::read(&pod))))))
    }

    fn add(&mut self, watch: impl Stream<Item = Heard> + Send + 'static) -> AbortHandle {
        let (watch, handle) = abortable(watch);
        self.streams.push(watch.boxed());
        handle
    }

    /// Each problem once when it begins, and once when it is over.
    fn log_problems(&mut self) {
        let mut problems: BTreeMap<String, String> = BTreeMap::new();
        for (kind, problem) in self.documents.problems() {
            problems.entry(kind).or_insert_with(|| problem.to_string());
        }
        if problems == self.said {
            return;
        }
        for (kind, problem) in &problems {
            if self.said.get(kind) != Some(problem) {
                tracing::warn!(kind, "news may be missing: {problem}");
            }
        }
        for kind in self.said.keys().filter(|kind| !problems.contains_key(*kind)) {
            tracing::info!(kind, "news come again");
        }
        self.said = problems;
    }
}

/// The pools whose pods a watch by this namespace and selector gives.
fn pools_of(books: &Books, (namespace, selector): &(String, String)) -> Vec<ObjectName> {
    let ours = books.pools.iter().filter(|(name, _, pool)| {
        name.namespace == *namespace && pool.as_ref().is_ok_and(|pool| pool.selector() == *selector)
    });
    ours.map(|(name, ..)| name.clone()).collect()
}
