//! Watches of all objects: they update the caches and enqueue the affected Rollouts.

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

/// Number of ConfigMaps in one page of a list: each may have a megabyte.
const CONFIG_MAP_PAGE_SIZE: u32 = 50;
/// Number of pods in one page of a list: all namespaces are listed concurrently, and a pod may have ten kilobytes.
const POD_PAGE_SIZE: u32 = 100;

/// Output of one watch.
enum WatchUpdate {
    Rollouts(Box<CacheEvent<Result<Arc<Rollout>, String>>>),
    Pools(CacheEvent<Result<InferencePool, String>>),
    Rewrites(RewriteEvent),
    Routers(CacheEvent<Pod>),
    Sidecars(CacheEvent<Pod>),
    /// ConfigMaps of one namespace.
    ConfigMaps(String, Box<CacheEvent<ConfigMap>>),
    Pods(String, Result<WatchEvent<MatchedPod>, ApiError>),
}

/// A pod, and the label selectors that it matches.
struct MatchedPod {
    pod: CacheItem<Pod>,
    selectors: Vec<String>,
}

/// Watch of one namespace: its selection, and the handle that ends it.
struct NamespaceWatch<T> {
    selection: T,
    abort_handle: AbortHandle,
}

type Labels = BTreeMap<String, String>;
type CacheEvent<T> = Result<WatchEvent<CacheItem<T>>, ApiError>;

/// Names of Rollouts that need a reconcile, derived from all watches; updates the caches while it is polled.
pub struct ChangeStream {
    client: CachedClient,
    streams: SelectAll<BoxStream<'static, WatchUpdate>>,
    /// Watches of ConfigMaps by namespace, with the selected names.
    config_map_watches: BTreeMap<String, NamespaceWatch<BTreeSet<String>>>,
    /// Watches of pods by namespace, with the label selectors.
    pod_watches: BTreeMap<String, NamespaceWatch<BTreeMap<String, Labels>>>,
    enqueue_rx: Option<mpsc::UnboundedReceiver<NamespacedName>>,
    /// References of each Rollout when it was last delivered, to distinguish changes of its spec from those of its
    /// status.
    known_refs: BTreeMap<NamespacedName, RolloutRefs>,
    /// Rollouts that were not delivered yet.
    pending: BTreeSet<NamespacedName>,
    /// Problems that were logged, by kind.
    logged_problems: BTreeMap<String, String>,
}

impl std::fmt::Debug for ChangeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChangeStream")
            .field("config_map_watches", &self.config_map_watches.keys())
            .field("pod_watches", &self.pod_watches.keys())
            .finish_non_exhaustive()
    }
}

impl ChangeStream {
    pub(super) fn new(client: &CachedClient) -> Self {
        let inner = &client.0;
        let (cluster, scope) = (&inner.cluster, &inner.scope);
        // The API server filters by label, so that it never sends other pods.
        let pods_with = |label: &str| {
            let pods: Api<PodObject> = scope.api(cluster.kube_client());
            let options = WatchOptions {
                label_selector: Some(label.to_owned()),
                page_size: Some(POD_PAGE_SIZE),
                ..WatchOptions::default()
            };
            let (resource, namespace) = (resource_kind::POD.group_resource(), scope.namespace().map(str::to_owned));
            watch::watch_mapped(pods, &options, resource, namespace, |pod| Some(Pod::from_object(&pod)))
        };
        let rewrites = stream::unfold(RewriteWatch::new(cluster, scope.clone()), |mut rewrites| async move {
            Some((WatchUpdate::Rewrites(rewrites.next().await), rewrites))
        });
        let streams = [
            watch::watch_all(cluster, scope, resource_kind::ROLLOUT, parse_rollout_item)
                .map(|event| WatchUpdate::Rollouts(Box::new(event)))
                .boxed(),
            watch::watch_all(cluster, scope, resource_kind::POOL, |pool| InferencePool::from_object(&pool))
                .map(WatchUpdate::Pools)
                .boxed(),
            pods_with(ROUTER_POOL_LABEL).map(WatchUpdate::Routers).boxed(),
            pods_with(SIDECAR_LABEL).map(WatchUpdate::Sidecars).boxed(),
            rewrites.boxed(),
        ];
        // Only the first stream receives the Rollouts of `enqueue`.
        let enqueue_rx = inner.enqueue_rx.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        Self {
            client: client.clone(),
            streams: stream::select_all(streams),
            config_map_watches: BTreeMap::new(),
            pod_watches: BTreeMap::new(),
            enqueue_rx,
            known_refs: BTreeMap::new(),
            pending: BTreeSet::new(),
            logged_problems: BTreeMap::new(),
        }
    }

