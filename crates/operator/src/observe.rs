//! What the ports say of the world of one Rollout, each part with a time limit, all at once.

use crate::{
    READ_TIMEOUT,
    ports::{
        AdaptersDocument, DocumentStore, Fleet, Polled, RESPONSE_TTL, ReadError, ResourceVersion, RolloutKey, Versioned,
    },
};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdaptersFile, content_hash},
    operator_directives::OperatorDirectives,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Rollout, spec::AdaptersRef},
};
use rollora_plan::observed::{AdaptersConfigMap, ObserveError, ObservedState};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How soon there are news where nobody has to be asked for them.
const DEFAULT_POLL_AFTER: Duration = Duration::from_millis(250);

/// The world, and the versions that writes have to name.
#[derive(Debug)]
pub(crate) struct Observation {
    pub(crate) observed: ObservedState,
    rewrite_versions: Vec<(Option<RewriteGroup>, String, ResourceVersion)>,
    pub(crate) adapters_version: Option<ResourceVersion>,
    /// When the oldest answer of a server or router was asked for, where they had to be asked.
    oldest_request: Option<Instant>,
}

impl Observation {
    /// When servers and routers can be asked for what happened since `since`, where what they said is older than that.
    pub(crate) fn stale_until(&self, since: Instant) -> Option<Instant> {
        self.oldest_request.filter(|asked| *asked < since).map(|asked| asked + RESPONSE_TTL)
    }

    /// The version of the rewrite that this one is to replace; none where it was not there.
    pub(crate) fn rewrite_version(&self, rewrite: &InferenceModelRewrite) -> Option<ResourceVersion> {
        let same = |(group, name, _): &&(Option<RewriteGroup>, String, ResourceVersion)| {
            *group == rewrite.group() && *name == rewrite.metadata.name
        };
        self.rewrite_versions.iter().find(same).map(|(_, _, version)| version.clone())
    }
}

/// Adapters documents as they were last read, by version: reading one again costs more than everything else. Rollouts
/// that name the same one share it.
#[derive(Debug, Default)]
pub(crate) struct ObserveCache(Mutex<ParsedDocuments>);

#[derive(Debug, Default)]
struct ParsedDocuments {
    locations: BTreeMap<RolloutKey, DocumentLocation>,
    documents: BTreeMap<DocumentLocation, AdaptersConfigMap>,
}

/// Namespace, name and key of a document.
type DocumentLocation = (Option<String>, String, String);

impl ObserveCache {
    fn parse_cached(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        document: Versioned<AdaptersDocument>,
        now: Timestamp,
    ) -> AdaptersConfigMap {
        let place = (key.namespace.clone(), reference.name.clone(), reference.key.clone());
        let mut known = self.lock();
        if known.locations.get(key) != Some(&place) {
            known.forget(key);
            known.locations.insert(key.clone(), place.clone());
        }
        match known.documents.get(&place) {
            Some(adapters) if adapters.version == document.resource_version.0 => adapters.clone(),
            _ => {
                let adapters = parse_adapters(document, now);
                known.documents.insert(place, adapters.clone());
                adapters
            }
        }
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        self.lock().forget(key);
    }

    fn lock(&self) -> MutexGuard<'_, ParsedDocuments> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ParsedDocuments {
    /// A document that nobody names any more is forgotten too.
    fn forget(&mut self, key: &RolloutKey) {
        if let Some(place) = self.locations.remove(key)
            && !self.locations.values().any(|named| *named == place)
        {
            self.documents.remove(&place);
        }
    }
}

/// Asks both ports everything.
pub(crate) async fn observe_all(
    (store, fleet): (&impl DocumentStore, &impl Fleet),
    memory: &ObserveCache,
    key: &RolloutKey,
    rollout: &Rollout,
    new_rewrite_group: RewriteGroup,
    now: Timestamp,
) -> Observation {
    let spec = &rollout.spec;
    // Another operator may have decided from a newer adapters file than is known here: what it saw is not unseen again.
    let decided_from = rollout.status.as_ref().and_then(|status| status.observed_adapters.as_ref());
    let decided_from = decided_from.map(|observed| ResourceVersion(observed.resource_version.clone()));
    let (adapters, rewrites, rollouts, servers, sharers, routers) = tokio::join!(
        with_read_timeout(store.adapters(key, &spec.adapters_ref, decided_from.as_ref())),
        with_read_timeout(store.rewrites(key)),
        with_read_timeout(store.related_rollouts(key)),
        with_read_timeout(fleet.servers(key, &spec.pool_ref)),
        with_read_timeout(fleet.other_pool_servers(key, &spec.pool_ref, &spec.adapters_ref)),
        with_read_timeout(fleet.routers(key, &spec.pool_ref, &spec.model)),
    );
    let adapters_version =
        adapters.as_ref().ok().and_then(Option::as_ref).map(|document| document.resource_version.clone());
    let (rewrites, versions) = split_versions(rewrites);
    let (servers_asked, servers) = split_polled(servers);
    let (sharers_asked, sharers) = split_polled(sharers);
    let (routers_asked, routers) = split_polled(routers);
    let asked = [servers_asked, sharers_asked, routers_asked].into_iter().flatten().min();
    let world = ObservedState {
        adapters: adapters.map(|document| {
            document.map(|document| memory.parse_cached(key, &rollout.spec.adapters_ref, document, now))
        }),
        rewrites,
        servers,
        other_pool_servers: sharers,
        routers,
        poll_after: asked
            .map_or(DEFAULT_POLL_AFTER, |asked| (asked + RESPONSE_TTL).saturating_duration_since(Instant::now())),
        rollouts: into_values(rollouts),
        ..unobserved(store, new_rewrite_group)
    };
    Observation { observed: world, rewrite_versions: versions, adapters_version, oldest_request: asked }
}

