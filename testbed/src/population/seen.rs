//! What the API server tells of a population, as it is told.

use super::{answers::Map, layout::pool_of};
use crate::clock;
use anyhow::{Context as _, Result, ensure};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    core::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};
use rollora_api::{
    names::{DIRECTIVES_KEY, Sequence},
    rewrite::InferenceModelRewrite,
    rollout::{
        Rollout, RolloutStatus,
        status::{Phase, RetirementState, StepState},
    },
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fmt::Debug,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::timeout};

/// Everything that was told.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) maps: BTreeMap<u16, Map>,
    /// By pool and name.
    pub(super) rewrites: BTreeMap<u16, BTreeMap<String, InferenceModelRewrite>>,
    /// By name, which is told once in all namespaces.
    pub(super) rollouts: BTreeMap<String, Known>,
    pub(super) writes: Writes,
    /// Whether routers stay behind what is split.
    pub(super) held: bool,
}

/// A Rollout.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) rollout: Rollout,
    /// When nothing but counts was written last.
    counted: Option<Instant>,
}

/// What the status of Rollouts was written for.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct Writes {
    /// Something of a machine moved.
    pub(super) transitions: u64,
    /// The weights changed.
    pub(super) weights: u64,
    /// The adapters file is another one, and nothing else is different.
    pub(super) files: u64,
    /// Counts and words about them.
    pub(super) progress: u64,
    /// Something else.
    pub(super) others: u64,
    /// The shortest time between two writes of mere counts of one Rollout, in milliseconds.
    pub(super) shortest_pace: Option<u64>,
    /// The most writes of mere counts of one Rollout.
    pub(super) most_progress: u64,
    #[serde(skip)]
    by_rollout: BTreeMap<String, u64>,
}

/// What is seen, shared.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    seen: Arc<Mutex<Seen>>,
    told: watch::Sender<()>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self { seen: Arc::default(), told: watch::Sender::new(()) }
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something is seen.
    pub(super) async fn until<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&mut Seen) -> Option<T>,
    ) -> Result<T> {
        let mut told = self.told.subscribe();
        let waiting = async {
            loop {
                told.mark_unchanged();
                if let Some(found) = self.with(&mut look) {
                    return anyhow::Ok(found);
                }
                told.changed().await?;
            }
        };
        match timeout(limit, waiting).await {
            Ok(found) => found,
            Err(_) => anyhow::bail!("waited {limit:?} in vain for {what}; {}", self.with(|seen| seen.summary())),
        }
    }

    /// Watches all there is; never ends well.
    pub(super) async fn follow(&self, client: Client) -> Result<()> {
        let maps = follow(Api::<ConfigMap>::all(client.clone()), |map, there| {
            // Those that nobody here made are not of a pool.
            let Some(pool) = pool_of(&map.name_any()) else { return Ok(()) };
            let data = map.data.unwrap_or_default();
            let Some(text) = data.get("configmap.yaml").filter(|_| there) else { return Ok(()) };
            let map = Map::read(text, data.get(DIRECTIVES_KEY).map(String::as_str))?;
            self.tell(|seen| drop(seen.maps.insert(pool, map)));
            Ok(())
        });
        let rewrites = follow(api(&client, REWRITES), |object, there| {
            let rewrite: InferenceModelRewrite = typed(object, REWRITES)?;
            let pool = pool_of(&rewrite.metadata.name).context("a rewrite of nobody")?;
            self.tell(|seen| {
                let of_pool = seen.rewrites.entry(pool).or_default();
                let name = rewrite.metadata.name.clone();
                if there { drop(of_pool.insert(name, rewrite)) } else { drop(of_pool.remove(&name)) }
            });
            Ok(())
        });
        let rollouts = follow(api(&client, ROLLOUTS), |object, there| {
            let rollout: Rollout = typed(object, ROLLOUTS)?;
            self.tell(|seen| seen.take_rollout(rollout, there));
            Ok(())
        });
        tokio::try_join!(maps, rewrites, rollouts)?;
        Ok(())
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Seen)) {
        self.with(change);
        self.told.send_replace(());
    }
}

impl Seen {
    fn take_rollout(&mut self, rollout: Rollout, there: bool) {
        let name = rollout.metadata.name.clone();
        if !there {
            self.rollouts.remove(&name);
            return;
        }
        let mut counted = None;
        if let Some(known) = self.rollouts.get(&name) {
            counted = known.counted;
            let before = known.rollout.status.clone().unwrap_or_default();
            let after = rollout.status.clone().unwrap_or_default();
            if before != after && self.writes.take(&name, &before, &after, counted) {
                counted = Some(clock::now());
            }
        }
        self.rollouts.insert(name, Known { rollout, counted });
    }

    /// What it is like, for somebody who waits in vain.
    fn summary(&self) -> String {
        let mut phases = BTreeMap::<String, usize>::new();
        let mut said = None;
        for known in self.rollouts.values() {
            let status = known.rollout.status.clone().unwrap_or_default();
            *phases.entry(format!("{:?}", status.phase)).or_default() += 1;
            if status.phase != Phase::Succeeded {
                said = Some(format!("{}: {}", known.rollout.metadata.name, status.message));
            }
        }
        format!("the Rollouts are {phases:?}; {}", said.unwrap_or_default())
    }
}

impl Known {
    pub(super) fn status(&self) -> RolloutStatus {
        self.rollout.status.clone().unwrap_or_default()
    }

    pub(super) fn is_reconciled(&self) -> bool {
        let observed = self.rollout.status.as_ref().and_then(|status| status.observed_generation);
        observed == self.rollout.metadata.generation
    }

