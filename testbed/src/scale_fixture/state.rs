//! What the API server tells of a population, as it is told.

use super::{endpoints::PoolConfig, objects::pool_from_name};
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
pub(super) struct FixtureState {
    pub(super) pool_configs: BTreeMap<u16, PoolConfig>,
    /// By pool and name.
    pub(super) rewrites: BTreeMap<u16, BTreeMap<String, InferenceModelRewrite>>,
    /// By name, which is told once in all namespaces.
    pub(super) rollouts: BTreeMap<String, CachedRollout>,
    pub(super) writes: StatusWriteCounts,
    /// Whether routers stay behind what is split.
    pub(super) routers_held: bool,
}

/// A Rollout.
#[derive(Debug)]
pub(super) struct CachedRollout {
    pub(super) rollout: Rollout,
    /// When nothing but counts was written last.
    last_counter_write: Option<Instant>,
}

/// What the status of Rollouts was written for.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct StatusWriteCounts {
    /// Something of a machine moved.
    pub(super) transitions: u64,
    /// The weights changed.
    pub(super) weight_changes: u64,
    /// The adapters file is another one, and nothing else is different.
    pub(super) adapters_file_changes: u64,
    /// Counts and words about them.
    pub(super) counter_writes: u64,
    /// Something else.
    pub(super) other_writes: u64,
    /// The shortest time between two writes of mere counts of one Rollout, in milliseconds.
    pub(super) min_counter_write_interval_ms: Option<u64>,
    /// The most writes of mere counts of one Rollout.
    pub(super) max_counter_writes: u64,
    #[serde(skip)]
    by_rollout: BTreeMap<String, u64>,
}

/// What is seen, shared.
#[derive(Debug, Clone)]
pub(super) struct SharedFixtureState {
    state: Arc<Mutex<FixtureState>>,
    changed: watch::Sender<()>,
}

impl SharedFixtureState {
    pub(super) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut FixtureState) -> T) -> T {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until something is seen.
    pub(super) async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&mut FixtureState) -> Option<T>,
    ) -> Result<T> {
        let mut told = self.changed.subscribe();
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
    pub(super) async fn watch(&self, client: Client) -> Result<()> {
        let maps = watch_objects(Api::<ConfigMap>::all(client.clone()), |map, there| {
            // Those that nobody here made are not of a pool.
            let Some(pool) = pool_from_name(&map.name_any()) else { return Ok(()) };
            let data = map.data.unwrap_or_default();
            let Some(text) = data.get("configmap.yaml").filter(|_| there) else { return Ok(()) };
            let map = PoolConfig::parse(text, data.get(DIRECTIVES_KEY).map(String::as_str))?;
            self.update(|seen| drop(seen.pool_configs.insert(pool, map)));
            Ok(())
        });
        let rewrites = watch_objects(all_namespaces(&client, REWRITE_KIND), |object, there| {
            let rewrite: InferenceModelRewrite = typed(object, REWRITE_KIND)?;
            let pool = pool_from_name(&rewrite.metadata.name).context("a rewrite of nobody")?;
            self.update(|seen| {
                let of_pool = seen.rewrites.entry(pool).or_default();
                let name = rewrite.metadata.name.clone();
                if there { drop(of_pool.insert(name, rewrite)) } else { drop(of_pool.remove(&name)) }
            });
            Ok(())
        });
        let rollouts = watch_objects(all_namespaces(&client, ROLLOUT_KIND), |object, there| {
            let rollout: Rollout = typed(object, ROLLOUT_KIND)?;
            self.update(|seen| seen.record_rollout(rollout, there));
            Ok(())
        });
        tokio::try_join!(maps, rewrites, rollouts)?;
        Ok(())
    }

    pub(super) fn update(&self, change: impl FnOnce(&mut FixtureState)) {
        self.with(change);
        self.changed.send_replace(());
    }
}