/// Asks for nothing but the rewrites: an abort waits for nobody else.
pub(crate) async fn observe_rewrites(
    store: &impl DocumentStore,
    key: &RolloutKey,
    new_rewrite_group: RewriteGroup,
) -> Observation {
    let (rewrites, versions) = split_versions(with_read_timeout(store.rewrites(key)).await);
    let world = ObservedState { rewrites, ..unobserved(store, new_rewrite_group) };
    Observation { observed: world, rewrite_versions: versions, adapters_version: None, oldest_request: None }
}

/// Asks for what is left to do for a Rollout that is gone, or names another file now. Of every Rollout, because those beside
/// it now need not be those that name the file, and without the memory, which is for the file that it names now.
pub(crate) async fn observe_documents(
    store: &impl DocumentStore,
    key: &RolloutKey,
    rollout: &Rollout,
    new_rewrite_group: RewriteGroup,
    now: Timestamp,
) -> Observation {
    let (adapters, rollouts) = tokio::join!(
        with_read_timeout(store.adapters(key, &rollout.spec.adapters_ref, None)),
        with_read_timeout(store.rollouts())
    );
    let adapters_version =
        adapters.as_ref().ok().and_then(Option::as_ref).map(|document| document.resource_version.clone());
    let adapters = adapters.map(|document| document.map(|document| parse_adapters(document, now)));
    let world = ObservedState { adapters, rollouts: into_values(rollouts), ..unobserved(store, new_rewrite_group) };
    Observation { observed: world, rewrite_versions: Vec::new(), adapters_version, oldest_request: None }
}

/// A world of which nothing was asked.
fn unobserved(store: &impl DocumentStore, new_rewrite_group: RewriteGroup) -> ObservedState {
    ObservedState {
        adapters: Err(ObserveError::NotAttempted),
        rewrites: Err(ObserveError::NotAttempted),
        servers: Err(ObserveError::NotAttempted),
        other_pool_servers: Err(ObserveError::NotAttempted),
        routers: Err(ObserveError::NotAttempted),
        poll_after: DEFAULT_POLL_AFTER,
        rollouts: Err(ObserveError::NotAttempted),
        new_rewrite_group,
        supports_finalizers: store.supports_finalizers(),
        write_refusal: None,
        overwritten_sequence: None,
    }
}

fn into_values<T>(versioned: Result<Vec<Versioned<T>>, ObserveError>) -> Result<Vec<T>, ObserveError> {
    versioned.map(|all| all.into_iter().map(|one| one.value).collect())
}

/// One read with its time limit.
pub(crate) async fn with_read_timeout<T>(
    reading: impl Future<Output = Result<T, ReadError>>,
) -> Result<T, ObserveError> {
    match tokio::time::timeout(READ_TIMEOUT, reading).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ReadError::Unavailable(why))) => Err(ObserveError::Unavailable(why)),
        Ok(Err(ReadError::Invalid(why))) => Err(ObserveError::Invalid(why)),
        Err(_) => Err(ObserveError::Unavailable(format!("no answer within {READ_TIMEOUT:?}"))),
    }
}

fn split_polled<T>(heard: Result<Polled<T>, ObserveError>) -> (Option<Instant>, Result<Vec<T>, ObserveError>) {
    match heard {
        Ok(heard) => (heard.oldest_request, Ok(heard.responses)),
        Err(unseen) => (None, Err(unseen)),
    }
}

type VersionedRewrites = Vec<Versioned<Arc<InferenceModelRewrite>>>;
type RewriteVersions = Vec<(Option<RewriteGroup>, String, ResourceVersion)>;

fn split_versions(
    rewrites: Result<VersionedRewrites, ObserveError>,
) -> (Result<Vec<Arc<InferenceModelRewrite>>, ObserveError>, RewriteVersions) {
    let rewrites = match rewrites {
        Ok(rewrites) => rewrites,
        Err(error) => return (Err(error), Vec::new()),
    };
    let version = |rewrite: &Versioned<Arc<InferenceModelRewrite>>| {
        (rewrite.value.group(), rewrite.value.metadata.name.clone(), rewrite.resource_version.clone())
    };
    let versions = rewrites.iter().map(version).collect();
    (Ok(rewrites.into_iter().map(|rewrite| rewrite.value).collect()), versions)
}

fn parse_adapters(document: Versioned<AdaptersDocument>, now: Timestamp) -> AdaptersConfigMap {
    let AdaptersDocument { user_text, directives_text: key_text, gitops_owner } = document.value;
    AdaptersConfigMap {
        version: document.resource_version.0,
        first_read_at: now,
        hash: content_hash(&user_text, key_text.as_deref()),
        file: AdaptersFile::parse(&user_text).map(|parsed| parsed.file).map_err(|error| error.to_string()),
        // A key that cannot be read is written anew.
        directives: key_text.and_then(|text| OperatorDirectives::parse(&text).ok()).unwrap_or_default(),
        user_text,
        gitops_owner,
    }
}
