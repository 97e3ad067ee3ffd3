//! The watched state of the scale fixture.

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

/// Objects of all watches, and counts of status writes.
#[derive(Debug, Default)]
pub(super) struct FixtureState {
    pub(super) pool_configs: BTreeMap<u16, PoolConfig>,
    /// By pool and name.
    pub(super) rewrites: BTreeMap<u16, BTreeMap<String, InferenceModelRewrite>>,
    /// By name, which is unique across namespaces.
    pub(super) rollouts: BTreeMap<String, CachedRollout>,
    pub(super) writes: StatusWriteCounts,
    /// Whether routers stay behind the last weights of rewrites with split traffic.
    pub(super) routers_held: bool,
}

/// A Rollout and the time of its last write of counters.
#[derive(Debug)]
pub(super) struct CachedRollout {
    pub(super) rollout: Rollout,
    /// When a write last changed only counters.
    last_counter_write: Option<Instant>,
}

/// Counts of the writes of Rollout statuses, by what they changed.
#[derive(Debug, Default, Clone, Serialize)]
pub(super) struct StatusWriteCounts {
    /// The state of a state machine changed.
    pub(super) transitions: u64,
    /// The weights of the rewrite changed.
    pub(super) weight_changes: u64,
    /// Only the observed adapters file changed.
    pub(super) adapters_file_changes: u64,
    /// Only counters, and messages about them, changed.
    pub(super) counter_writes: u64,
    /// Other parts of the status changed.
    pub(super) other_writes: u64,
    /// Shortest time between two counter writes of the same Rollout, in milliseconds.
    pub(super) min_counter_write_interval_ms: Option<u64>,
    /// Largest number of counter writes of one Rollout.
    pub(super) max_counter_writes: u64,
    #[serde(skip)]
    by_rollout: BTreeMap<String, u64>,
}

/// The state, shared between the watches and the waits.
#[derive(Debug, Clone)]
pub(super) struct SharedFixtureState {
    state: Arc<Mutex<FixtureState>>,
    changed: watch::Sender<()>,
}

impl SharedFixtureState {
    pub(super) fn new() -> Self {
        Self { state: Arc::default(), changed: watch::Sender::new(()) }
    }