    /// Converts it into a stream, which never ends.
    pub fn into_stream(self) -> impl Stream<Item = NamespacedName> + Send {
        stream::unfold(self, |mut changes| async move { Some((changes.next().await, changes)) })
    }

    /// Returns the next Rollout to reconcile. Cancel safe.
    pub async fn next(&mut self) -> NamespacedName {
        loop {
            if let Some(name) = self.pending.pop_first() {
                return name;
            }
            let enqueued = async {
                // The sender lives as long as the client.
                match &mut self.enqueue_rx {
                    Some(enqueue_rx) => match enqueue_rx.recv().await {
                        Some(name) => name,
                        None => std::future::pending().await,
                    },
                    None => std::future::pending().await,
                }
            };
            let update = match select(pin!(enqueued), self.streams.next()).await {
                Either::Left((name, _)) => return name,
                Either::Right((Some(update), _)) => update,
                // No watch ends unless it is aborted, and five are never aborted.
                Either::Right((None, _)) => std::future::pending().await,
            };
            self.handle_update(update);
            self.client.0.updates.send_modify(|count| *count += 1);
            self.log_problems();
        }
    }

    fn handle_update(&mut self, update: WatchUpdate) {
        let client = self.client.clone();
        let caches: &mut Caches = &mut client.caches();
        match update {
            WatchUpdate::Rollouts(event) => {
                let changed = caches.rollouts.handle_event(*event);
                if self.handle_rollouts(caches, changed) {
                    self.update_watches(caches);
                }
            }
            WatchUpdate::Pools(event) => {
                let first = caches.pools.state() != SyncState::Synced;
                let changed = caches.pools.handle_event(event);
                if first {
                    caches.mark_all_dirty();
                }
                caches.mark_dirty(&changed);
                for name in changed {
                    self.enqueue_affected(caches, &ObjectChange::Pool(&name));
                }
                self.update_watches(caches);
            }
            WatchUpdate::Routers(event) => {
                let failed = caches.routers.is_failed();
                // The pool for which the router worked before is affected too.
                let deltas = caches.routers.handle_event(event, |_, pod| pod.router_for.iter().cloned().collect());
                for pool in deltas.iter().flat_map(|IndexDelta { before, after }| before.union(after)) {
                    self.enqueue_affected(caches, &ObjectChange::Pool(pool));
                }
                self.enqueue_all_if(failed && !caches.routers.is_failed(), caches);
            }
            WatchUpdate::Sidecars(event) => {
                let failed = caches.sidecars.is_failed();
                // Rollouts are affected only by pods that begin or cease to read their ConfigMap.
                let deltas = caches.sidecars.handle_event(event, pod_discovery::config_maps_read_by);
                for map in deltas.iter().flat_map(|IndexDelta { before, after }| before.symmetric_difference(after)) {
                    self.enqueue_affected(caches, &ObjectChange::ConfigMap(map));
                }
                self.enqueue_all_if(failed && !caches.sidecars.is_failed(), caches);
            }
            WatchUpdate::ConfigMaps(namespace, event) => self.handle_config_maps(caches, &namespace, *event),
            WatchUpdate::Pods(namespace, event) => self.handle_pods(caches, &namespace, event),
            WatchUpdate::Rewrites(event) => self.handle_rewrites(caches, event),
        }
    }

    /// Enqueues changed Rollouts and those affected. Returns whether references changed, so that watches must be
    /// updated.
    fn handle_rollouts(&mut self, caches: &Caches, changed: BTreeSet<NamespacedName>) -> bool {
        // The first list enqueues every Rollout anyway.
        let first = self.known_refs.is_empty();
        let mut refs_changed = false;
        for name in changed {
            if caches.has_pending_intent(&name) {
                self.client.0.write_limiter.pause_background();
            }
            let after = caches
                .rollouts
                .get(&name)
                .and_then(|(_, rollout)| rollout.as_ref().ok())
                .map(|rollout| RolloutRefs::of(rollout));
            let before = match &after {
                Some(refs) => self.known_refs.insert(name.clone(), refs.clone()),
                None => self.known_refs.remove(&name),
            };
            if before != after {
                refs_changed = true;
                for refs in before.iter().chain(&after).filter(|_| !first) {
                    self.enqueue_affected(caches, &ObjectChange::Rollout(refs));
                }
            }
            self.pending.insert(name);
        }
        refs_changed
    }

