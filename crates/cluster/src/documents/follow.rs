//! The watches: they keep memory up to date, and tell whom a change concerns.

use super::{
    Books, Documents, concern,
    concern::{Change, Shape},
    item_of_rewrite, map_item, rollout_item, whom,
};
use crate::{
    answer::ApiError,
    index::Turn,
    kinds,
    pods::{Pod, PodObject, Pool},
    rewrites::{RewriteNews, Rewrites},
    shelf::{Item, ObjectName, State},
    watch::{self, News, Selection},
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
const MAPS: u32 = 50;
/// Pods in one part of a list: every namespace is listed at once, and a pod may have ten kilobytes.
const PODS: u32 = 100;

/// One thing that a watch told.
enum Heard {
    Rollouts(Box<Told<Result<Arc<Rollout>, String>>>),
    Pools(Told<Result<Pool, String>>),
    Rewrites(RewriteNews),
    Routers(Told<Pod>),
    Sidecars(Told<Pod>),
    /// Of one namespace.
    ConfigMaps(String, Box<Told<ConfigMap>>),
    Pods(String, Result<News<Sorted>, ApiError>),
}

/// A pod, and the selectors that it matches.
struct Sorted {
    pod: Item<Pod>,
    selectors: Vec<String>,
}

/// What is watched in one namespace, and how that ends.
struct Watched<T> {
    wanted: T,
    watch: AbortHandle,
}

type Labels = BTreeMap<String, String>;
type Told<T> = Result<News<Item<T>>, ApiError>;

/// What changes, for as long as it is polled.
pub struct Changes {
    documents: Documents,
    streams: SelectAll<BoxStream<'static, Heard>>,
    /// By namespace, the names of ConfigMaps.
    maps: BTreeMap<String, Watched<BTreeSet<String>>>,
    /// By namespace, the selectors of pods.
    pods: BTreeMap<String, Watched<BTreeMap<String, Labels>>>,
    bell: Option<mpsc::UnboundedReceiver<ObjectName>>,
    /// Rollouts as they were when they were last told, to tell changes of the spec from those of the status.
    known: BTreeMap<ObjectName, Shape>,
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
        // Nothing of a pod without the label is ever sent.
        let pods_with = |label: &str| {
            let pods: Api<PodObject> = scope.api(cluster.client());
            let selection = Selection { labels: Some(label.to_owned()), page: Some(PODS), ..Selection::default() };
            let (resource, namespace) = (kinds::POD.resource(), scope.namespace().map(str::to_owned));
            watch::watch_as(pods, &selection, resource, namespace, |pod| Some(Pod::read(&pod)))
        };
        let rewrites = stream::unfold(Rewrites::new(cluster, scope.clone()), |mut rewrites| async move {
            Some((Heard::Rewrites(rewrites.next().await), rewrites))
        });
        let streams = [
            watch::watch_all(cluster, scope, kinds::ROLLOUT, rollout_item)
                .map(|told| Heard::Rollouts(Box::new(told)))
                .boxed(),
            watch::watch_all(cluster, scope, kinds::POOL, |pool| Pool::read(&pool)).map(Heard::Pools).boxed(),
            pods_with(ROUTER_POOL_LABEL).map(Heard::Routers).boxed(),
            pods_with(SIDECAR_LABEL).map(Heard::Sidecars).boxed(),
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
                // No watch ends but those that are aborted, and five are never aborted.
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
                if self.hear_rollouts(books, changed) {
                    self.rewatch(books);
                }
            }
            Heard::Pools(told) => {
                let first = books.pools.state() != State::Listed;
                let changed = books.pools.hear(told);
                if first {
                    books.stir_all();
                }
                books.stir(&changed);
                for name in changed {
                    self.wake(books, &Change::Pool(&name));
                }
                self.rewatch(books);
            }
            Heard::Routers(told) => {
                let failed = books.routers.is_failed();
                // A pool that it routed for has a router less.
                let turns = books.routers.hear(told, |_, pod| pod.router_for.iter().cloned().collect());
                for pool in turns.iter().flat_map(|Turn { before, now }| before.union(now)) {
                    self.wake(books, &Change::Pool(pool));
                }
                self.wake_all_if(failed && !books.routers.is_failed(), books);
            }
            Heard::Sidecars(told) => {
                let failed = books.sidecars.is_failed();
                // Only who begins or ends to read it is news to those who name it.
                let turns = books.sidecars.hear(told, whom::read_by);
                for map in turns.iter().flat_map(|Turn { before, now }| before.symmetric_difference(now)) {
                    self.wake(books, &Change::ConfigMap(map));
                }
                self.wake_all_if(failed && !books.sidecars.is_failed(), books);
            }
            Heard::ConfigMaps(namespace, told) => self.hear_maps(books, &namespace, *told),
            Heard::Pods(namespace, told) => self.hear_pods(books, &namespace, told),
            Heard::Rewrites(news) => self.hear_rewrites(books, news),
        }
    }

    /// Returns whether Rollouts may name something else than they did.
    fn hear_rollouts(&mut self, books: &Books, changed: BTreeSet<ObjectName>) -> bool {
        // Then everybody is looked at anyway.
        let first = self.known.is_empty();
        let mut other = false;
        for name in changed {
            if books.has_wish(&name) {
                self.documents.0.line.stand_still();
            }
            let now = books
                .rollouts
                .get(&name)
                .and_then(|(_, rollout)| rollout.as_ref().ok())
                .map(|rollout| Shape::of(rollout));
            let before = match &now {
                Some(shape) => self.known.insert(name.clone(), shape.clone()),
                None => self.known.remove(&name),
            };
            if before != now {
                other = true;
                for shape in before.iter().chain(&now).filter(|_| !first) {
                    self.wake(books, &Change::Rollout(shape));
                }
            }
            self.due.insert(name);
        }
        other
    }

    /// A watch of a namespace tells of all that is wanted there.
    fn hear_maps(&mut self, books: &mut Books, namespace: &str, told: Told<ConfigMap>) {
        let Some(Watched { wanted, .. }) = self.maps.get(namespace) else { return };
        let names: Vec<ObjectName> = match &told {
            Ok(News::Apply(item) | News::Delete(item)) => vec![item.name.clone()],
            Ok(News::Reset(_)) | Err(_) => wanted.iter().map(|name| ObjectName::new(namespace, name)).collect(),
        };
        let mut told = told.map(|news| match news {
            News::Reset(items) => News::Reset(items.into_iter().map(|item| (item.name.clone(), item)).collect()),
            news => news.map(|item| (item.name.clone(), item)),
        });
        for name in names {
            let Some(kept) = books.config_maps.get_mut(&name) else { continue };
            let of_this = match &mut told {
                Ok(News::Reset(items)) => {
                    let found = items.iter().position(|(found, _)| *found == name);
                    Ok(News::Reset(found.map(|found| items.swap_remove(found).1).into_iter().collect()))
                }
                Ok(News::Apply((_, item))) => Ok(News::Apply(item.clone())),
                Ok(News::Delete((_, item))) => Ok(News::Delete(item.clone())),
                Err(error) => Err(error.clone()),
            };
            let first = kept.state() != State::Listed;
            let changed = !kept.hear(of_this).is_empty();
            if changed || first {
                self.wake(books, &Change::ConfigMap(&name));
            }
        }
    }

    fn hear_pods(&mut self, books: &mut Books, namespace: &str, told: Result<News<Sorted>, ApiError>) {
        let Some(Watched { wanted, .. }) = self.pods.get(namespace) else { return };
        let mut changed = Vec::new();
        let (mut listed, told) = match told {
            Ok(News::Reset(all)) => (by_selector(all), None),
            told => (BTreeMap::new(), Some(told)),
        };
        for selector in wanted.keys() {
            let key = (namespace.to_owned(), selector.clone());
            let Some(kept) = books.pods.get_mut(&key) else { continue };
            let matches = |sorted: &Sorted| sorted.selectors.contains(selector);
            let of_this = match &told {
                None => Ok(News::Reset(listed.remove(selector).unwrap_or_default())),
                Some(Err(error)) => Err(error.clone()),
                Some(Ok(News::Apply(sorted))) if matches(sorted) => Ok(News::Apply(sorted.pod.clone())),
                // One that lost its label is gone from here.
                Some(Ok(News::Apply(sorted) | News::Delete(sorted))) if kept.get(&sorted.pod.name).is_some() => {
                    Ok(News::Delete(sorted.pod.clone()))
                }
                Some(Ok(_)) => continue,
            };
            let first = kept.state() != State::Listed;
            let other = !kept.hear(of_this).is_empty();
            if other || first {
                changed.push(key);
            }
        }
        for pool in changed.iter().flat_map(|key| pools_of(books, key)) {
            self.wake(books, &Change::Pool(&pool));
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
                        books.stir_all();
                        self.due.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
                    }
                }
                books.rewrites_problem = state.problem;
                return;
            }
        };
        let first = books.rewrites(group).state() != crate::shelf::State::Listed;
        let changed = books.rewrites_mut(group).hear(Ok(told));
        books.stir(&changed);
        if first {
            self.due.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
            return;
        }
        for name in changed {
            let rewrite = books.rewrites(group).get(&name).map(|(_, rewrite)| &**rewrite);
            self.wake(books, &Change::Rewrite(&name, rewrite));
        }
    }

    fn wake(&mut self, books: &Books, change: &Change<'_>) {
        let here = books.rollouts.of_namespace(change.namespace());
        let readable = here.filter_map(|(name, _, rollout)| Some((name, rollout.as_ref().ok()?)));
        let concerned = readable.filter(|(name, rollout)| concern::concerns(change, name, rollout));
        self.due.extend(concerned.map(|(name, _)| name.clone()));
    }

    /// Whoever could not be told what is needed looks again when it is there.
    fn wake_all_if(&mut self, back: bool, books: &Books) {
        if back {
            self.due.extend(books.rollouts.iter().map(|(name, ..)| name.clone()));
        }
    }

    /// Watches the ConfigMaps that Rollouts name now, and the pods of the pools beside them: one watch of a kind in each
    /// namespace, which begins anew where more is wanted of it.
    fn rewatch(&mut self, books: &mut Books) {
        let mut maps = BTreeMap::<String, BTreeSet<String>>::new();
        let mut pods = BTreeMap::<String, BTreeMap<String, Labels>>::new();
        for (name, _, rollout) in books.rollouts.iter() {
            let Ok(rollout) = rollout else { continue };
            maps.entry(name.namespace.clone()).or_default().insert(rollout.spec.adapters_ref.name.clone());
        }
        // Those of other pools may mount the same ConfigMap.
        let beside = books.pools.iter().filter(|(name, ..)| maps.contains_key(&name.namespace));
        for (name, pool) in beside.filter_map(|(name, _, pool)| Some((name, pool.as_ref().ok()?))) {
            pods.entry(name.namespace.clone()).or_default().insert(pool.selector(), pool.labels.clone());
        }
        self.maps.retain(|namespace, watched| keep(watched, maps.contains_key(namespace)));
        self.pods.retain(|namespace, watched| keep(watched, pods.contains_key(namespace)));
        let wants = |name: &ObjectName| maps.get(&name.namespace).is_some_and(|names| names.contains(&name.name));
        books.config_maps.retain(|name, _| wants(name));
        books.pods.retain(|(namespace, selector), _| {
            pods.get(namespace).is_some_and(|selectors| selectors.contains_key(selector))
        });
        for (namespace, wanted) in maps {
            let known = self.maps.get(&namespace).is_some_and(|watched| wanted.is_subset(&watched.wanted));
            for name in &wanted {
                books.config_maps.entry(ObjectName::new(&namespace, name)).or_default();
            }
            match self.maps.get_mut(&namespace).filter(|_| known) {
                Some(watched) => watched.wanted = wanted,
                None => self.watch_maps(namespace, wanted),
            }
        }
        for (namespace, wanted) in pods {
            let has = |watched: &Watched<BTreeMap<String, Labels>>| {
                wanted.keys().all(|selector| watched.wanted.contains_key(selector))
            };
            let known = self.pods.get(&namespace).is_some_and(has);
            for selector in wanted.keys() {
                books.pods.entry((namespace.clone(), selector.clone())).or_default();
            }
            match self.pods.get_mut(&namespace).filter(|_| known) {
                Some(watched) => watched.wanted = wanted,
                None => self.watch_pods(namespace, wanted),
            }
        }
    }

    fn watch_maps(&mut self, namespace: String, wanted: BTreeSet<String>) {
        let api: Api<ConfigMap> = Api::namespaced(self.documents.0.cluster.client(), &namespace);
        // One name is asked for as such: nothing else has to be sent.
        let only = wanted.first().filter(|_| wanted.len() == 1);
        let fields = only.map(|name| format!("metadata.name={name}"));
        let selection = Selection { fields, page: Some(MAPS), ..Selection::default() };
        let names = wanted.clone();
        let read = move |map: ConfigMap| Some(map_item(map)).filter(|item| names.contains(&item.name.name));
        let resource = kinds::CONFIG_MAP.resource();
        let watch = watch::watch_as(api, &selection, resource, Some(namespace.clone()), read);
        let of = namespace.clone();
        let watch = self.add(watch.map(move |told| Heard::ConfigMaps(of.clone(), Box::new(told))));
        if let Some(before) = self.maps.insert(namespace, Watched { wanted, watch }) {
            before.watch.abort();
        }
    }

    fn watch_pods(&mut self, namespace: String, wanted: BTreeMap<String, Labels>) {
        let api: Api<PodObject> = Api::namespaced(self.documents.0.cluster.client(), &namespace);
        let labels = Some(wanted.keys().next().cloned().unwrap_or_default()).filter(|_| wanted.len() == 1);
        let selection = Selection { labels, page: Some(PODS), ..Selection::default() };
        let selectors = wanted.clone();
        let read = move |pod: PodObject| {
            let has = |labels: &Labels| labels.iter().all(|(name, value)| pod.labels().get(name) == Some(value));
            let matching = selectors.iter().filter(|(_, labels)| has(labels));
            Some(Sorted { selectors: matching.map(|(selector, _)| selector.clone()).collect(), pod: Pod::read(&pod) })
        };
        let watch = watch::watch_as(api, &selection, kinds::POD.resource(), Some(namespace.clone()), read);
        let of = namespace.clone();
        let watch = self.add(watch.map(move |told| Heard::Pods(of.clone(), told)));
        if let Some(before) = self.pods.insert(namespace, Watched { wanted, watch }) {
            before.watch.abort();
        }
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

/// Pods by the selectors that they match. There may be tens of thousands: none is copied but where it matches several.
fn by_selector(all: Vec<Sorted>) -> BTreeMap<String, Vec<Item<Pod>>> {
    let mut sorted = BTreeMap::<String, Vec<Item<Pod>>>::new();
    for Sorted { pod, mut selectors } in all {
        let Some(last) = selectors.pop() else { continue };
        for selector in selectors {
            sorted.entry(selector).or_default().push(pod.clone());
        }
        sorted.entry(last).or_default().push(pod);
    }
    sorted
}

/// Whether a watch goes on; it ends where it does not.
fn keep<T>(watched: &Watched<T>, wanted: bool) -> bool {
    if !wanted {
        watched.watch.abort();
    }
    wanted
}

/// The pools whose pods a watch by this namespace and selector gives.
fn pools_of(books: &Books, (namespace, selector): &(String, String)) -> Vec<ObjectName> {
    let ours = books.pools.iter().filter(|(name, _, pool)| {
        name.namespace == *namespace && pool.as_ref().is_ok_and(|pool| pool.selector() == *selector)
    });
    ours.map(|(name, ..)| name.clone()).collect()
}
