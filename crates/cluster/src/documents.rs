//! Everything that an operator reads and writes: Rollouts, rewrites, the ConfigMaps, pools and pods that they name.
//!
//! Reads come from memory, which watches keep up to date; a read waits until its watch has told everything once, or
//! has failed. Only what is named by a Rollout is watched, and of that only what is needed is kept: ConfigMaps one by
//! one, pods by the selectors of their pools, and those that say by a label that they route or have a sidecar.
//!
//! Invariants:
//! - A read is never older than the last write that ended as [`Written::Done`].
//! - After any other end of a write, the next read of that object asks the source.

mod abandoned;
mod concern;
mod follow;
mod line;
mod stirred;
mod vicinity;
mod whom;
pub(crate) mod write;

pub use follow::Changes;
pub use whom::Sharers;
pub use write::Written;

use crate::{
    Cluster, Scope,
    answer::{ApiError, Request},
    groups::GROUPS,
    index::Index,
    kinds::{self, Kind},
    owner,
    pods::{Pod, Pool},
    rewrites,
    shelf::{Item, ObjectName, Shelf, State},
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Resource, ResourceExt, core::DynamicObject};
use line::Line;
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
use vicinity::Vicinity;

/// How long the source may take to answer a read.
const LIMIT: Duration = Duration::from_secs(4);

/// Why a read gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The source could not be asked, or a permission is missing; trying again may help.
    #[error("{0}")]
    Unavailable(String),
    /// What there is cannot be used; a person must change it.
    #[error("{0}")]
    Invalid(String),
}

/// A value and the version that a write of it has to name.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// The version.
    pub version: String,
    /// The value.
    pub value: T,
}

/// The adapters ConfigMap, as far as it is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersMap {
    /// The user's key.
    pub user_text: String,
    /// The operator's key.
    pub key_text: Option<String>,
    /// Who else writes this ConfigMap, where its labels or annotations say so.
    pub gitops_owner: Option<String>,
}

/// The documents. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Documents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    line: Line,
    scope: Scope,
    books: Mutex<Books>,
    /// Counts what watches have told, for reads that wait.
    told: watch::Sender<u64>,
    /// Rollouts that are to be looked at because of a write.
    rung: mpsc::UnboundedSender<ObjectName>,
    bell: Mutex<Option<mpsc::UnboundedReceiver<ObjectName>>>,
}

/// What is in memory.
#[derive(Debug, Default)]
struct Books {
    rollouts: Shelf<Result<Arc<Rollout>, String>>,
    current: Shelf<Arc<InferenceModelRewrite>>,
    legacy: Shelf<Arc<InferenceModelRewrite>>,
    /// Which groups of rewrites are installed; none before that is known.
    served: Option<BTreeSet<RewriteGroup>>,
    /// Why rewrites cannot be watched.
    rewrites_problem: Option<ApiError>,
    pools: Shelf<Result<Pool, String>>,
    /// By the pool that they route for.
    routers: Index<Pod>,
    /// Pods that say that a sidecar runs in them, by the ConfigMaps that they read.
    sidecars: Index<Pod>,
    config_maps: BTreeMap<ObjectName, Shelf<ConfigMap>>,
    /// ConfigMaps that nobody names any more, as they were read for the last write to them.
    abandoned: BTreeMap<ObjectName, ConfigMap>,
    /// By namespace and selector.
    pods: BTreeMap<(String, String), Shelf<Pod>>,
    /// Namespaces whose rewrites or pools are other than they were when somebody last asked.
    stirred: BTreeSet<String>,
}

impl Books {
    fn has_wish(&self, name: &ObjectName) -> bool {
        let rollout = self.rollouts.get(name).and_then(|(_, rollout)| rollout.as_ref().ok());
        rollout.is_some_and(|rollout| Intent::pending(rollout).is_ok_and(|intent| intent.is_some()))
    }

    fn rewrites(&self, group: RewriteGroup) -> &Shelf<Arc<InferenceModelRewrite>> {
        match group {
            RewriteGroup::Current => &self.current,
            RewriteGroup::Legacy => &self.legacy,
        }
    }

    fn rewrites_mut(&mut self, group: RewriteGroup) -> &mut Shelf<Arc<InferenceModelRewrite>> {
        match group {
            RewriteGroup::Current => &mut self.current,
            RewriteGroup::Legacy => &mut self.legacy,
        }
    }

