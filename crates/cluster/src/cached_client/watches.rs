//! The watches: they keep memory up to date, and tell whom a change concerns.

use super::{
    CachedClient, Caches, affected,
    affected::{ObjectChange, RolloutRefs},
    config_map_item, item_from_rewrite, parse_rollout_item, pod_discovery,
};
use crate::{
    api_error::ApiError,
    index::IndexDelta,
    object_cache::{CacheItem, NamespacedName, SyncState},
    pods::{InferencePool, Pod, PodObject},
    resource_kind,
    rewrite_watch::{RewriteEvent, RewriteWatch},
    watch::{self, WatchEvent, WatchOptions},
};
use futures_util::{
    Stream, StreamExt,
    future::{AbortHandle, Either, select},
    stream::{self, BoxStream, SelectAll, abortable},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};
use rollora_api::{
    names::{ROUTER_POOL_LABEL, SIDECAR_LABEL},
    rollout::Rollout,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
};
use tokio::sync::mpsc;

/// ConfigMaps in one part of a list: each may have a megabyte.
const CONFIG_MAP_PAGE_SIZE: u32 = 50;
/// Pods in one part of a list: every namespace is listed at once, and a pod may have ten kilobytes.
const POD_PAGE_SIZE: u32 = 100;

/// One thing that a watch told.
enum WatchUpdate {
    Rollouts(Box<CacheEvent<Result<Arc<Rollout>, String>>>),
    Pools(CacheEvent<Result<InferencePool, String>>),
    Rewrites(RewriteEvent),
    Routers(CacheEvent<Pod>),
    Sidecars(CacheEvent<Pod>),
    /// Of one namespace.
    ConfigMaps(String, Box<CacheEvent<ConfigMap>>),
    Pods(String, Result<WatchEvent<MatchedPod>, ApiError>),
}

/// A pod, and the selectors that it matches.
struct MatchedPod {
    pod: CacheItem<Pod>,
    selectors: Vec<String>,
}

/// What is watched in one namespace, and how that ends.
struct NamespaceWatch<T> {
    wanted: T,
    abort_handle: AbortHandle,
}

type Labels = BTreeMap<String, String>;
type CacheEvent<T> = Result<WatchEvent<CacheItem<T>>, ApiError>;

/// What changes, for as long as it is polled.
pub struct ChangeStream {
    client: CachedClient,
    streams: SelectAll<BoxStream<'static, WatchUpdate>>,
    /// By namespace, the names of ConfigMaps.
    config_map_watches: BTreeMap<String, NamespaceWatch<BTreeSet<String>>>,
    /// By namespace, the selectors of pods.
    pod_watches: BTreeMap<String, NamespaceWatch<BTreeMap<String, Labels>>>,
    enqueue_rx: Option<mpsc::UnboundedReceiver<NamespacedName>>,
    /// Rollouts as they were when they were last told, to tell changes of the spec from those of the status.
    known_refs: BTreeMap<NamespacedName, RolloutRefs>,
    /// To be told.
    pending: BTreeSet<NamespacedName>,
    /// Problems that were logged.
    logged_problems: BTreeMap<String, String>,
}

impl std::fmt::Debug for ChangeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changes")
            .field("maps", &self.config_map_watches.keys())
            .field("pods", &self.pod_watches.keys())
            .finish_non_exhaustive()
    }
}

impl ChangeStream {
    pub(super) fn new(documents: &CachedClient) -> Self {
        let inner = &documents.0;
        let (cluster, scope) = (&inner.cluster, &inner.scope);
        // Nothing of a pod without the label is ever sent.
        let pods_with = |label: &str| {
            let pods: Api<PodObject> = scope.api(cluster.kube_client());
            let selection = WatchOptions {
                label_selector: Some(label.to_owned()),
                page_size: Some(POD_PAGE_SIZE),
                ..WatchOptions::default()
            };
            let (resource, namespace) = (resource_kind::POD.group_resource(), scope.namespace().map(str::to_owned));
            watch::watch_mapped(pods, &selection, resource, namespace, |pod| Some(Pod::from_object(&pod)))
        };
        let rewrites = stream::unfold(RewriteWatch::new(cluster, scope.clone()), |mut rewrites| async move {
            Some((WatchUpdate::Rewrites(rewrites.next().await), rewrites))
        });
        let streams = [
            watch::watch_all(cluster, scope, resource_kind::ROLLOUT, parse_rollout_item)
                .map(|told| WatchUpdate::Rollouts(Box::new(told)))
                .boxed(),
            watch::watch_all(cluster, scope, resource_kind::POOL, |pool| InferencePool::from_object(&pool))
                .map(WatchUpdate::Pools)
                .boxed(),
            pods_with(ROUTER_POOL_LABEL).map(WatchUpdate::Routers).boxed(),
            pods_with(SIDECAR_LABEL).map(WatchUpdate::Sidecars).boxed(),
            rewrites.boxed(),
        ];
        // Whoever took it first is the one who listens.
        let enqueue_rx = inner.enqueue_rx.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        Self {
            client: documents.clone(),
            streams: stream::select_all(streams),
            config_map_watches: BTreeMap::new(),
            pod_watches: BTreeMap::new(),
            enqueue_rx,
            known_refs: BTreeMap::new(),
            pending: BTreeSet::new(),
            logged_problems: BTreeMap::new(),
        }
    }

