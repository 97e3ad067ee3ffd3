//! Concurrent reads of everything that one decision depends on, each with its own timeout.

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

/// Poll delay when no request is needed to observe servers and routers.
const DEFAULT_POLL_AFTER: Duration = Duration::from_millis(250);

/// The observed state of one Rollout, and the resource versions for its writes.
#[derive(Debug)]
pub(crate) struct Observation {
    pub(crate) observed: ObservedState,
    rewrite_versions: RewriteVersions,
    pub(crate) adapters_version: Option<ResourceVersion>,
    /// When the oldest response of a server or router was requested; `None` if nothing had to be requested.
    oldest_request: Option<Instant>,
}

impl Observation {
    /// Returns when servers and routers can be polled again, if a response is older than `since`.
    pub(crate) fn stale_until(&self, since: Instant) -> Option<Instant> {
        self.oldest_request.filter(|requested| *requested < since).map(|requested| requested + RESPONSE_TTL)
    }

    /// Returns the observed version of the rewrite that this one replaces; `None` if it did not exist.
    pub(crate) fn rewrite_version(&self, rewrite: &InferenceModelRewrite) -> Option<ResourceVersion> {
        let matches_rewrite = |(group, name, _): &&(Option<RewriteGroup>, String, ResourceVersion)| {
            *group == rewrite.group() && *name == rewrite.metadata.name
        };
        self.rewrite_versions.iter().find(matches_rewrite).map(|(_, _, version)| version.clone())
    }
}

/// Parsed adapters documents by location, reused while the version is unchanged: parsing costs more than the rest of
/// a reconcile. Rollouts that name the same document share one entry.
#[derive(Debug, Default)]
pub(crate) struct ObserveCache(Mutex<ParsedDocuments>);

#[derive(Debug, Default)]
struct ParsedDocuments {
    locations: BTreeMap<RolloutKey, DocumentLocation>,
    documents: BTreeMap<DocumentLocation, AdaptersConfigMap>,
}

/// Namespace, name and data key of a document.
type DocumentLocation = (Option<String>, String, String);

impl ObserveCache {
    fn parse_cached(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        document: Versioned<AdaptersDocument>,
        now: Timestamp,
    ) -> AdaptersConfigMap {
        let location = (key.namespace.clone(), reference.name.clone(), reference.key.clone());
        let mut state = self.lock();
        if state.locations.get(key) != Some(&location) {
            state.forget(key);
            state.locations.insert(key.clone(), location.clone());
        }
        match state.documents.get(&location) {
            Some(adapters) if adapters.version == document.resource_version.0 => adapters.clone(),
            _ => {
                let adapters = parse_adapters(document, now);
                state.documents.insert(location, adapters.clone());
                adapters
            }
        }
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        self.lock().forget(key);
    }

    fn lock(&self) -> MutexGuard<'_, ParsedDocuments> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ParsedDocuments {
    /// Forgets a Rollout, and its document if no other Rollout names it.
    fn forget(&mut self, key: &RolloutKey) {
        if let Some(location) = self.locations.remove(key)
            && !self.locations.values().any(|named| *named == location)
        {
            self.documents.remove(&location);
        }
    }
}

