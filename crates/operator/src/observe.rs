//! What the ports say of the world of one Rollout, each part with a time limit, all at once.

use crate::{
    READ_LIMIT,
    ports::{ANSWER_STANDS, AdaptersDocument, Fleet, Heard, ReadError, RolloutKey, Store, Version, Versioned},
};
use jiff::Timestamp;
use rollora_api::{
    adapters::{AdaptersFile, content_hash},
    operator_directives::OperatorDirectives,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Rollout, spec::AdaptersRef},
};
use rollora_plan::observed::{Adapters, Observed, Unseen};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// How soon there are news where nobody has to be asked for them.
const NEWS: Duration = Duration::from_millis(250);

/// The world, and the versions that writes have to name.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) world: Observed,
    rewrites: Vec<(Option<RewriteGroup>, String, Version)>,
    pub(crate) adapters: Option<Version>,
    /// When the oldest answer of a server or router was asked for, where they had to be asked.
    asked: Option<Instant>,
}

impl Look {
    /// When servers and routers can be asked for what happened since `since`, where what they said is older than that.
    pub(crate) fn outdated_until(&self, since: Instant) -> Option<Instant> {
        self.asked.filter(|asked| *asked < since).map(|asked| asked + ANSWER_STANDS)
    }

    /// The version of the rewrite that this one is to replace; none where it was not there.
    pub(crate) fn version_of(&self, rewrite: &InferenceModelRewrite) -> Option<Version> {
        let same = |(group, name, _): &&(Option<RewriteGroup>, String, Version)| {
            *group == rewrite.group() && *name == rewrite.metadata.name
        };
        self.rewrites.iter().find(same).map(|(_, _, version)| version.clone())
    }
}

/// Adapters documents as they were last read, by version: reading one again costs more than everything else. Rollouts
/// that name the same one share it.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    named: BTreeMap<RolloutKey, Place>,
    documents: BTreeMap<Place, Adapters>,
}

/// Namespace, name and key of a document.
type Place = (Option<String>, String, String);

impl Memory {
    fn read(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        document: Versioned<AdaptersDocument>,
        now: Timestamp,
    ) -> Adapters {
        let place = (key.namespace.clone(), reference.name.clone(), reference.key.clone());
        let mut known = self.known();
        if known.named.get(key) != Some(&place) {
            known.forget(key);
            known.named.insert(key.clone(), place.clone());
        }
        match known.documents.get(&place) {
            Some(adapters) if adapters.version == document.version.0 => adapters.clone(),
            _ => {
                let adapters = read_adapters(document, now);
                known.documents.insert(place, adapters.clone());
                adapters
            }
        }
    }