    /// As a stream that never ends.
    pub fn into_stream(self) -> impl Stream<Item = NamespacedName> + Send {
        stream::unfold(self, |mut changes| async move { Some((changes.next().await, changes)) })
    }

    /// The next Rollout to look at. Nothing is lost where this is given up and called again.
    pub async fn next(&mut self) -> NamespacedName {
        loop {
            if let Some(name) = self.pending.pop_first() {
                return name;
            }
            let rung = async {
                // The other end lives as long as the documents.
                match &mut self.enqueue_rx {
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
                // No watch ends but those that are aborted, and five are never aborted.
                Either::Right((None, _)) => std::future::pending().await,
            };
            self.handle_update(heard);
            self.client.0.updates.send_modify(|count| *count += 1);
            self.log_problems();
        }
    }

    fn handle_update(&mut self, heard: WatchUpdate) {
        let documents = self.client.clone();
        let books: &mut Caches = &mut documents.caches();
        match heard {
            WatchUpdate::Rollouts(told) => {
                let changed = books.rollouts.handle_event(*told);
                if self.handle_rollouts(books, changed) {
                    self.update_watches(books);
                }
            }
            WatchUpdate::Pools(told) => {
                let first = books.pools.state() != SyncState::Synced;
                let changed = books.pools.handle_event(told);
                if first {
                    books.mark_all_dirty();
                }
                books.mark_dirty(&changed);
                for name in changed {
                    self.enqueue_affected(books, &ObjectChange::Pool(&name));
                }
                self.update_watches(books);
            }
            WatchUpdate::Routers(told) => {
                let failed = books.routers.is_failed();
                // A pool that it routed for has a router less.
                let turns = books.routers.handle_event(told, |_, pod| pod.router_for.iter().cloned().collect());
                for pool in turns.iter().flat_map(|IndexDelta { before, now }| before.union(now)) {
                    self.enqueue_affected(books, &ObjectChange::Pool(pool));
                }
                self.enqueue_all_if(failed && !books.routers.is_failed(), books);
            }
            WatchUpdate::Sidecars(told) => {
                let failed = books.sidecars.is_failed();
                // Only who begins or ends to read it is news to those who name it.
                let turns = books.sidecars.handle_event(told, pod_discovery::config_maps_read_by);
                for map in turns.iter().flat_map(|IndexDelta { before, now }| before.symmetric_difference(now)) {
                    self.enqueue_affected(books, &ObjectChange::ConfigMap(map));
                }
                self.enqueue_all_if(failed && !books.sidecars.is_failed(), books);
            }
            WatchUpdate::ConfigMaps(namespace, told) => self.handle_config_maps(books, &namespace, *told),
            WatchUpdate::Pods(namespace, told) => self.handle_pods(books, &namespace, told),
            WatchUpdate::Rewrites(news) => self.handle_rewrites(books, news),
        }
    }

    /// Returns whether Rollouts may name something else than they did.
    fn handle_rollouts(&mut self, books: &Caches, changed: BTreeSet<NamespacedName>) -> bool {
        // Then everybody is looked at anyway.
        let first = self.known_refs.is_empty();
        let mut other = false;
        for name in changed {
            if books.has_pending_intent(&name) {
                self.client.0.write_limiter.pause_background();
            }
            let now = books
                .rollouts
                .get(&name)
                .and_then(|(_, rollout)| rollout.as_ref().ok())
                .map(|rollout| RolloutRefs::of(rollout));
            let before = match &now {
                Some(shape) => self.known_refs.insert(name.clone(), shape.clone()),
                None => self.known_refs.remove(&name),
            };
            if before != now {
                other = true;
                for shape in before.iter().chain(&now).filter(|_| !first) {
                    self.enqueue_affected(books, &ObjectChange::Rollout(shape));
                }
            }
            self.pending.insert(name);
        }
        other
    }

    /// A watch of a namespace tells of all that is wanted there.
    fn handle_config_maps(&mut self, books: &mut Caches, namespace: &str, told: CacheEvent<ConfigMap>) {
        let Some(NamespaceWatch { wanted, .. }) = self.config_map_watches.get(namespace) else { return };
        let names: Vec<NamespacedName> = match &told {
            Ok(WatchEvent::Apply(item) | WatchEvent::Delete(item)) => vec![item.name.clone()],
            Ok(WatchEvent::Reset(_)) | Err(_) => {
                wanted.iter().map(|name| NamespacedName::new(namespace, name)).collect()
            }
        };
        let mut told = told.map(|news| match news {
            WatchEvent::Reset(items) => {
                WatchEvent::Reset(items.into_iter().map(|item| (item.name.clone(), item)).collect())
            }
            news => news.map(|item| (item.name.clone(), item)),
        });
        for name in names {
            let Some(kept) = books.config_maps.get_mut(&name) else { continue };
            let of_this = match &mut told {
                Ok(WatchEvent::Reset(items)) => {
                    let found = items.iter().position(|(found, _)| *found == name);
                    Ok(WatchEvent::Reset(found.map(|found| items.swap_remove(found).1).into_iter().collect()))
                }
                Ok(WatchEvent::Apply((_, item))) => Ok(WatchEvent::Apply(item.clone())),
                Ok(WatchEvent::Delete((_, item))) => Ok(WatchEvent::Delete(item.clone())),
                Err(error) => Err(error.clone()),
            };
            let first = kept.state() != SyncState::Synced;
            let changed = !kept.handle_event(of_this).is_empty();
            if changed || first {
                self.enqueue_affected(books, &ObjectChange::ConfigMap(&name));
            }
        }
    }

    fn handle_pods(&mut self, books: &mut Caches, namespace: &str, told: Result<WatchEvent<MatchedPod>, ApiError>) {
        let Some(NamespaceWatch { wanted, .. }) = self.pod_watches.get(namespace) else { return };
        let mut changed = Vec::new();
        let (mut listed, told) = match told {
            Ok(WatchEvent::Reset(all)) => (group_by_selector(all), None),
            told => (BTreeMap::new(), Some(told)),
        };
        for selector in wanted.keys() {
            let key = (namespace.to_owned(), selector.clone());
            let Some(kept) = books.pods.get_mut(&key) else { continue };
            let matches = |sorted: &MatchedPod| sorted.selectors.contains(selector);
            let of_this = match &told {
                None => Ok(WatchEvent::Reset(listed.remove(selector).unwrap_or_default())),
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(WatchEvent::Apply(sorted))) if matches(sorted) => Ok(WatchEvent::Apply(sorted.pod.clone())),
                // One that lost its label is gone from here.
                Some(Ok(WatchEvent::Apply(sorted) | WatchEvent::Delete(sorted)))
                    if kept.get(&sorted.pod.name).is_some() =>
                {
                    Ok(WatchEvent::Delete(sorted.pod.clone()))
                }
                Some(Ok(_)) => continue,
            };
            let first = kept.state() != SyncState::Synced;
            let other = !kept.handle_event(of_this).is_empty();
            if other || first {
                changed.push(key);
            }
        }
        for pool in changed.iter().flat_map(|key| pools_with_selector(books, key)) {
            self.enqueue_affected(books, &ObjectChange::Pool(&pool));
        }
    }