    pub(super) fn with<T>(&self, read: impl FnOnce(&mut FixtureState) -> T) -> T {
        read(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until `find` returns a value; an error after `limit`.
    pub(super) async fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&mut FixtureState) -> Option<T>,
    ) -> Result<T> {
        let mut changes = self.changed.subscribe();
        let waiting = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = self.with(&mut find) {
                    return anyhow::Ok(found);
                }
                changes.changed().await?;
            }
        };
        match timeout(limit, waiting).await {
            Ok(found) => found,
            Err(_) => anyhow::bail!("waited {limit:?} for {what}; {}", self.with(|state| state.summary())),
        }
    }

    /// Watches all objects; returns only with an error.
    pub(super) async fn watch(&self, client: Client) -> Result<()> {
        let maps = watch_objects(Api::<ConfigMap>::all(client.clone()), |map, exists| {
            // Skips ConfigMaps that do not belong to a pool.
            let Some(pool) = pool_from_name(&map.name_any()) else { return Ok(()) };
            let data = map.data.unwrap_or_default();
            let Some(text) = data.get("configmap.yaml").filter(|_| exists) else { return Ok(()) };
            let map = PoolConfig::parse(text, data.get(DIRECTIVES_KEY).map(String::as_str))?;
            self.update(|state| drop(state.pool_configs.insert(pool, map)));
            Ok(())
        });
        let rewrites = watch_objects(all_namespaces(&client, REWRITE_KIND), |object, exists| {
            let rewrite: InferenceModelRewrite = typed(object, REWRITE_KIND)?;
            let pool = pool_from_name(&rewrite.metadata.name)
                .with_context(|| format!("the rewrite {} belongs to no pool", rewrite.metadata.name))?;
            self.update(|state| {
                let rewrites = state.rewrites.entry(pool).or_default();
                let name = rewrite.metadata.name.clone();
                if exists { drop(rewrites.insert(name, rewrite)) } else { drop(rewrites.remove(&name)) }
            });
            Ok(())
        });
        let rollouts = watch_objects(all_namespaces(&client, ROLLOUT_KIND), |object, exists| {
            let rollout: Rollout = typed(object, ROLLOUT_KIND)?;
            self.update(|state| state.record_rollout(rollout, exists));
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
    fn record_rollout(&mut self, rollout: Rollout, exists: bool) {
        let name = rollout.metadata.name.clone();
        if !exists {
            self.rollouts.remove(&name);
            return;
        }
        let mut last_counter_write = None;
        if let Some(cached) = self.rollouts.get(&name) {
            last_counter_write = cached.last_counter_write;
            let before = cached.rollout.status.clone().unwrap_or_default();
            let after = rollout.status.clone().unwrap_or_default();
            if before != after && self.writes.record(&name, &before, &after, last_counter_write) {
                last_counter_write = Some(clock::now());
            }
        }
        self.rollouts.insert(name, CachedRollout { rollout, last_counter_write });
    }

    /// Describes the phases, and one Rollout that has not succeeded, for the error of a wait.
    fn summary(&self) -> String {
        let mut phases = BTreeMap::<String, usize>::new();
        let mut example = None;
        for cached in self.rollouts.values() {
            let status = cached.rollout.status.clone().unwrap_or_default();
            *phases.entry(format!("{:?}", status.phase)).or_default() += 1;
            if status.phase != Phase::Succeeded {
                example = Some(format!("{}: {}", cached.rollout.metadata.name, status.message));
            }
        }
        format!("the Rollouts are {phases:?}; {}", example.unwrap_or_default())
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

    /// Returns whether the traffic is split and the step waits for routers.
    pub(super) fn awaits_routers(&self) -> bool {
        let Some(status) = &self.rollout.status else { return false };
        let waits = status.step.as_ref().is_some_and(|step| step.state == StepState::AwaitingRouters);
        waits && status.weights.desired.len() > 1
    }

    /// Returns whether no rollout is in progress.
    pub(super) fn is_settled(&self) -> bool {
        let status = self.rollout.status.as_ref();
        let phase = status.map(|status| status.phase).unwrap_or_default();
        self.is_reconciled() && matches!(phase, Phase::Succeeded | Phase::RolledBack)
    }
}

impl StatusWriteCounts {
    /// Records one write. Returns whether it changed only counters.
    fn record(
        &mut self,
        name: &str,
        before: &RolloutStatus,
        after: &RolloutStatus,
        last_counter_write: Option<Instant>,
    ) -> bool {
        if machine_state(before) != machine_state(after) {
            self.transitions += 1;
            self.weight_changes += u64::from(before.weights.sequence != after.weights.sequence);
            return false;
        }
        let (mut before_without_counters, mut after_without_counters) =
            (without_counters(before), without_counters(after));
        if before_without_counters == after_without_counters {
            self.counter_writes += 1;
            let rollout_writes = self.by_rollout.entry(name.to_owned()).or_default();
            *rollout_writes += 1;
            self.max_counter_writes = self.max_counter_writes.max(*rollout_writes);
            let interval = last_counter_write
                .map(|last_counter_write| u64::try_from(last_counter_write.elapsed().as_millis()).unwrap_or(u64::MAX));
            self.min_counter_write_interval_ms = self.min_counter_write_interval_ms.into_iter().chain(interval).min();
            return true;
        }
        (before_without_counters.observed_adapters, after_without_counters.observed_adapters) = (None, None);
        if before_without_counters == after_without_counters {
            self.adapters_file_changes += 1;
        } else {
            self.other_writes += 1;
        }
        false
    }
}

/// The states of a Rollout's two state machines, including its pilot.
fn machine_state(status: &RolloutStatus) -> impl PartialEq + use<> {
    let retired: Vec<RetirementState> = status.retired.iter().map(|entry| entry.state).collect();
    let step = status.step.as_ref().map(|step| (step.index, step.state));
    // Both the written and the observed sequence: the machine detects edits by other writers from them.
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

/// A kind of objects: group, version, kind, plural.
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

/// Converts an object; items of a list lack `apiVersion` and `kind`.
pub(super) fn typed<T: DeserializeOwned>(object: DynamicObject, kind: FixtureKind) -> Result<T> {
    let resource = api_resource(kind);
    let mut value = serde_json::to_value(object)?;
    ensure!(value.is_object(), "the object is not a JSON object");
    value["apiVersion"] = resource.api_version.into();
    value["kind"] = resource.kind.into();
    Ok(serde_json::from_value(value)?)
}

/// Passes every object to `take`, with whether it exists.
async fn watch_objects<K>(api: Api<K>, mut take: impl FnMut(K, bool) -> Result<()>) -> Result<()>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    loop {
        // The watch fails while the API server is unavailable, and is retried.
        let Ok(event) = events.try_next().await else { continue };
        match event.context("the watch ended")? {
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
    fn status_writes_are_counted_by_cause() {
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
            weight_changes,
            adapters_file_changes,
            counter_writes,
            other_writes,
            max_counter_writes,
            ..
        } = writes;
        assert_eq!(
            (transitions, weight_changes, adapters_file_changes, counter_writes, other_writes, max_counter_writes),
            (2, 1, 1, 2, 1, 2)
        );
    }
}