    /// Its traffic is split, and its routers are waited for.
    pub(super) fn is_active(&self) -> bool {
        let Some(status) = &self.rollout.status else { return false };
        let waits = status.step.as_ref().is_some_and(|step| step.state == StepState::AwaitingRouters);
        waits && status.weights.desired.len() > 1
    }

    /// Nothing is under way.
    pub(super) fn is_settled(&self) -> bool {
        let status = self.rollout.status.as_ref();
        let phase = status.map(|status| status.phase).unwrap_or_default();
        self.is_reconciled() && matches!(phase, Phase::Succeeded | Phase::RolledBack)
    }
}

impl Writes {
    /// Takes in one write; whether it told mere counts.
    fn take(&mut self, name: &str, before: &RolloutStatus, after: &RolloutStatus, counted: Option<Instant>) -> bool {
        if machines(before) != machines(after) {
            self.transitions += 1;
            self.weights += u64::from(before.weights.sequence != after.weights.sequence);
            return false;
        }
        let (mut quiet_before, mut quiet_after) = (without_counts(before), without_counts(after));
        if quiet_before == quiet_after {
            self.progress += 1;
            let of_this = self.by_rollout.entry(name.to_owned()).or_default();
            *of_this += 1;
            self.most_progress = self.most_progress.max(*of_this);
            let pace = counted.map(|counted| u64::try_from(counted.elapsed().as_millis()).unwrap_or(u64::MAX));
            self.shortest_pace = self.shortest_pace.into_iter().chain(pace).min();
            return true;
        }
        (quiet_before.observed_adapters, quiet_after.observed_adapters) = (None, None);
        if quiet_before == quiet_after {
            self.files += 1;
        } else {
            self.others += 1;
        }
        false
    }
}

/// Where the two machines of a Rollout stand, its pilot included.
fn machines(status: &RolloutStatus) -> impl PartialEq + use<> {
    let retired: Vec<RetirementState> = status.retired.iter().map(|entry| entry.state).collect();
    let step = status.step.as_ref().map(|step| (step.index, step.state));
    // Those that are given, and those that were found in the rewrite: the machine tells edits of others by them.
    let weights: (Sequence, Sequence) = (status.weights.sequence, status.weights.applied);
    (status.revision.clone(), step, weights, status.admission.clone(), status.rejected.clone(), retired, status.phase)
}

fn without_counts(status: &RolloutStatus) -> RolloutStatus {
    let mut status = status.clone();
    if let Some(step) = &mut status.step {
        (step.observed_at, step.observed_millis) = (None, 0);
    }
    status.message.clear();
    (status.residency.resident, status.residency.ready) = (0, 0);
    status.residency.missing.clear();
    (status.routers.proven, status.routers.total) = (0, 0);
    status.retired.iter_mut().for_each(|entry| entry.reason.clear());
    status.conditions.iter_mut().for_each(|condition| condition.message.clear());
    status
}

/// A kind as the API server names it: group, version, kind, plural.
pub(super) type Kind = (&'static str, &'static str, &'static str, &'static str);
pub(super) const ROLLOUTS: Kind = ("rollora.dev", "v1alpha1", "Rollout", "rollouts");
pub(super) const REWRITES: Kind = ("llm-d.ai", "v1alpha2", "InferenceModelRewrite", "inferencemodelrewrites");
pub(super) const POOLS: Kind = ("inference.networking.k8s.io", "v1", "InferencePool", "inferencepools");

pub(super) fn resource((group, version, kind, plural): Kind) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn api(client: &Client, kind: Kind) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &resource(kind))
}

/// An object of a list does not say what kind it is.
pub(super) fn typed<T: DeserializeOwned>(object: DynamicObject, kind: Kind) -> Result<T> {
    let resource = resource(kind);
    let mut value = serde_json::to_value(object)?;
    ensure!(value.is_object(), "an object is none");
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = resource.kind.into();
    Ok(serde_json::from_value(value)?)
}

/// Hands every object on, as there or as gone.
async fn follow<K>(api: Api<K>, mut take: impl FnMut(K, bool) -> Result<()>) -> Result<()>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    loop {
        // An error of the watch is tried again.
        let Ok(event) = events.try_next().await else { continue };
        match event.context("a watch ended")? {
            watcher::Event::Init | watcher::Event::InitDone => {}
            watcher::Event::InitApply(object) | watcher::Event::Apply(object) => take(object, true)?,
            watcher::Event::Delete(object) => take(object, false)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::condition::{Condition, ConditionStatus};

    fn status(change: impl FnOnce(&mut RolloutStatus)) -> RolloutStatus {
        let mut status = RolloutStatus::default();
        change(&mut status);
        status
    }

    #[test]
    fn a_write_is_counted_for_what_it_was_made_for() {
        let condition = Condition {
            type_: "Ready".to_owned(),
            status: ConditionStatus::True,
            reason: "Succeeded".to_owned(),
            message: String::new(),
            last_transition_time: "2026-01-01T00:00:00Z".parse().unwrap(),
            observed_generation: None,
        };
        let mut writes = Writes::default();
        let before = RolloutStatus::default();
        for after in [
            status(|status| status.revision.number = 1),
            status(|status| status.weights.sequence = Sequence(1)),
            status(|status| status.observed_adapters = Some(rollora_api::rollout::status::ObservedAdapters::default())),
            status(|status| status.routers.proven = 1),
            status(|status| "2 of 3".clone_into(&mut status.message)),
            status(|status| status.conditions = vec![condition]),
        ] {
            writes.take("a", &before, &after, None);
        }
        let Writes { transitions, weights, files, progress, others, most_progress, .. } = writes;
        assert_eq!((transitions, weights, files, progress, others, most_progress), (2, 1, 1, 2, 1, 2));
    }
}