    fn handle_rewrites(&mut self, books: &mut Caches, news: RewriteEvent) {
        let (group, told) = match news {
            RewriteEvent::Reset { group, rewrites } => {
                (group, WatchEvent::Reset(rewrites.into_iter().map(item_from_rewrite).collect()))
            }
            RewriteEvent::Apply(rewrite) => match rewrite.group() {
                Some(group) => (group, WatchEvent::Apply(item_from_rewrite(*rewrite))),
                None => return,
            },
            RewriteEvent::Delete { group, namespace, name } => {
                let name = NamespacedName { namespace, name };
                let Some((_, last)) = books.rewrites(group).get(&name) else { return };
                let (version, value) = (String::new(), last.clone());
                (group, WatchEvent::Delete(CacheItem { name, version, value }))
            }
            RewriteEvent::State(state) => {
                if state.synced || !state.served_groups.is_empty() {
                    let news = books.served.as_ref() != Some(&state.served_groups);
                    books.served = Some(state.served_groups);
                    if news {
                        books.mark_all_dirty();
                        self.pending.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
                    }
                }
                books.rewrites_problem = state.problem;
                return;
            }
        };
        let first = books.rewrites(group).state() != crate::object_cache::SyncState::Synced;
        let changed = books.rewrites_mut(group).handle_event(Ok(told));
        books.mark_dirty(&changed);
        if first {
            self.pending.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
            return;
        }
        for name in changed {
            let rewrite = books.rewrites(group).get(&name).map(|(_, rewrite)| &**rewrite);
            self.enqueue_affected(books, &ObjectChange::Rewrite(&name, rewrite));
        }
    }