    /// Distributes an event of a namespace's watch to the caches of the ConfigMaps that it selects.
    fn handle_config_maps(&mut self, caches: &mut Caches, namespace: &str, event: CacheEvent<ConfigMap>) {
        let Some(NamespaceWatch { selection, .. }) = self.config_map_watches.get(namespace) else { return };
        let names: Vec<NamespacedName> = match &event {
            Ok(WatchEvent::Apply(item) | WatchEvent::Delete(item)) => vec![item.name.clone()],
            Ok(WatchEvent::Reset(_)) | Err(_) => {
                selection.iter().map(|name| NamespacedName::new(namespace, name)).collect()
            }
        };
        let mut event = event.map(|event| match event {
            WatchEvent::Reset(items) => {
                WatchEvent::Reset(items.into_iter().map(|item| (item.name.clone(), item)).collect())
            }
            event => event.map(|item| (item.name.clone(), item)),
        });
        for name in names {
            let Some(cache) = caches.config_maps.get_mut(&name) else { continue };
            let own_event = match &mut event {
                Ok(WatchEvent::Reset(items)) => {
                    let found = items.iter().position(|(found, _)| *found == name);
                    Ok(WatchEvent::Reset(found.map(|found| items.swap_remove(found).1).into_iter().collect()))
                }
                Ok(WatchEvent::Apply((_, item))) => Ok(WatchEvent::Apply(item.clone())),
                Ok(WatchEvent::Delete((_, item))) => Ok(WatchEvent::Delete(item.clone())),
                Err(error) => Err(error.clone()),
            };
            let first = cache.state() != SyncState::Synced;
            let changed = !cache.handle_event(own_event).is_empty();
            if changed || first {
                self.enqueue_affected(caches, &ObjectChange::ConfigMap(&name));
            }
        }
    }