    /// Whether both groups can be read; one that is not installed is empty.
    fn rewrites_state(&self) -> State {
        let Some(served) = &self.served else {
            return self.rewrites_problem.clone().map_or(State::Waiting, State::Failed);
        };
        if served.is_empty() {
            let [current, legacy] = GROUPS.map(|group| kinds::rewrite(group).resource());
            return State::Failed(ApiError::NotFound(format!(
                "no kind of rewrite is installed, neither {current} nor {legacy}: install the \
                 CustomResourceDefinition of the one that your router reads"
            )));
        }
        let mut states = served.iter().map(|group| self.rewrites(*group).state());
        let unlisted = states.find(|state| *state != State::Listed);
        match unlisted {
            None => State::Listed,
            Some(State::Waiting) => self.rewrites_problem.clone().map_or(State::Waiting, State::Failed),
            Some(state) => state,
        }
    }
}

impl Documents {
    /// Documents of which nothing is known yet.
    pub fn new(cluster: &Cluster, scope: Scope) -> Self {
        let (rung, bell) = mpsc::unbounded_channel();
        Self(Arc::new(Inner {
            cluster: cluster.clone(),
            line: Line::default(),
            scope,
            books: Mutex::default(),
            told: watch::Sender::new(0),
            rung,
            bell: Mutex::new(Some(bell)),
        }))
    }

    /// Rollouts that something happened to, or to what they name. Begins with every Rollout there is. Memory is kept
    /// up to date for as long as this is polled; it can be had once.
    pub fn changes(&self) -> Changes {
        Changes::new(self)
    }

    /// Which groups of rewrites are installed; none before that is known.
    pub fn served(&self) -> Option<BTreeSet<RewriteGroup>> {
        self.books().served.clone()
    }

    /// Why news may be missing at present, by kind.
    pub fn problems(&self) -> Vec<(String, ApiError)> {
        let books = self.books();
        let mut problems = vec![
            (kinds::ROLLOUT.resource(), books.rollouts.problem().cloned()),
            ("inferencemodelrewrites".to_owned(), books.rewrites_problem.clone()),
            (kinds::POOL.resource(), books.pools.problem().cloned()),
            (kinds::POD.resource(), books.routers.problem().cloned()),
            (kinds::POD.resource(), books.sidecars.problem().cloned()),
        ];
        let pods = books.pods.values().filter_map(Shelf::problem);
        problems.extend(pods.map(|problem| (kinds::POD.resource(), Some(problem.clone()))));
        let maps = books.config_maps.values().filter_map(Shelf::problem);
        problems.extend(maps.map(|problem| (kinds::CONFIG_MAP.resource(), Some(problem.clone()))));
        problems.into_iter().filter_map(|(kind, problem)| Some((kind, problem?))).collect()
    }

    /// Whether all Rollouts are known.
    pub fn is_listed(&self) -> bool {
        self.books().rollouts.state() == State::Listed
    }