    fn enqueue_affected(&mut self, books: &Caches, change: &ObjectChange<'_>) {
        let here = books.rollouts.in_namespace(change.namespace());
        let readable = here.filter_map(|(name, _, rollout)| Some((name, rollout.as_ref().ok()?)));
        let concerned = readable.filter(|(name, rollout)| affected::affects(change, name, rollout));
        self.pending.extend(concerned.map(|(name, _)| name.clone()));
    }

    /// Whoever could not be told what is needed looks again when it is there.
    fn enqueue_all_if(&mut self, back: bool, books: &Caches) {
        if back {
            self.pending.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
        }
    }

    /// Watches the ConfigMaps that Rollouts name now, and the pods of the pools beside them: one watch of a kind in each
    /// namespace, which begins anew where more is wanted of it.
    fn update_watches(&mut self, books: &mut Caches) {
        let mut maps = BTreeMap::<String, BTreeSet<String>>::new();
        let mut pods = BTreeMap::<String, BTreeMap<String, Labels>>::new();
        for (name, _, rollout) in books.rollouts.iter() {
            let Ok(rollout) = rollout else { continue };
            maps.entry(name.namespace.clone()).or_default().insert(rollout.spec.adapters_ref.name.clone());
        }
        // Those of other pools may mount the same ConfigMap.
        let beside = books.pools.iter().filter(|(name, ..)| maps.contains_key(&name.namespace));
        for (name, pool) in beside.filter_map(|(name, _, pool)| Some((name, pool.as_ref().ok()?))) {
            pods.entry(name.namespace.clone()).or_default().insert(pool.label_selector(), pool.labels.clone());
        }
        self.config_map_watches.retain(|namespace, watched| keep_or_abort(watched, maps.contains_key(namespace)));
        self.pod_watches.retain(|namespace, watched| keep_or_abort(watched, pods.contains_key(namespace)));
        let wants = |name: &NamespacedName| maps.get(&name.namespace).is_some_and(|names| names.contains(&name.name));
        books.config_maps.retain(|name, _| wants(name));
        books.pods.retain(|(namespace, selector), _| {
            pods.get(namespace).is_some_and(|selectors| selectors.contains_key(selector))
        });
        for (namespace, wanted) in maps {
            let known =
                self.config_map_watches.get(&namespace).is_some_and(|watched| wanted.is_subset(&watched.wanted));
            for name in &wanted {
                books.config_maps.entry(NamespacedName::new(&namespace, name)).or_default();
            }
            match self.config_map_watches.get_mut(&namespace).filter(|_| known) {
                Some(watched) => watched.wanted = wanted,
                None => self.watch_config_maps(namespace, wanted),
            }
        }
        for (namespace, wanted) in pods {
            let has = |watched: &NamespaceWatch<BTreeMap<String, Labels>>| {
                wanted.keys().all(|selector| watched.wanted.contains_key(selector))
            };
            let known = self.pod_watches.get(&namespace).is_some_and(has);
            for selector in wanted.keys() {
                books.pods.entry((namespace.clone(), selector.clone())).or_default();
            }
            match self.pod_watches.get_mut(&namespace).filter(|_| known) {
                Some(watched) => watched.wanted = wanted,
                None => self.watch_pods(namespace, wanted),
            }
        }
    }

