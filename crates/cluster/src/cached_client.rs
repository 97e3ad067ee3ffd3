//! Everything that an operator reads and writes: Rollouts, rewrites, the ConfigMaps, pools and pods that they name.
//!
//! Reads come from memory, which watches keep up to date; a read waits until its watch has told everything once, or
//! has failed. Only what is named by a Rollout is watched, and of that only what is needed is kept: ConfigMaps one by
//! one, pods by the selectors of their pools, and those that say by a label that they route or have a sidecar.
//!
//! Invariants:
//! - A read is never older than the last write that ended as [`Written::Done`].
//! - After any other end of a write, the next read of that object asks the source.

mod affected;
mod dirty;
mod orphans;
mod pod_discovery;
mod related_objects;
mod watches;
pub(crate) mod write;
mod write_limiter;

pub use pod_discovery::ConfigMapReaders;
pub use watches::ChangeStream;
pub use write::ObjectWriteOutcome;

use crate::{
    Cluster, Scope,
    api_discovery::REWRITE_GROUPS,
    api_error::{ApiError, ApiRequest},
    gitops_owner,
    index::Index,
    object_cache::{CacheItem, NamespacedName, ObjectCache, SyncState},
    pods::{InferencePool, Pod},
    resource_kind::{self, ResourceKind},
    rewrite_watch,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Resource, ResourceExt, core::DynamicObject};
use related_objects::RelatedObjects;
use rollora_api::{
    names::{API_VERSION, DIRECTIVES_KEY},
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Intent, Rollout},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{SemaphorePermit, mpsc, watch},
    time::timeout,
};
use write_limiter::WriteLimiter;

/// How long the source may take to answer a read.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// Why a read gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectReadError {
    /// The source could not be asked, or a permission is missing; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// What there is cannot be used; a person must change it.
    #[error("{0}")]
    Invalid(String),
}

/// A value and the version that a write of it has to name.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionedObject<T> {
    /// The version.
    pub resource_version: String,
    /// The value.
    pub value: T,
}

/// The adapters ConfigMap, as far as it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersConfigMapData {
    /// The user's key.
    pub user_text: String,
    /// The operator's key.
    pub directives_text: Option<String>,
    /// Who else writes this ConfigMap, where its labels or annotations say so.
    pub gitops_owner: Option<String>,
}

/// The documents. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct CachedClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    write_limiter: WriteLimiter,
    scope: Scope,
    caches: Mutex<Caches>,
    /// Counts what watches have told, for reads that wait.
    updates: watch::Sender<u64>,
    /// Rollouts that are to be looked at because of a write.
    enqueue_tx: mpsc::UnboundedSender<NamespacedName>,
    enqueue_rx: Mutex<Option<mpsc::UnboundedReceiver<NamespacedName>>>,
}

/// What is in memory.
#[derive(Debug, Default)]
struct Caches {
    rollouts: ObjectCache<Result<Arc<Rollout>, String>>,
    current: ObjectCache<Arc<InferenceModelRewrite>>,
    legacy: ObjectCache<Arc<InferenceModelRewrite>>,
    /// Which groups of rewrites are installed; none before that is known.
    served: Option<BTreeSet<RewriteGroup>>,
    /// Why rewrites cannot be watched.
    rewrites_problem: Option<ApiError>,
    pools: ObjectCache<Result<InferencePool, String>>,
    /// By the pool that they route for.
    routers: Index<Pod>,
    /// Pods that say that a sidecar runs in them, by the ConfigMaps that they read.
    sidecars: Index<Pod>,
    config_maps: BTreeMap<NamespacedName, ObjectCache<ConfigMap>>,
    /// ConfigMaps that nobody names any more, as they were read for the last write to them.
    orphans: BTreeMap<NamespacedName, ConfigMap>,
    /// By namespace and selector.
    pods: BTreeMap<(String, String), ObjectCache<Pod>>,
    /// Namespaces whose rewrites or pools are other than they were when somebody last asked.
    dirty_namespaces: BTreeSet<String>,
}

impl Caches {
    fn has_pending_intent(&self, name: &NamespacedName) -> bool {
        let rollout = self.rollouts.get(name).and_then(|(_, rollout)| rollout.as_ref().ok());
        rollout.is_some_and(|rollout| Intent::pending(rollout).is_ok_and(|intent| intent.is_some()))
    }

