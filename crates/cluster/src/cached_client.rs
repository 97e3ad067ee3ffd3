//! Cached reads and versioned writes of Rollouts, rewrites, and the ConfigMaps, pools and pods that they refer to.
//!
//! Reads are served from caches that watches keep up to date. A read waits until its cache has received the first
//! complete list, or has failed. Only objects that a Rollout refers to are watched, and only the used fields are kept:
//! ConfigMaps by name, pods by the selectors of their pools, and routers and sidecars by their labels.
//!
//! Invariants:
//! - A read is never older than the last write that ended with [`ObjectWriteOutcome::Done`].
//! - After any other outcome of a write, the next read of that object goes to the API server.

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

/// Timeout of a read from the API server.
const READ_TIMEOUT: Duration = Duration::from_secs(4);

/// Reason why a read returned nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ObjectReadError {
    /// The API server could not be reached; a retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The object cannot be used, or a permission is missing; a person must fix it.
    #[error("{0}")]
    Invalid(String),
}

/// An object together with its resource version.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionedObject<T> {
    /// Resource version that a write of the object must name.
    pub resource_version: String,
    /// The object's content at that version.
    pub value: T,
}

/// The two keys of the adapters ConfigMap that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersConfigMapData {
    /// Text under the user's key.
    pub user_text: String,
    /// Text under the operator's key `rollora.yaml`; `None` if the ConfigMap has no such key.
    pub directives_text: Option<String>,
    /// The GitOps tool that manages this ConfigMap according to its labels or annotations.
    pub gitops_owner: Option<String>,
}

/// Client for all objects of the operator. Cheap to clone; clones share caches and watches.
#[derive(Debug, Clone)]
pub struct CachedClient(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    write_limiter: WriteLimiter,
    scope: Scope,
    caches: Mutex<Caches>,
    /// Incremented after each applied watch event, to wake reads that wait for a cache.
    updates: watch::Sender<u64>,
    /// Rollouts that a write of another object affects.
    enqueue_tx: mpsc::UnboundedSender<NamespacedName>,
    enqueue_rx: Mutex<Option<mpsc::UnboundedReceiver<NamespacedName>>>,
}

#[derive(Debug, Default)]
struct Caches {
    rollouts: ObjectCache<Result<Arc<Rollout>, String>>,
    current_rewrites: ObjectCache<Arc<InferenceModelRewrite>>,
    legacy_rewrites: ObjectCache<Arc<InferenceModelRewrite>>,
    /// Groups of rewrites that are installed; `None` before discovery has succeeded.
    served: Option<BTreeSet<RewriteGroup>>,
    /// Why rewrites cannot be watched; `None` if they can.
    rewrites_problem: Option<ApiError>,
    pools: ObjectCache<Result<InferencePool, String>>,
    /// Router pods, indexed by the pool for which they route.
    routers: Index<Pod>,
    /// Pods with the sidecar label, indexed by the ConfigMaps that they read.
    sidecars: Index<Pod>,
    config_maps: BTreeMap<NamespacedName, ObjectCache<ConfigMap>>,
    /// ConfigMaps that no Rollout names anymore, as read for the last write.
    orphans: BTreeMap<NamespacedName, ConfigMap>,
    /// Pods by namespace and label selector.
    pods: BTreeMap<(String, String), ObjectCache<Pod>>,
    /// Namespaces whose rewrites or pools changed since the last call of `next_dirty_namespaces`.
    dirty_namespaces: BTreeSet<String>,
}

impl Caches {
    fn has_pending_intent(&self, name: &NamespacedName) -> bool {
        let rollout = self.rollouts.get(name).and_then(|(_, rollout)| rollout.as_ref().ok());
        rollout.is_some_and(|rollout| Intent::pending(rollout).is_ok_and(|intent| intent.is_some()))
    }

    fn rewrites(&self, group: RewriteGroup) -> &ObjectCache<Arc<InferenceModelRewrite>> {
        match group {
            RewriteGroup::Current => &self.current_rewrites,
            RewriteGroup::Legacy => &self.legacy_rewrites,
        }
    }

    fn rewrites_mut(&mut self, group: RewriteGroup) -> &mut ObjectCache<Arc<InferenceModelRewrite>> {
        match group {
            RewriteGroup::Current => &mut self.current_rewrites,
            RewriteGroup::Legacy => &mut self.legacy_rewrites,
        }
    }