/// Reads everything from both ports.
pub(crate) async fn observe_all(
    (store, fleet): (&impl DocumentStore, &impl Fleet),
    cache: &ObserveCache,
    key: &RolloutKey,
    rollout: &Rollout,
    new_rewrite_group: RewriteGroup,
    now: Timestamp,
) -> Observation {
    let spec = &rollout.spec;
    // Another operator may have decided on a newer adapters file than the cache holds: never observe an older one.
    let last_decided = rollout.status.as_ref().and_then(|status| status.observed_adapters.as_ref());
    let last_decided = last_decided.map(|observed| ResourceVersion(observed.resource_version.clone()));
    let (adapters, rewrites, rollouts, servers, other_pool_servers, routers) = tokio::join!(
        with_read_timeout(store.adapters(key, &spec.adapters_ref, last_decided.as_ref())),
        with_read_timeout(store.rewrites(key)),
        with_read_timeout(store.related_rollouts(key)),
        with_read_timeout(fleet.servers(key, &spec.pool_ref)),
        with_read_timeout(fleet.other_pool_servers(key, &spec.pool_ref, &spec.adapters_ref)),
        with_read_timeout(fleet.routers(key, &spec.pool_ref, &spec.model)),
    );
    let adapters_version =
        adapters.as_ref().ok().and_then(Option::as_ref).map(|document| document.resource_version.clone());
    let (rewrites, versions) = split_versions(rewrites);
    let (servers_requested, servers) = split_polled(servers);
    let (other_servers_requested, other_pool_servers) = split_polled(other_pool_servers);
    let (routers_requested, routers) = split_polled(routers);
    let oldest_request = [servers_requested, other_servers_requested, routers_requested].into_iter().flatten().min();
    let observed = ObservedState {
        adapters: adapters.map(|document| {
            document.map(|document| cache.parse_cached(key, &rollout.spec.adapters_ref, document, now))
        }),
        rewrites,
        servers,
        other_pool_servers,
        routers,
        poll_after: oldest_request.map_or(DEFAULT_POLL_AFTER, |requested| {
            (requested + RESPONSE_TTL).saturating_duration_since(Instant::now())
        }),
        rollouts: into_values(rollouts),
        ..unobserved(store, new_rewrite_group)
    };
    Observation { observed, rewrite_versions: versions, adapters_version, oldest_request }
}

/// Reads only the rewrites, so that an abort does not wait for servers or routers.
pub(crate) async fn observe_rewrites(
    store: &impl DocumentStore,
    key: &RolloutKey,
    new_rewrite_group: RewriteGroup,
) -> Observation {
    let (rewrites, versions) = split_versions(with_read_timeout(store.rewrites(key)).await);
    let observed = ObservedState { rewrites, ..unobserved(store, new_rewrite_group) };
    Observation { observed, rewrite_versions: versions, adapters_version: None, oldest_request: None }
}

/// Reads the documents for the cleanup of a Rollout that was deleted, or of a file that the Rollout no longer names.
///
/// All Rollouts are read, because those that name the former file may not be related to the current spec. The cache is
/// not used: it holds the file that the Rollout names now.
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
    let observed = ObservedState { adapters, rollouts: into_values(rollouts), ..unobserved(store, new_rewrite_group) };
    Observation { observed, rewrite_versions: Vec::new(), adapters_version, oldest_request: None }
}

/// Returns a state of which no part was observed.
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

/// Applies the read timeout to one read.
pub(crate) async fn with_read_timeout<T>(read: impl Future<Output = Result<T, ReadError>>) -> Result<T, ObserveError> {
    match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ReadError::Unavailable(why))) => Err(ObserveError::Unavailable(why)),
        Ok(Err(ReadError::Invalid(why))) => Err(ObserveError::Invalid(why)),
        Err(_) => Err(ObserveError::Unavailable(format!("no answer within {READ_TIMEOUT:?}"))),
    }
}

fn split_polled<T>(polled: Result<Polled<T>, ObserveError>) -> (Option<Instant>, Result<Vec<T>, ObserveError>) {
    match polled {
        Ok(polled) => (polled.oldest_request, Ok(polled.responses)),
        Err(error) => (None, Err(error)),
    }
}

type VersionedRewrites = Vec<Versioned<Arc<InferenceModelRewrite>>>;
/// Group, name and version of each observed rewrite.
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
    let AdaptersDocument { user_text, directives_text, gitops_owner } = document.value;
    AdaptersConfigMap {
        version: document.resource_version.0,
        first_read_at: now,
        hash: content_hash(&user_text, directives_text.as_deref()),
        file: AdaptersFile::parse(&user_text).map(|parsed| parsed.file).map_err(|error| error.to_string()),
        // Directives that cannot be parsed are replaced by the next write.
        directives: directives_text.and_then(|text| OperatorDirectives::parse(&text).ok()).unwrap_or_default(),
        user_text,
        gitops_owner,
    }
}