    fn handle_pods(&mut self, caches: &mut Caches, namespace: &str, event: Result<WatchEvent<MatchedPod>, ApiError>) {
        let Some(NamespaceWatch { selection, .. }) = self.pod_watches.get(namespace) else { return };
        let mut changed = Vec::new();
        let (mut listed, event) = match event {
            Ok(WatchEvent::Reset(all)) => (group_by_selector(all), None),
            event => (BTreeMap::new(), Some(event)),
        };
        for selector in selection.keys() {
            let key = (namespace.to_owned(), selector.clone());
            let Some(cache) = caches.pods.get_mut(&key) else { continue };
            let is_selected = |pod: &MatchedPod| pod.selectors.contains(selector);
            let own_event = match &event {
                None => Ok(WatchEvent::Reset(listed.remove(selector).unwrap_or_default())),
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(WatchEvent::Apply(matched))) if is_selected(matched) => {
                    Ok(WatchEvent::Apply(matched.pod.clone()))
                }
                // A pod that lost its label no longer matches.
                Some(Ok(WatchEvent::Apply(matched) | WatchEvent::Delete(matched)))
                    if cache.get(&matched.pod.name).is_some() =>
                {
                    Ok(WatchEvent::Delete(matched.pod.clone()))
                }
                Some(Ok(_)) => continue,
            };
            let first = cache.state() != SyncState::Synced;
            let changed_here = !cache.handle_event(own_event).is_empty();
            if changed_here || first {
                changed.push(key);
            }
        }
        for pool in changed.iter().flat_map(|key| pools_with_selector(caches, key)) {
            self.enqueue_affected(caches, &ObjectChange::Pool(&pool));
        }
    }

    fn handle_rewrites(&mut self, caches: &mut Caches, event: RewriteEvent) {
        let (group, event) = match event {
            RewriteEvent::Reset { group, rewrites } => {
                (group, WatchEvent::Reset(rewrites.into_iter().map(item_from_rewrite).collect()))
            }
            RewriteEvent::Apply(rewrite) => match rewrite.group() {
                Some(group) => (group, WatchEvent::Apply(item_from_rewrite(*rewrite))),
                None => return,
            },
            RewriteEvent::Delete { group, namespace, name } => {
                let name = NamespacedName { namespace, name };
                let Some((_, last)) = caches.rewrites(group).get(&name) else { return };
                let (version, value) = (String::new(), last.clone());
                (group, WatchEvent::Delete(CacheItem { name, version, value }))
            }
            RewriteEvent::State(state) => {
                if state.synced || !state.served_groups.is_empty() {
                    let changed = caches.served.as_ref() != Some(&state.served_groups);
                    caches.served = Some(state.served_groups);
                    if changed {
                        caches.mark_all_dirty();
                        self.pending.extend(caches.rollouts.iter().map(|(name, ..)| name.clone()));
                    }
                }
                caches.rewrites_problem = state.problem;
                return;
            }
        };
        let first = caches.rewrites(group).state() != SyncState::Synced;
        let changed = caches.rewrites_mut(group).handle_event(Ok(event));
        caches.mark_dirty(&changed);
        if first {
            self.pending.extend(caches.rollouts.iter().map(|(name, ..)| name.clone()));
            return;
        }
        for name in changed {
            let rewrite = caches.rewrites(group).get(&name).map(|(_, rewrite)| &**rewrite);
            self.enqueue_affected(caches, &ObjectChange::Rewrite(&name, rewrite));
        }
    }

    fn enqueue_affected(&mut self, caches: &Caches, change: &ObjectChange<'_>) {
        let in_namespace = caches.rollouts.in_namespace(change.namespace());
        let readable = in_namespace.filter_map(|(name, _, rollout)| Some((name, rollout.as_ref().ok()?)));
        let affected = readable.filter(|(name, rollout)| affected::affects(change, name, rollout));
        self.pending.extend(affected.map(|(name, _)| name.clone()));
    }

    /// Enqueues every Rollout if a failed watch works again, because some could not be decided without it.
    fn enqueue_all_if(&mut self, recovered: bool, caches: &Caches) {
        if recovered {
            self.pending.extend(caches.rollouts.iter().map(|(name, ..)| name.clone()));
        }
    }

    /// Watches the ConfigMaps that Rollouts name, and the pods of all pools in their namespaces. There is one watch per
    /// kind and namespace, which restarts if it must select more.
    fn update_watches(&mut self, caches: &mut Caches) {
        let mut maps = BTreeMap::<String, BTreeSet<String>>::new();
        let mut pods = BTreeMap::<String, BTreeMap<String, Labels>>::new();
        for (name, _, rollout) in caches.rollouts.iter() {
            let Ok(rollout) = rollout else { continue };
            maps.entry(name.namespace.clone()).or_default().insert(rollout.spec.adapters_ref.name.clone());
        }
        // Pods of other pools may mount the same ConfigMap.
        let pools = caches.pools.iter().filter(|(name, ..)| maps.contains_key(&name.namespace));
        for (name, pool) in pools.filter_map(|(name, _, pool)| Some((name, pool.as_ref().ok()?))) {
            pods.entry(name.namespace.clone()).or_default().insert(pool.label_selector(), pool.labels.clone());
        }
        self.config_map_watches.retain(|namespace, watched| keep_or_abort(watched, maps.contains_key(namespace)));
        self.pod_watches.retain(|namespace, watched| keep_or_abort(watched, pods.contains_key(namespace)));
        let is_named =
            |name: &NamespacedName| maps.get(&name.namespace).is_some_and(|names| names.contains(&name.name));
        caches.config_maps.retain(|name, _| is_named(name));
        caches.pods.retain(|(namespace, selector), _| {
            pods.get(namespace).is_some_and(|selectors| selectors.contains_key(selector))
        });
        for (namespace, selection) in maps {
            let is_covered =
                self.config_map_watches.get(&namespace).is_some_and(|watched| selection.is_subset(&watched.selection));
            for name in &selection {
                caches.config_maps.entry(NamespacedName::new(&namespace, name)).or_default();
            }
            match self.config_map_watches.get_mut(&namespace).filter(|_| is_covered) {
                Some(watched) => watched.selection = selection,
                None => self.watch_config_maps(namespace, selection),
            }
        }
        for (namespace, selection) in pods {
            let has = |watched: &NamespaceWatch<BTreeMap<String, Labels>>| {
                selection.keys().all(|selector| watched.selection.contains_key(selector))
            };
            let is_covered = self.pod_watches.get(&namespace).is_some_and(has);
            for selector in selection.keys() {
                caches.pods.entry((namespace.clone(), selector.clone())).or_default();
            }
            match self.pod_watches.get_mut(&namespace).filter(|_| is_covered) {
                Some(watched) => watched.selection = selection,
                None => self.watch_pods(namespace, selection),
            }
        }
    }

    fn watch_config_maps(&mut self, namespace: String, selection: BTreeSet<String>) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.0.cluster.kube_client(), &namespace);
        // A single name is selected by the API server, which then sends nothing else.
        let only = selection.first().filter(|_| selection.len() == 1);
        let fields = only.map(|name| format!("metadata.name={name}"));
        let options =
            WatchOptions { field_selector: fields, page_size: Some(CONFIG_MAP_PAGE_SIZE), ..WatchOptions::default() };
        let names = selection.clone();
        let to_item = move |map: ConfigMap| Some(config_map_item(map)).filter(|item| names.contains(&item.name.name));
        let resource = resource_kind::CONFIG_MAP.group_resource();
        let watch = watch::watch_mapped(api, &options, resource, Some(namespace.clone()), to_item);
        let watch_namespace = namespace.clone();
        let watch =
            self.add_watch(watch.map(move |event| WatchUpdate::ConfigMaps(watch_namespace.clone(), Box::new(event))));
        if let Some(before) =
            self.config_map_watches.insert(namespace, NamespaceWatch { selection, abort_handle: watch })
        {
            before.abort_handle.abort();
        }
    }

    fn watch_pods(&mut self, namespace: String, selection: BTreeMap<String, Labels>) {
        let api: Api<PodObject> = Api::namespaced(self.client.0.cluster.kube_client(), &namespace);
        let labels = Some(selection.keys().next().cloned().unwrap_or_default()).filter(|_| selection.len() == 1);
        let options =
            WatchOptions { label_selector: labels, page_size: Some(POD_PAGE_SIZE), ..WatchOptions::default() };
        let selectors = selection.clone();
        let to_item = move |pod: PodObject| {
            let has = |labels: &Labels| labels.iter().all(|(name, value)| pod.labels().get(name) == Some(value));
            let matching = selectors.iter().filter(|(_, labels)| has(labels));
            Some(MatchedPod {
                selectors: matching.map(|(selector, _)| selector.clone()).collect(),
                pod: Pod::from_object(&pod),
            })
        };
        let watch =
            watch::watch_mapped(api, &options, resource_kind::POD.group_resource(), Some(namespace.clone()), to_item);
        let watch_namespace = namespace.clone();
        let watch = self.add_watch(watch.map(move |event| WatchUpdate::Pods(watch_namespace.clone(), event)));
        if let Some(before) = self.pod_watches.insert(namespace, NamespaceWatch { selection, abort_handle: watch }) {
            before.abort_handle.abort();
        }
    }

    fn add_watch(&mut self, watch: impl Stream<Item = WatchUpdate> + Send + 'static) -> AbortHandle {
        let (watch, handle) = abortable(watch);
        self.streams.push(watch.boxed());
        handle
    }

    /// Logs each problem once when it begins, and once when it ends.
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
                tracing::warn!(kind, "the watch failed, changes may be missing: {problem}");
            }
        }
        for kind in self.logged_problems.keys().filter(|kind| !problems.contains_key(*kind)) {
            tracing::info!(kind, "the watch works again");
        }
        self.logged_problems = problems;
    }
}