    /// Every Rollout that can be read.
    pub async fn rollouts(&self) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        self.wait(|books| books.rollouts.state(), &kinds::ROLLOUT.resource()).await?;
        self.settle_rollouts(None).await?;
        let books = self.books();
        let readable = books.rollouts.iter().filter_map(|(_, version, rollout)| {
            Some(Versioned { version: version.to_owned(), value: rollout.as_ref().ok()?.clone() })
        });
        Ok(readable.collect())
    }

    /// Those of them that may matter to one of them; itself among them.
    pub async fn rollouts_beside(&self, name: &ObjectName) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        self.wait(|books| books.rollouts.state(), &kinds::ROLLOUT.resource()).await?;
        self.settle_rollouts(None).await?;
        let books = self.books();
        let vicinity = books.rollouts.get(name).and_then(|(_, rollout)| Vicinity::of(rollout.as_ref().ok()?));
        let readable = books.rollouts.of_namespace(&name.namespace).filter_map(|(_, version, rollout)| {
            let rollout = rollout.as_ref().ok()?;
            let beside = vicinity.as_ref().is_none_or(|vicinity| vicinity.has_rollout(rollout));
            beside.then(|| Versioned { version: version.to_owned(), value: rollout.clone() })
        });
        Ok(readable.collect())
    }

    /// One Rollout; none where it does not exist.
    pub async fn rollout(&self, name: &ObjectName) -> Result<Option<Versioned<Arc<Rollout>>>, ReadError> {
        self.wait(|books| books.rollouts.state(), &kinds::ROLLOUT.resource()).await?;
        self.settle_rollouts(Some(name)).await?;
        match self.books().rollouts.get(name) {
            None => Ok(None),
            Some((version, Ok(rollout))) => Ok(Some(Versioned { version: version.to_owned(), value: rollout.clone() })),
            Some((_, Err(why))) => Err(ReadError::Invalid(why.clone())),
        }
    }

    /// Whether somebody asked something of this Rollout that was not answered yet, as far as is known.
    pub fn has_wish(&self, name: &ObjectName) -> bool {
        self.books().has_wish(name)
    }

    /// A place for a write that nobody waits for; none where it has waited for one long enough.
    pub(crate) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.0.line.place().await
    }

    /// The same for a write that waits no longer as soon as somebody asks something of this Rollout.
    async fn place_unless_wished(&self, name: &ObjectName) -> Option<SemaphorePermit<'_>> {
        self.0.line.place_unless(|| self.has_wish(name)).await
    }

    /// Every rewrite of both groups in a namespace.
    pub async fn rewrites(&self, namespace: &str) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        self.rewrites_where(namespace, |_, _| true).await
    }

    /// Those of them that may matter to a Rollout.
    pub async fn rewrites_beside(
        &self,
        name: &ObjectName,
    ) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        let vicinity = self.books().rollouts.get(name).and_then(|(_, rollout)| Vicinity::of(rollout.as_ref().ok()?));
        let Some(vicinity) = vicinity else { return self.rewrites(&name.namespace).await };
        self.rewrites_where(&name.namespace, |name, rewrite| vicinity.has_rewrite(name, rewrite)).await
    }

    async fn rewrites_where(
        &self,
        namespace: &str,
        wanted: impl Fn(&str, &InferenceModelRewrite) -> bool,
    ) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        self.wait(Books::rewrites_state, "rewrites").await?;
        for group in GROUPS {
            let doubtful = self.books().rewrites(group).doubtful(Some(namespace));
            for name in doubtful {
                let found = self.look(kinds::rewrite(group), &name).await?;
                let found = found.and_then(|object| rewrite_item(group, object));
                self.books().rewrites_mut(group).looked(&name, found);
            }
        }
        let books = self.books();
        let here = GROUPS.into_iter().flat_map(|group| books.rewrites(group).of_namespace(namespace));
        let here = here.filter(|(name, _, rewrite)| wanted(&name.name, rewrite));
        Ok(here.map(|(_, version, value)| Versioned { version: version.to_owned(), value: value.clone() }).collect())
    }

    /// The two keys of a ConfigMap; none where it does not exist. The source is asked where memory is older than
    /// `at_least`.
    pub async fn adapters(
        &self,
        name: &ObjectName,
        key: &str,
        at_least: Option<&str>,
    ) -> Result<Option<Versioned<AdaptersMap>>, ReadError> {
        let map = self.config_map(name, at_least).await?;
        map.map(|map| {
            let version = map.resource_version().unwrap_or_default();
            let data = map.data.clone().unwrap_or_default();
            let Some(user_text) = data.get(key).cloned() else {
                return Err(ReadError::Invalid(no_key(name, key, &map)));
            };
            let value = AdaptersMap {
                user_text,
                key_text: data.get(DIRECTIVES_KEY).cloned(),
                gitops_owner: owner::of(&map).map(str::to_owned),
            };
            Ok(Versioned { version, value })
        })
        .transpose()
    }

    async fn config_map(&self, name: &ObjectName, at_least: Option<&str>) -> Result<Option<ConfigMap>, ReadError> {
        let watched = self.books().config_maps.contains_key(name);
        if !watched {
            return self.abandoned_map(name).await;
        }
        let state = |books: &Books| books.config_maps.get(name).map_or(State::Waiting, Shelf::state);
        self.wait(state, &kinds::CONFIG_MAP.resource()).await?;
        if let (Some(version), Some(shelf)) = (at_least, self.books().config_maps.get_mut(name)) {
            shelf.doubt_before(name, version);
        }
        let is_doubtful =
            |books: &Books| books.config_maps.get(name).is_some_and(|shelf| !shelf.doubtful(None).is_empty());
        if is_doubtful(&self.books()) {
            let found = self.look(kinds::CONFIG_MAP, name).await?;
            let found = found.and_then(|object| object.try_parse().ok()).map(map_item);
            if let Some(shelf) = self.books().config_maps.get_mut(name) {
                shelf.looked(name, found);
            }
        }
        let books = self.books();
        Ok(books.config_maps.get(name).and_then(|shelf| shelf.get(name)).map(|(_, map)| map.clone()))
    }

    /// A ConfigMap that is not watched, because the last Rollout that named it is gone.
    async fn abandoned_map(&self, name: &ObjectName) -> Result<Option<ConfigMap>, ReadError> {
        let found = self.look(kinds::CONFIG_MAP, name).await?.and_then(|object| object.try_parse().ok());
        let found = found.map(|map| map_item(map).value);
        self.books().abandoned.extend(found.clone().map(|map| (name.clone(), map)));
        Ok(found)
    }

    /// Asks the source about Rollouts that a write left open.
    async fn settle_rollouts(&self, only: Option<&ObjectName>) -> Result<(), ReadError> {
        let doubtful = self.books().rollouts.doubtful(None);
        for name in doubtful.into_iter().filter(|name| only.is_none_or(|only| only == name)) {
            let found = self.look(kinds::ROLLOUT, &name).await?.map(rollout_item);
            self.books().rollouts.looked(&name, found);
        }
        Ok(())
    }

    /// One object, as it is now.
    async fn look(&self, kind: Kind, name: &ObjectName) -> Result<Option<DynamicObject>, ReadError> {
        let resource = kind.resource();
        let request = Request { verb: "get", resource: &resource, namespace: Some(&name.namespace) };
        let api = self.api(kind, &name.namespace);
        match timeout(LIMIT, api.get_opt(&name.name)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => match ApiError::of(&error, request) {
                // Not even its kind is there.
                ApiError::NotFound(_) => Ok(None),
                error => Err(ReadError::Unavailable(error.to_string())),
            },
            Err(_) => Err(ReadError::Unavailable(format!("{request}: no answer within {LIMIT:?}"))),
        }
    }

    pub(crate) fn client(&self) -> kube::Client {
        self.0.cluster.client()
    }

    fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.0.cluster.client(), namespace, &kind.api_resource())
    }

    /// Waits until a part of memory can be read.
    async fn wait(&self, state: impl Fn(&Books) -> State, what: &str) -> Result<(), ReadError> {
        let mut told = self.0.told.subscribe();
        loop {
            told.mark_unchanged();
            match state(&self.books()) {
                State::Listed => return Ok(()),
                State::Failed(error @ ApiError::NotFound(_)) => {
                    return Err(ReadError::Invalid(not_installed(what, &error)));
                }
                // It is tried again all the time; what helps is a person.
                State::Failed(ApiError::Forbidden(words)) => return Err(ReadError::Invalid(words)),
                State::Failed(error) => return Err(ReadError::Unavailable(error.to_string())),
                State::Waiting => {}
            }
            if told.changed().await.is_err() {
                return Err(ReadError::Unavailable(format!("{what} are not watched any more")));
            }
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_installed(what: &str, error: &ApiError) -> String {
    if what == kinds::POOL.resource() {
        return format!(
            "the kind {what} is not installed: install the CustomResourceDefinitions of the Gateway API inference \
             extension (v1)"
        );
    }
    if what == kinds::ROLLOUT.resource() {
        return format!("the kind {what} is not installed: apply crds/");
    }
    error.to_string()
}

fn no_key(name: &ObjectName, key: &str, map: &ConfigMap) -> String {
    let user = |key: &&String| key.as_str() != DIRECTIVES_KEY;
    let keys: Vec<&str> = map.data.iter().flat_map(BTreeMap::keys).filter(user).map(String::as_str).collect();
    let has = if keys.is_empty() { "it has none".to_owned() } else { format!("it has {}", keys.join(", ")) };
    format!("ConfigMap {name} has no key {key} ({has}): add it, or mend spec.adaptersRef.key")
}

fn rollout_item(mut object: DynamicObject) -> Item<Result<Arc<Rollout>, String>> {
    // They are many times as large as the rest, and nobody reads them.
    object.metadata.managed_fields = None;
    let name = ObjectName::new(object.namespace().unwrap_or_default(), object.name_any());
    let version = object.resource_version().unwrap_or_default();
    let value = read_rollout(object).map(Arc::new).map_err(|error| {
        format!("it cannot be read by this version of the operator: {error}: update the operator, or mend the field")
    });
    Item { name, version, value }
}

/// A Rollout, as the API server gives it.
pub(crate) fn read_rollout(object: DynamicObject) -> Result<Rollout, serde_json::Error> {
    let mut value = serde_json::to_value(object)?;
    // A list says them once for all.
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
        fields.insert("kind".to_owned(), kinds::ROLLOUT.name.into());
    }
    serde_json::from_value(value)
}

fn rewrite_item(group: RewriteGroup, mut object: DynamicObject) -> Option<Item<Arc<InferenceModelRewrite>>> {
    object.metadata.managed_fields = None;
    rewrites::read(group, object).map(item_of_rewrite)
}

fn item_of_rewrite(rewrite: InferenceModelRewrite) -> Item<Arc<InferenceModelRewrite>> {
    let metadata = &rewrite.metadata;
    Item {
        name: ObjectName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone()),
        version: metadata.resource_version.clone().unwrap_or_default(),
        value: Arc::new(rewrite),
    }
}

fn map_item(mut map: ConfigMap) -> Item<ConfigMap> {
    map.meta_mut().managed_fields = None;
    Item {
        name: ObjectName::new(map.namespace().unwrap_or_default(), map.name_any()),
        version: map.resource_version().unwrap_or_default(),
        value: map,
    }
}