    fn rewrites(&self, group: RewriteGroup) -> &ObjectCache<Arc<InferenceModelRewrite>> {
        match group {
            RewriteGroup::Current => &self.current,
            RewriteGroup::Legacy => &self.legacy,
        }
    }

    fn rewrites_mut(&mut self, group: RewriteGroup) -> &mut ObjectCache<Arc<InferenceModelRewrite>> {
        match group {
            RewriteGroup::Current => &mut self.current,
            RewriteGroup::Legacy => &mut self.legacy,
        }
    }

    /// Whether both groups can be read; one that is not installed is empty.
    fn rewrites_sync_state(&self) -> SyncState {
        let Some(served) = &self.served else {
            return self.rewrites_problem.clone().map_or(SyncState::Pending, SyncState::Failed);
        };
        if served.is_empty() {
            let [current, legacy] = REWRITE_GROUPS.map(|group| resource_kind::rewrite(group).group_resource());
            return SyncState::Failed(ApiError::NotFound(format!(
                "no kind of rewrite is installed, neither {current} nor {legacy}: install the \
                 CustomResourceDefinition of the one that your router reads"
            )));
        }
        let mut states = served.iter().map(|group| self.rewrites(*group).state());
        let unlisted = states.find(|state| *state != SyncState::Synced);
        match unlisted {
            None => SyncState::Synced,
            Some(SyncState::Pending) => self.rewrites_problem.clone().map_or(SyncState::Pending, SyncState::Failed),
            Some(state) => state,
        }
    }
}