/// Groups pods by the selectors that they match. There may be tens of thousands, so a pod is copied only if it matches
/// several.
fn group_by_selector(all: Vec<MatchedPod>) -> BTreeMap<String, Vec<CacheItem<Pod>>> {
    let mut by_selector = BTreeMap::<String, Vec<CacheItem<Pod>>>::new();
    for MatchedPod { pod, mut selectors } in all {
        let Some(last) = selectors.pop() else { continue };
        for selector in selectors {
            by_selector.entry(selector).or_default().push(pod.clone());
        }
        by_selector.entry(last).or_default().push(pod);
    }
    by_selector
}

/// Aborts a watch that is no longer needed. Returns `is_needed`.
fn keep_or_abort<T>(watched: &NamespaceWatch<T>, is_needed: bool) -> bool {
    if !is_needed {
        watched.abort_handle.abort();
    }
    is_needed
}

/// Returns the pools whose pods this selector matches.
fn pools_with_selector(caches: &Caches, (namespace, selector): &(String, String)) -> Vec<NamespacedName> {
    let matching = caches.pools.iter().filter(|(name, _, pool)| {
        name.namespace == *namespace && pool.as_ref().is_ok_and(|pool| pool.label_selector() == *selector)
    });
    matching.map(|(name, ..)| name.clone()).collect()
}