    /// Returns whether both groups can be read; a group that is not installed is empty.
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
        let unsynced = states.find(|state| *state != SyncState::Synced);
        match unsynced {
            None => SyncState::Synced,
            Some(SyncState::Pending) => self.rewrites_problem.clone().map_or(SyncState::Pending, SyncState::Failed),
            Some(state) => state,
        }
    }
}

impl CachedClient {
    /// Returns a client with empty caches. Watches start with the first poll of [`Self::changes`].
    pub fn new(cluster: &Cluster, scope: Scope) -> Self {
        let (enqueue_tx, enqueue_rx) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            cluster: cluster.clone(),
            write_limiter: WriteLimiter::default(),
            scope,
            caches: Mutex::default(),
            updates: watch::Sender::new(0),
            enqueue_tx,
            enqueue_rx: Mutex::new(Some(enqueue_rx)),
        }))
    }

    /// Returns the names of Rollouts that changed, or whose related objects changed, starting with every existing one.
    ///
    /// The caches are kept up to date only while this stream is polled. Only the first stream receives the Rollouts of
    /// [`Self::enqueue`].
    pub fn changes(&self) -> ChangeStream {
        ChangeStream::new(self)
    }

    /// Returns the installed groups of rewrites; `None` before discovery has succeeded.
    pub fn served_groups(&self) -> Option<BTreeSet<RewriteGroup>> {
        self.caches().served.clone()
    }

    /// Returns the kinds whose changes may be missing at present, with the reason.
    pub fn watch_problems(&self) -> Vec<(String, ApiError)> {
        let caches = self.caches();
        let mut problems = vec![
            (resource_kind::ROLLOUT.group_resource(), caches.rollouts.problem().cloned()),
            ("inferencemodelrewrites".to_owned(), caches.rewrites_problem.clone()),
            (resource_kind::POOL.group_resource(), caches.pools.problem().cloned()),
            (resource_kind::POD.group_resource(), caches.routers.problem().cloned()),
            (resource_kind::POD.group_resource(), caches.sidecars.problem().cloned()),
        ];
        let pods = caches.pods.values().filter_map(ObjectCache::problem);
        problems.extend(pods.map(|problem| (resource_kind::POD.group_resource(), Some(problem.clone()))));
        let config_maps = caches.config_maps.values().filter_map(ObjectCache::problem);
        problems.extend(config_maps.map(|problem| (resource_kind::CONFIG_MAP.group_resource(), Some(problem.clone()))));
        problems.into_iter().filter_map(|(kind, problem)| Some((kind, problem?))).collect()
    }

    /// Returns whether the first complete list of Rollouts was received.
    pub fn has_synced(&self) -> bool {
        self.caches().rollouts.state() == SyncState::Synced
    }

    /// Returns every Rollout that can be parsed.
    pub async fn rollouts(&self) -> Result<Vec<VersionedObject<Arc<Rollout>>>, ObjectReadError> {
        self.wait_for_sync(|caches| caches.rollouts.state(), &resource_kind::ROLLOUT.group_resource()).await?;
        self.refresh_stale_rollouts(None).await?;
        let caches = self.caches();
        let readable = caches.rollouts.iter().filter_map(|(_, version, rollout)| {
            Some(VersionedObject { resource_version: version.to_owned(), value: rollout.as_ref().ok()?.clone() })
        });
        Ok(readable.collect())
    }

    /// Returns this Rollout and all others that may matter to it.
    pub async fn related_rollouts(
        &self,
        name: &NamespacedName,
    ) -> Result<Vec<VersionedObject<Arc<Rollout>>>, ObjectReadError> {
        self.wait_for_sync(|caches| caches.rollouts.state(), &resource_kind::ROLLOUT.group_resource()).await?;
        self.refresh_stale_rollouts(None).await?;
        let caches = self.caches();
        let related = caches.rollouts.get(name).and_then(|(_, rollout)| RelatedObjects::of(rollout.as_ref().ok()?));
        let readable = caches.rollouts.in_namespace(&name.namespace).filter_map(|(_, version, rollout)| {
            let rollout = rollout.as_ref().ok()?;
            let matters = related.as_ref().is_none_or(|related| related.includes_rollout(rollout));
            matters.then(|| VersionedObject { resource_version: version.to_owned(), value: rollout.clone() })
        });
        Ok(readable.collect())
    }

    /// Returns one Rollout; `None` if it does not exist.
    pub async fn rollout(
        &self,
        name: &NamespacedName,
    ) -> Result<Option<VersionedObject<Arc<Rollout>>>, ObjectReadError> {
        self.wait_for_sync(|caches| caches.rollouts.state(), &resource_kind::ROLLOUT.group_resource()).await?;
        self.refresh_stale_rollouts(Some(name)).await?;
        match self.caches().rollouts.get(name) {
            None => Ok(None),
            Some((version, Ok(rollout))) => {
                Ok(Some(VersionedObject { resource_version: version.to_owned(), value: rollout.clone() }))
            }
            Some((_, Err(why))) => Err(ObjectReadError::Invalid(why.clone())),
        }
    }

    /// Returns whether the Rollout has an intent that its status has not answered, as far as the cache knows.
    pub fn has_pending_intent(&self, name: &NamespacedName) -> bool {
        self.caches().has_pending_intent(name)
    }

    /// Waits for a permit for a background write. Returns `None` after the maximum wait: the write then needs no
    /// permit.
    pub(crate) async fn acquire_write_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.0.write_limiter.acquire().await
    }

    /// Waits for a permit for a background write; returns `None` as soon as the Rollout has a pending intent.
    async fn acquire_write_permit_unless_intent(&self, name: &NamespacedName) -> Option<SemaphorePermit<'_>> {
        self.0.write_limiter.acquire_unless(|| self.has_pending_intent(name)).await
    }

    /// Returns the rewrites of both groups in a namespace.
    pub async fn rewrites(
        &self,
        namespace: &str,
    ) -> Result<Vec<VersionedObject<Arc<InferenceModelRewrite>>>, ObjectReadError> {
        self.rewrites_matching(namespace, |_, _| true).await
    }

    /// Returns the rewrites that may matter to this Rollout.
    pub async fn related_rewrites(
        &self,
        name: &NamespacedName,
    ) -> Result<Vec<VersionedObject<Arc<InferenceModelRewrite>>>, ObjectReadError> {
        let related =
            self.caches().rollouts.get(name).and_then(|(_, rollout)| RelatedObjects::of(rollout.as_ref().ok()?));
        let Some(related) = related else { return self.rewrites(&name.namespace).await };
        self.rewrites_matching(&name.namespace, |name, rewrite| related.includes_rewrite(name, rewrite)).await
    }

    async fn rewrites_matching(
        &self,
        namespace: &str,
        is_wanted: impl Fn(&str, &InferenceModelRewrite) -> bool,
    ) -> Result<Vec<VersionedObject<Arc<InferenceModelRewrite>>>, ObjectReadError> {
        self.wait_for_sync(Caches::rewrites_sync_state, "rewrites").await?;
        for group in REWRITE_GROUPS {
            let stale = self.caches().rewrites(group).stale_names(Some(namespace));
            for name in stale {
                let found = self.get_live(resource_kind::rewrite(group), &name).await?;
                let found = found.and_then(|object| parse_rewrite_item(group, object));
                self.caches().rewrites_mut(group).apply_live_read(&name, found);
            }
        }
        let caches = self.caches();
        let in_namespace = REWRITE_GROUPS.into_iter().flat_map(|group| caches.rewrites(group).in_namespace(namespace));
        let in_namespace = in_namespace.filter(|(name, _, rewrite)| is_wanted(&name.name, rewrite));
        Ok(in_namespace
            .map(|(_, version, value)| VersionedObject { resource_version: version.to_owned(), value: value.clone() })
            .collect())
    }

    /// Returns the two keys of a ConfigMap; `None` if it does not exist. Reads from the API server if the cache is
    /// older than `at_least`.
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
        let state = |caches: &Caches| caches.config_maps.get(name).map_or(SyncState::Pending, ObjectCache::state);
        self.wait_for_sync(state, &resource_kind::CONFIG_MAP.group_resource()).await?;
        if let (Some(version), Some(cache)) = (at_least, self.caches().config_maps.get_mut(name)) {
            cache.mark_stale_before(name, version);
        }
        let is_stale =
            |caches: &Caches| caches.config_maps.get(name).is_some_and(|cache| !cache.stale_names(None).is_empty());
        if is_stale(&self.caches()) {
            let found = self.get_live(resource_kind::CONFIG_MAP, name).await?;
            let found = found.and_then(|object| object.try_parse().ok()).map(config_map_item);
            if let Some(cache) = self.caches().config_maps.get_mut(name) {
                cache.apply_live_read(name, found);
            }
        }
        let caches = self.caches();
        Ok(caches.config_maps.get(name).and_then(|cache| cache.get(name)).map(|(_, map)| map.clone()))
    }

    /// Reads a ConfigMap that is not watched, because the last Rollout that named it is gone.
    async fn unwatched_config_map(&self, name: &NamespacedName) -> Result<Option<ConfigMap>, ObjectReadError> {
        let found = self.get_live(resource_kind::CONFIG_MAP, name).await?.and_then(|object| object.try_parse().ok());
        let found = found.map(|map| config_map_item(map).value);
        self.caches().orphans.extend(found.clone().map(|map| (name.clone(), map)));
        Ok(found)
    }

    /// Reads stale Rollouts from the API server: all of them, or only this one.
    async fn refresh_stale_rollouts(&self, only: Option<&NamespacedName>) -> Result<(), ObjectReadError> {
        let stale = self.caches().rollouts.stale_names(None);
        for name in stale.into_iter().filter(|name| only.is_none_or(|only| only == name)) {
            let found = self.get_live(resource_kind::ROLLOUT, &name).await?.map(parse_rollout_item);
            self.caches().rollouts.apply_live_read(&name, found);
        }
        Ok(())
    }

    /// Reads one object from the API server, bypassing the cache.
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
                // Also if the kind itself is not installed.
                ApiError::NotFound(_) => Ok(None),
                error => Err(ObjectReadError::Unavailable(error.to_string())),
            },
            Err(_) => Err(ObjectReadError::Unavailable(format!("{request}: no response within {READ_TIMEOUT:?}"))),
        }
    }

    pub(crate) fn kube_client(&self) -> kube::Client {
        self.0.cluster.kube_client()
    }

    fn api(&self, kind: ResourceKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.0.cluster.kube_client(), namespace, &kind.api_resource())
    }

    /// Waits until a cache can be read.
    async fn wait_for_sync(&self, state: impl Fn(&Caches) -> SyncState, what: &str) -> Result<(), ObjectReadError> {
        let mut updates = self.0.updates.subscribe();
        loop {
            updates.mark_unchanged();
            match state(&self.caches()) {
                SyncState::Synced => return Ok(()),
                SyncState::Failed(error @ ApiError::NotFound(_)) => {
                    return Err(ObjectReadError::Invalid(not_installed_message(what, &error)));
                }
                // The watch retries forever; only a person can grant the permission.
                SyncState::Failed(ApiError::Forbidden(message)) => return Err(ObjectReadError::Invalid(message)),
                SyncState::Failed(error) => return Err(ObjectReadError::Unavailable(error.to_string())),
                SyncState::Pending => {}
            }
            if updates.changed().await.is_err() {
                return Err(ObjectReadError::Unavailable(format!("the watch of {what} has ended")));
            }
        }
    }

    fn caches(&self) -> MutexGuard<'_, Caches> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
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
    format!("ConfigMap {name} has no key {key} ({has}): add it, or correct spec.adaptersRef.key")
}

fn parse_rollout_item(mut object: DynamicObject) -> CacheItem<Result<Arc<Rollout>, String>> {
    // Managed fields are many times as large as the rest, and are not used.
    object.metadata.managed_fields = None;
    let name = NamespacedName::new(object.namespace().unwrap_or_default(), object.name_any());
    let version = object.resource_version().unwrap_or_default();
    let value = parse_rollout(object).map(Arc::new).map_err(|error| {
        format!("cannot be parsed by this version of the operator: {error}: update the operator, or correct the field")
    });
    CacheItem { name, version, value }
}

/// Parses a Rollout of the API server.
pub(crate) fn parse_rollout(object: DynamicObject) -> Result<Rollout, serde_json::Error> {
    let mut value = serde_json::to_value(object)?;
    // Items of a list do not repeat these two fields.
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