impl CachedClient {
    /// Documents of which nothing is known yet.
    pub fn new(cluster: &Cluster, scope: Scope) -> Self {
        let (rung, bell) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            cluster: cluster.clone(),
            write_limiter: WriteLimiter::default(),
            scope,
            caches: Mutex::default(),
            updates: watch::Sender::new(0),
            enqueue_tx: rung,
            enqueue_rx: Mutex::new(Some(bell)),
        }))
    }

    /// Rollouts that something happened to, or to what they name. Begins with every Rollout there is. Memory is kept
    /// up to date for as long as this is polled; it can be had once.
    pub fn changes(&self) -> ChangeStream {
        ChangeStream::new(self)
    }

    /// Which groups of rewrites are installed; none before that is known.
    pub fn served_groups(&self) -> Option<BTreeSet<RewriteGroup>> {
        self.caches().served.clone()
    }

    /// Why news may be missing at present, by kind.
    pub fn watch_problems(&self) -> Vec<(String, ApiError)> {
        let books = self.caches();
        let mut problems = vec![
            (resource_kind::ROLLOUT.group_resource(), books.rollouts.problem().cloned()),
            ("inferencemodelrewrites".to_owned(), books.rewrites_problem.clone()),
            (resource_kind::POOL.group_resource(), books.pools.problem().cloned()),
            (resource_kind::POD.group_resource(), books.routers.problem().cloned()),
            (resource_kind::POD.group_resource(), books.sidecars.problem().cloned()),
        ];
        let pods = books.pods.values().filter_map(ObjectCache::problem);
        problems.extend(pods.map(|problem| (resource_kind::POD.group_resource(), Some(problem.clone()))));
        let maps = books.config_maps.values().filter_map(ObjectCache::problem);
        problems.extend(maps.map(|problem| (resource_kind::CONFIG_MAP.group_resource(), Some(problem.clone()))));
        problems.into_iter().filter_map(|(kind, problem)| Some((kind, problem?))).collect()
    }

    /// Whether all Rollouts are known.
    pub fn has_synced(&self) -> bool {
        self.caches().rollouts.state() == SyncState::Synced
    }

    /// Every Rollout that can be read.
    pub async fn rollouts(&self) -> Result<Vec<VersionedObject<Arc<Rollout>>>, ObjectReadError> {
        self.wait_for_sync(|books| books.rollouts.state(), &resource_kind::ROLLOUT.group_resource()).await?;
        self.refresh_stale_rollouts(None).await?;
        let books = self.caches();
        let readable = books.rollouts.iter().filter_map(|(_, version, rollout)| {
            Some(VersionedObject { resource_version: version.to_owned(), value: rollout.as_ref().ok()?.clone() })
        });
        Ok(readable.collect())
    }

    /// Those of them that may matter to one of them; itself among them.
    pub async fn related_rollouts(
        &self,
        name: &NamespacedName,
    ) -> Result<Vec<VersionedObject<Arc<Rollout>>>, ObjectReadError> {
        self.wait_for_sync(|books| books.rollouts.state(), &resource_kind::ROLLOUT.group_resource()).await?;
        self.refresh_stale_rollouts(None).await?;
        let books = self.caches();
        let vicinity = books.rollouts.get(name).and_then(|(_, rollout)| RelatedObjects::of(rollout.as_ref().ok()?));
        let readable = books.rollouts.in_namespace(&name.namespace).filter_map(|(_, version, rollout)| {
            let rollout = rollout.as_ref().ok()?;
            let beside = vicinity.as_ref().is_none_or(|vicinity| vicinity.includes_rollout(rollout));
            beside.then(|| VersionedObject { resource_version: version.to_owned(), value: rollout.clone() })
        });
        Ok(readable.collect())
    }

    /// One Rollout; none where it does not exist.
    pub async fn rollout(
        &self,
        name: &NamespacedName,
    ) -> Result<Option<VersionedObject<Arc<Rollout>>>, ObjectReadError> {
        self.wait_for_sync(|books| books.rollouts.state(), &resource_kind::ROLLOUT.group_resource()).await?;
        self.refresh_stale_rollouts(Some(name)).await?;
        match self.caches().rollouts.get(name) {
            None => Ok(None),
            Some((version, Ok(rollout))) => {
                Ok(Some(VersionedObject { resource_version: version.to_owned(), value: rollout.clone() }))
            }
            Some((_, Err(why))) => Err(ObjectReadError::Invalid(why.clone())),
        }
    }

    /// Whether somebody asked something of this Rollout that was not answered yet, as far as is known.
    pub fn has_pending_intent(&self, name: &NamespacedName) -> bool {
        self.caches().has_pending_intent(name)
    }

    /// A place for a write that nobody waits for; none where it has waited for one long enough.
    pub(crate) async fn acquire_write_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.0.write_limiter.acquire().await
    }

    /// The same for a write that waits no longer as soon as somebody asks something of this Rollout.
    async fn acquire_write_permit_unless_intent(&self, name: &NamespacedName) -> Option<SemaphorePermit<'_>> {
        self.0.write_limiter.acquire_unless(|| self.has_pending_intent(name)).await
    }

    /// Every rewrite of both groups in a namespace.
    pub async fn rewrites(
        &self,
        namespace: &str,
    ) -> Result<Vec<VersionedObject<Arc<InferenceModelRewrite>>>, ObjectReadError> {
        self.rewrites_matching(namespace, |_, _| true).await
    }

    /// Those of them that may matter to a Rollout.
    pub async fn related_rewrites(
        &self,
        name: &NamespacedName,
    ) -> Result<Vec<VersionedObject<Arc<InferenceModelRewrite>>>, ObjectReadError> {
        let vicinity =
            self.caches().rollouts.get(name).and_then(|(_, rollout)| RelatedObjects::of(rollout.as_ref().ok()?));
        let Some(vicinity) = vicinity else { return self.rewrites(&name.namespace).await };
        self.rewrites_matching(&name.namespace, |name, rewrite| vicinity.includes_rewrite(name, rewrite)).await
    }

    async fn rewrites_matching(
        &self,
        namespace: &str,
        wanted: impl Fn(&str, &InferenceModelRewrite) -> bool,
    ) -> Result<Vec<VersionedObject<Arc<InferenceModelRewrite>>>, ObjectReadError> {
        self.wait_for_sync(Caches::rewrites_sync_state, "rewrites").await?;
        for group in REWRITE_GROUPS {
            let doubtful = self.caches().rewrites(group).stale_names(Some(namespace));
            for name in doubtful {
                let found = self.get_live(resource_kind::rewrite(group), &name).await?;
                let found = found.and_then(|object| parse_rewrite_item(group, object));
                self.caches().rewrites_mut(group).apply_live_read(&name, found);
            }
        }
        let books = self.caches();
        let here = REWRITE_GROUPS.into_iter().flat_map(|group| books.rewrites(group).in_namespace(namespace));
        let here = here.filter(|(name, _, rewrite)| wanted(&name.name, rewrite));
        Ok(here
            .map(|(_, version, value)| VersionedObject { resource_version: version.to_owned(), value: value.clone() })
            .collect())
    }

    /// The two keys of a ConfigMap; none where it does not exist. The source is asked where memory is older than
    /// `at_least`.
    pub async fn adapters(
        &self,
        name: &NamespacedName,
        key: &str,
        at_least: Option<&str>,
    ) -> Result<Option<VersionedObject<AdaptersConfigMapData>>, ObjectReadError> {
        let map = self.config_map(name, at_least).await?;
        map.map(|map| {
            let version = map.resource_version().unwrap_or_default();
            let data = map.data.clone().unwrap_or_default();
            let Some(user_text) = data.get(key).cloned() else {
                return Err(ObjectReadError::Invalid(missing_key_message(name, key, &map)));
            };
            let value = AdaptersConfigMapData {
                user_text,
                directives_text: data.get(DIRECTIVES_KEY).cloned(),
                gitops_owner: gitops_owner::detect(&map).map(str::to_owned),
            };
            Ok(VersionedObject { resource_version: version, value })
        })
        .transpose()
    }

    async fn config_map(
        &self,
        name: &NamespacedName,
        at_least: Option<&str>,
    ) -> Result<Option<ConfigMap>, ObjectReadError> {
        let watched = self.caches().config_maps.contains_key(name);
        if !watched {
            return self.unwatched_config_map(name).await;
        }
        let state = |books: &Caches| books.config_maps.get(name).map_or(SyncState::Pending, ObjectCache::state);
        self.wait_for_sync(state, &resource_kind::CONFIG_MAP.group_resource()).await?;
        if let (Some(version), Some(shelf)) = (at_least, self.caches().config_maps.get_mut(name)) {
            shelf.mark_stale_before(name, version);
        }
        let is_doubtful =
            |books: &Caches| books.config_maps.get(name).is_some_and(|shelf| !shelf.stale_names(None).is_empty());
        if is_doubtful(&self.caches()) {
            let found = self.get_live(resource_kind::CONFIG_MAP, name).await?;
            let found = found.and_then(|object| object.try_parse().ok()).map(config_map_item);
            if let Some(shelf) = self.caches().config_maps.get_mut(name) {
                shelf.apply_live_read(name, found);
            }
        }
        let books = self.caches();
        Ok(books.config_maps.get(name).and_then(|shelf| shelf.get(name)).map(|(_, map)| map.clone()))
    }

    /// A ConfigMap that is not watched, because the last Rollout that named it is gone.
    async fn unwatched_config_map(&self, name: &NamespacedName) -> Result<Option<ConfigMap>, ObjectReadError> {
        let found = self.get_live(resource_kind::CONFIG_MAP, name).await?.and_then(|object| object.try_parse().ok());
        let found = found.map(|map| config_map_item(map).value);
        self.caches().orphans.extend(found.clone().map(|map| (name.clone(), map)));
        Ok(found)
    }

    /// Asks the source about Rollouts that a write left open.
    async fn refresh_stale_rollouts(&self, only: Option<&NamespacedName>) -> Result<(), ObjectReadError> {
        let doubtful = self.caches().rollouts.stale_names(None);
        for name in doubtful.into_iter().filter(|name| only.is_none_or(|only| only == name)) {
            let found = self.get_live(resource_kind::ROLLOUT, &name).await?.map(parse_rollout_item);
            self.caches().rollouts.apply_live_read(&name, found);
        }
        Ok(())
    }

    /// One object, as it is now.
    async fn get_live(
        &self,
        kind: ResourceKind,
        name: &NamespacedName,
    ) -> Result<Option<DynamicObject>, ObjectReadError> {
        let resource = kind.group_resource();
        let request = ApiRequest { verb: "get", resource: &resource, namespace: Some(&name.namespace) };
        let api = self.api(kind, &name.namespace);
        match timeout(READ_TIMEOUT, api.get_opt(&name.name)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => match ApiError::of(&error, request) {
                // Not even its kind is there.
                ApiError::NotFound(_) => Ok(None),
                error => Err(ObjectReadError::Unavailable(error.to_string())),
            },
            Err(_) => Err(ObjectReadError::Unavailable(format!("{request}: no answer within {READ_TIMEOUT:?}"))),
        }
    }

    pub(crate) fn kube_client(&self) -> kube::Client {
        self.0.cluster.kube_client()
    }

    fn api(&self, kind: ResourceKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.0.cluster.kube_client(), namespace, &kind.api_resource())
    }

    /// Waits until a part of memory can be read.
    async fn wait_for_sync(&self, state: impl Fn(&Caches) -> SyncState, what: &str) -> Result<(), ObjectReadError> {
        let mut told = self.0.updates.subscribe();
        loop {
            told.mark_unchanged();
            match state(&self.caches()) {
                SyncState::Synced => return Ok(()),
                SyncState::Failed(error @ ApiError::NotFound(_)) => {
                    return Err(ObjectReadError::Invalid(not_installed_message(what, &error)));
                }
                // It is tried again all the time; what helps is a person.
                SyncState::Failed(ApiError::Forbidden(words)) => return Err(ObjectReadError::Invalid(words)),
                SyncState::Failed(error) => return Err(ObjectReadError::Unavailable(error.to_string())),
                SyncState::Pending => {}
            }
            if told.changed().await.is_err() {
                return Err(ObjectReadError::Unavailable(format!("{what} are not watched any more")));
            }
        }
    }

    fn caches(&self) -> MutexGuard<'_, Caches> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.caches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_installed_message(what: &str, error: &ApiError) -> String {
    if what == resource_kind::POOL.group_resource() {
        return format!(
            "the kind {what} is not installed: install the CustomResourceDefinitions of the Gateway API inference \
             extension (v1)"
        );
    }
    if what == resource_kind::ROLLOUT.group_resource() {
        return format!("the kind {what} is not installed: apply crds/");
    }
    error.to_string()
}