impl FixtureState {
    fn record_rollout(&mut self, rollout: Rollout, there: bool) {
        let name = rollout.metadata.name.clone();
        if !there {
            self.rollouts.remove(&name);
            return;
        }
        let mut counted = None;
        if let Some(known) = self.rollouts.get(&name) {
            counted = known.last_counter_write;
            let before = known.rollout.status.clone().unwrap_or_default();
            let after = rollout.status.clone().unwrap_or_default();
            if before != after && self.writes.record(&name, &before, &after, counted) {
                counted = Some(clock::now());
            }
        }
        self.rollouts.insert(name, CachedRollout { rollout, last_counter_write: counted });
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

impl CachedRollout {
    pub(super) fn status(&self) -> RolloutStatus {
        self.rollout.status.clone().unwrap_or_default()
    }

    pub(super) fn is_reconciled(&self) -> bool {
        let observed = self.rollout.status.as_ref().and_then(|status| status.observed_generation);
        observed == self.rollout.metadata.generation
    }

    /// Its traffic is split, and its routers are waited for.
    pub(super) fn awaits_routers(&self) -> bool {
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

impl StatusWriteCounts {
    /// Takes in one write; whether it told mere counts.
    fn record(&mut self, name: &str, before: &RolloutStatus, after: &RolloutStatus, counted: Option<Instant>) -> bool {
        if machine_state(before) != machine_state(after) {
            self.transitions += 1;
            self.weight_changes += u64::from(before.weights.sequence != after.weights.sequence);
            return false;
        }
        let (mut quiet_before, mut quiet_after) = (without_counters(before), without_counters(after));
        if quiet_before == quiet_after {
            self.counter_writes += 1;
            let of_this = self.by_rollout.entry(name.to_owned()).or_default();
            *of_this += 1;
            self.max_counter_writes = self.max_counter_writes.max(*of_this);
            let pace = counted.map(|counted| u64::try_from(counted.elapsed().as_millis()).unwrap_or(u64::MAX));
            self.min_counter_write_interval_ms = self.min_counter_write_interval_ms.into_iter().chain(pace).min();
            return true;
        }
        (quiet_before.observed_adapters, quiet_after.observed_adapters) = (None, None);
        if quiet_before == quiet_after {
            self.adapters_file_changes += 1;
        } else {
            self.other_writes += 1;
        }
        false
    }
}

/// Where the two machines of a Rollout stand, its pilot included.
fn machine_state(status: &RolloutStatus) -> impl PartialEq + use<> {
    let retired: Vec<RetirementState> = status.retired.iter().map(|entry| entry.state).collect();
    let step = status.step.as_ref().map(|step| (step.index, step.state));
    // Those that are given, and those that were found in the rewrite: the machine tells edits of others by them.
    let weights: (Sequence, Sequence) = (status.weights.sequence, status.weights.applied);
    (status.revision.clone(), step, weights, status.admission.clone(), status.rejected.clone(), retired, status.phase)
}

fn without_counters(status: &RolloutStatus) -> RolloutStatus {
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
pub(super) type FixtureKind = (&'static str, &'static str, &'static str, &'static str);
pub(super) const ROLLOUT_KIND: FixtureKind = ("rollora.dev", "v1alpha1", "Rollout", "rollouts");
pub(super) const REWRITE_KIND: FixtureKind =
    ("llm-d.ai", "v1alpha2", "InferenceModelRewrite", "inferencemodelrewrites");
pub(super) const POOL_KIND: FixtureKind = ("inference.networking.k8s.io", "v1", "InferencePool", "inferencepools");

pub(super) fn api_resource((group, version, kind, plural): FixtureKind) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn all_namespaces(client: &Client, kind: FixtureKind) -> Api<DynamicObject> {
    Api::all_with(client.clone(), &api_resource(kind))
}

/// An object of a list does not say what kind it is.
pub(super) fn typed<T: DeserializeOwned>(object: DynamicObject, kind: FixtureKind) -> Result<T> {
    let resource = api_resource(kind);
    let mut value = serde_json::to_value(object)?;
    ensure!(value.is_object(), "an object is none");
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = resource.kind.into();
    Ok(serde_json::from_value(value)?)
}

/// Hands every object on, as there or as gone.
async fn watch_objects<K>(api: Api<K>, mut take: impl FnMut(K, bool) -> Result<()>) -> Result<()>
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
        let mut writes = StatusWriteCounts::default();
        let before = RolloutStatus::default();
        for after in [
            status(|status| status.revision.number = 1),
            status(|status| status.weights.sequence = Sequence(1)),
            status(|status| status.observed_adapters = Some(rollora_api::rollout::status::ObservedAdapters::default())),
            status(|status| status.routers.proven = 1),
            status(|status| "2 of 3".clone_into(&mut status.message)),
            status(|status| status.conditions = vec![condition]),
        ] {
            writes.record("a", &before, &after, None);
        }
        let StatusWriteCounts {
            transitions,
            weight_changes: weights,
            adapters_file_changes: files,
            counter_writes: progress,
            other_writes: others,
            max_counter_writes: most_progress,
            ..
        } = writes;
        assert_eq!((transitions, weights, files, progress, others, most_progress), (2, 1, 1, 2, 1, 2));
    }
}