    fn watch_config_maps(&mut self, namespace: String, wanted: BTreeSet<String>) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.0.cluster.kube_client(), &namespace);
        // One name is asked for as such: nothing else has to be sent.
        let only = wanted.first().filter(|_| wanted.len() == 1);
        let fields = only.map(|name| format!("metadata.name={name}"));
        let selection =
            WatchOptions { field_selector: fields, page_size: Some(CONFIG_MAP_PAGE_SIZE), ..WatchOptions::default() };
        let names = wanted.clone();
        let read = move |map: ConfigMap| Some(config_map_item(map)).filter(|item| names.contains(&item.name.name));
        let resource = resource_kind::CONFIG_MAP.group_resource();
        let watch = watch::watch_mapped(api, &selection, resource, Some(namespace.clone()), read);
        let of = namespace.clone();
        let watch = self.add_watch(watch.map(move |told| WatchUpdate::ConfigMaps(of.clone(), Box::new(told))));
        if let Some(before) = self.config_map_watches.insert(namespace, NamespaceWatch { wanted, abort_handle: watch })
        {
            before.abort_handle.abort();
        }
    }

    fn watch_pods(&mut self, namespace: String, wanted: BTreeMap<String, Labels>) {
        let api: Api<PodObject> = Api::namespaced(self.client.0.cluster.kube_client(), &namespace);
        let labels = Some(wanted.keys().next().cloned().unwrap_or_default()).filter(|_| wanted.len() == 1);
        let selection =
            WatchOptions { label_selector: labels, page_size: Some(POD_PAGE_SIZE), ..WatchOptions::default() };
        let selectors = wanted.clone();
        let read = move |pod: PodObject| {
            let has = |labels: &Labels| labels.iter().all(|(name, value)| pod.labels().get(name) == Some(value));
            let matching = selectors.iter().filter(|(_, labels)| has(labels));
            Some(MatchedPod {
                selectors: matching.map(|(selector, _)| selector.clone()).collect(),
                pod: Pod::from_object(&pod),
            })
        };
        let watch =
            watch::watch_mapped(api, &selection, resource_kind::POD.group_resource(), Some(namespace.clone()), read);
        let of = namespace.clone();
        let watch = self.add_watch(watch.map(move |told| WatchUpdate::Pods(of.clone(), told)));
        if let Some(before) = self.pod_watches.insert(namespace, NamespaceWatch { wanted, abort_handle: watch }) {
            before.abort_handle.abort();
        }
    }

    fn add_watch(&mut self, watch: impl Stream<Item = WatchUpdate> + Send + 'static) -> AbortHandle {
        let (watch, handle) = abortable(watch);
        self.streams.push(watch.boxed());
        handle
    }

    /// Each problem once when it begins, and once when it is over.
    fn log_problems(&mut self) {
        let mut problems: BTreeMap<String, String> = BTreeMap::new();
        for (kind, problem) in self.client.watch_problems() {
            problems.entry(kind).or_insert_with(|| problem.to_string());
        }
        if problems == self.logged_problems {
            return;
        }
        for (kind, problem) in &problems {
            if self.logged_problems.get(kind) != Some(problem) {
                tracing::warn!(kind, "news may be missing: {problem}");
            }
        }
        for kind in self.logged_problems.keys().filter(|kind| !problems.contains_key(*kind)) {
            tracing::info!(kind, "news come again");
        }
        self.logged_problems = problems;
    }
}

/// Pods by the selectors that they match. There may be tens of thousands: none is copied but where it matches several.
fn group_by_selector(all: Vec<MatchedPod>) -> BTreeMap<String, Vec<CacheItem<Pod>>> {
    let mut sorted = BTreeMap::<String, Vec<CacheItem<Pod>>>::new();
    for MatchedPod { pod, mut selectors } in all {
        let Some(last) = selectors.pop() else { continue };
        for selector in selectors {
            sorted.entry(selector).or_default().push(pod.clone());
        }
        sorted.entry(last).or_default().push(pod);
    }
    sorted
}

/// Whether a watch goes on; it ends where it does not.
fn keep_or_abort<T>(watched: &NamespaceWatch<T>, wanted: bool) -> bool {
    if !wanted {
        watched.abort_handle.abort();
    }
    wanted
}

/// The pools whose pods a watch by this namespace and selector gives.
fn pools_with_selector(books: &Caches, (namespace, selector): &(String, String)) -> Vec<NamespacedName> {
    let ours = books.pools.iter().filter(|(name, _, pool)| {
        name.namespace == *namespace && pool.as_ref().is_ok_and(|pool| pool.label_selector() == *selector)
    });
    ours.map(|(name, ..)| name.clone()).collect()
}