fn missing_key_message(name: &NamespacedName, key: &str, map: &ConfigMap) -> String {
    let user = |key: &&String| key.as_str() != DIRECTIVES_KEY;
    let keys: Vec<&str> = map.data.iter().flat_map(BTreeMap::keys).filter(user).map(String::as_str).collect();
    let has = if keys.is_empty() { "it has none".to_owned() } else { format!("it has {}", keys.join(", ")) };
    format!("ConfigMap {name} has no key {key} ({has}): add it, or mend spec.adaptersRef.key")
}

fn parse_rollout_item(mut object: DynamicObject) -> CacheItem<Result<Arc<Rollout>, String>> {
    // They are many times as large as the rest, and nobody reads them.
    object.metadata.managed_fields = None;
    let name = NamespacedName::new(object.namespace().unwrap_or_default(), object.name_any());
    let version = object.resource_version().unwrap_or_default();
    let value = parse_rollout(object).map(Arc::new).map_err(|error| {
        format!("it cannot be read by this version of the operator: {error}: update the operator, or mend the field")
    });
    CacheItem { name, version, value }
}

/// A Rollout, as the API server gives it.
pub(crate) fn parse_rollout(object: DynamicObject) -> Result<Rollout, serde_json::Error> {
    let mut value = serde_json::to_value(object)?;
    // A list says them once for all.
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
        fields.insert("kind".to_owned(), resource_kind::ROLLOUT.name.into());
    }
    serde_json::from_value(value)
}

fn parse_rewrite_item(group: RewriteGroup, mut object: DynamicObject) -> Option<CacheItem<Arc<InferenceModelRewrite>>> {
    object.metadata.managed_fields = None;
    rewrite_watch::parse_rewrite(group, object).map(item_from_rewrite)
}

fn item_from_rewrite(rewrite: InferenceModelRewrite) -> CacheItem<Arc<InferenceModelRewrite>> {
    let metadata = &rewrite.metadata;
    CacheItem {
        name: NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone()),
        version: metadata.resource_version.clone().unwrap_or_default(),
        value: Arc::new(rewrite),
    }
}

fn config_map_item(mut map: ConfigMap) -> CacheItem<ConfigMap> {
    map.meta_mut().managed_fields = None;
    CacheItem {
        name: NamespacedName::new(map.namespace().unwrap_or_default(), map.name_any()),
        version: map.resource_version().unwrap_or_default(),
        value: map,
    }
}