    pub(crate) fn forget(&self, key: &RolloutKey) {
        self.known().forget(key);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// A document that nobody names any more is forgotten too.
    fn forget(&mut self, key: &RolloutKey) {
        if let Some(place) = self.named.remove(key)
            && !self.named.values().any(|named| *named == place)
        {
            self.documents.remove(&place);
        }
    }
}

/// Asks both ports everything.
pub(crate) async fn everything(
    (store, fleet): (&impl Store, &impl Fleet),
    memory: &Memory,
    key: &RolloutKey,
    rollout: &Rollout,
    new_rewrite_group: RewriteGroup,
    now: Timestamp,
) -> Look {
    let spec = &rollout.spec;
    // Another operator may have decided from a newer adapters file than is known here: what it saw is not unseen again.
    let decided_from = rollout.status.as_ref().and_then(|status| status.observed_adapters.as_ref());
    let decided_from = decided_from.map(|observed| Version(observed.resource_version.clone()));
    let (adapters, rewrites, rollouts, servers, sharers, routers) = tokio::join!(
        read(store.adapters(key, &spec.adapters_ref, decided_from.as_ref())),
        read(store.rewrites(key)),
        read(store.rollouts_beside(key)),
        read(fleet.servers(key, &spec.pool_ref)),
        read(fleet.sharers(key, &spec.pool_ref, &spec.adapters_ref)),
        read(fleet.routers(key, &spec.pool_ref, &spec.model)),
    );
    let adapters_version = adapters.as_ref().ok().and_then(Option::as_ref).map(|document| document.version.clone());
    let (rewrites, versions) = split(rewrites);
    let (servers_asked, servers) = part(servers);
    let (sharers_asked, sharers) = part(sharers);
    let (routers_asked, routers) = part(routers);
    let asked = [servers_asked, sharers_asked, routers_asked].into_iter().flatten().min();
    let world = Observed {
        adapters: adapters
            .map(|document| document.map(|document| memory.read(key, &rollout.spec.adapters_ref, document, now))),
        rewrites,
        servers,
        sharers,
        routers,
        news_in: asked.map_or(NEWS, |asked| (asked + ANSWER_STANDS).saturating_duration_since(Instant::now())),
        rollouts: values(rollouts),
        ..unasked(store, new_rewrite_group)
    };
    Look { world, rewrites: versions, adapters: adapters_version, asked }
}

/// Asks for nothing but the rewrites: an abort waits for nobody else.
pub(crate) async fn rewrites_only(store: &impl Store, key: &RolloutKey, new_rewrite_group: RewriteGroup) -> Look {
    let (rewrites, versions) = split(read(store.rewrites(key)).await);
    let world = Observed { rewrites, ..unasked(store, new_rewrite_group) };
    Look { world, rewrites: versions, adapters: None, asked: None }
}

/// Asks for what is left to do for a Rollout that is gone, or names another file now. Of every Rollout, because those beside
/// it now need not be those that name the file, and without the memory, which is for the file that it names now.
pub(crate) async fn documents_only(
    store: &impl Store,
    key: &RolloutKey,
    rollout: &Rollout,
    new_rewrite_group: RewriteGroup,
    now: Timestamp,
) -> Look {
    let (adapters, rollouts) =
        tokio::join!(read(store.adapters(key, &rollout.spec.adapters_ref, None)), read(store.rollouts()));
    let adapters_version = adapters.as_ref().ok().and_then(Option::as_ref).map(|document| document.version.clone());
    let adapters = adapters.map(|document| document.map(|document| read_adapters(document, now)));
    let world = Observed { adapters, rollouts: values(rollouts), ..unasked(store, new_rewrite_group) };
    Look { world, rewrites: Vec::new(), adapters: adapters_version, asked: None }
}

/// A world of which nothing was asked.
fn unasked(store: &impl Store, new_rewrite_group: RewriteGroup) -> Observed {
    Observed {
        adapters: Err(Unseen::NotAsked),
        rewrites: Err(Unseen::NotAsked),
        servers: Err(Unseen::NotAsked),
        sharers: Err(Unseen::NotAsked),
        routers: Err(Unseen::NotAsked),
        news_in: NEWS,
        rollouts: Err(Unseen::NotAsked),
        new_rewrite_group,
        guards_deletion: store.guards_deletion(),
        refused: None,
        taken: None,
    }
}

fn values<T>(versioned: Result<Vec<Versioned<T>>, Unseen>) -> Result<Vec<T>, Unseen> {
    versioned.map(|all| all.into_iter().map(|one| one.value).collect())
}

/// One read with its time limit.
pub(crate) async fn read<T>(reading: impl Future<Output = Result<T, ReadError>>) -> Result<T, Unseen> {
    match tokio::time::timeout(READ_LIMIT, reading).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ReadError::Unavailable(why))) => Err(Unseen::Unavailable(why)),
        Ok(Err(ReadError::Invalid(why))) => Err(Unseen::Invalid(why)),
        Err(_) => Err(Unseen::Unavailable(format!("no answer within {READ_LIMIT:?}"))),
    }
}

fn part<T>(heard: Result<Heard<T>, Unseen>) -> (Option<Instant>, Result<Vec<T>, Unseen>) {
    match heard {
        Ok(heard) => (heard.asked, Ok(heard.answers)),
        Err(unseen) => (None, Err(unseen)),
    }
}

type Rewrites = Vec<Versioned<Arc<InferenceModelRewrite>>>;
type Versions = Vec<(Option<RewriteGroup>, String, Version)>;

fn split(rewrites: Result<Rewrites, Unseen>) -> (Result<Vec<Arc<InferenceModelRewrite>>, Unseen>, Versions) {
    let rewrites = match rewrites {
        Ok(rewrites) => rewrites,
        Err(error) => return (Err(error), Vec::new()),
    };
    let version = |rewrite: &Versioned<Arc<InferenceModelRewrite>>| {
        (rewrite.value.group(), rewrite.value.metadata.name.clone(), rewrite.version.clone())
    };
    let versions = rewrites.iter().map(version).collect();
    (Ok(rewrites.into_iter().map(|rewrite| rewrite.value).collect()), versions)
}

fn read_adapters(document: Versioned<AdaptersDocument>, now: Timestamp) -> Adapters {
    let AdaptersDocument { user_text, key_text, gitops_owner } = document.value;
    Adapters {
        version: document.version.0,
        since: now,
        hash: content_hash(&user_text, key_text.as_deref()),
        file: AdaptersFile::parse(&user_text).map(|parsed| parsed.file).map_err(|error| error.to_string()),
        // A key that cannot be read is written anew.
        key: key_text.and_then(|text| OperatorDirectives::parse(&text).ok()).unwrap_or_default(),
        user_text,
        gitops_owner,
    }
}
