//! A fixture for scale tests: many Rollouts, pools and pods on a real API server. The objects are real, the pods are
//! not.
//!
//! One process answers for all sidecars and routers (`endpoints`), at a different address for each pod. The status of
//! a Rollout, its rewrite and its operator directives are recorded from one that the operator has completed
//! ([`ScaleFixture::record_template`]), so that thousands more can be created as if it had completed those too.
//!
//! Pods are written directly into etcd, in the form in which the API server would store them: through the API server
//! each would need a second write for the status that a kubelet reports.

mod endpoints;
mod etcd_pods;
mod objects;
mod state;

use super::control_plane::{AuditLog, ControlPlane, rollora_crds, upstream_crds};
use crate::{clock, ports::ReservedPort};
use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use objects::RolloutTemplate;
use rollora_api::{
    names::INTENT_ANNOTATION,
    operator_directives::OperatorDirectives,
    rollout::{Intent, IntentKind, Rollout},
};
use serde::Serialize;
use serde_json::{Value, json};
use state::{FixtureKind, POOL_KIND, REWRITE_KIND, ROLLOUT_KIND, SharedFixtureState, StatusWriteCounts};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};
use tokio::task::JoinSet;

/// Concurrency of bulk operations.
const MAX_CONCURRENT_REQUESTS: usize = 48;
/// Time limit of each wait.
const WAIT_TIMEOUT: Duration = Duration::from_mins(4);
/// Minimum pause between two intents.
const INTENT_INTERVAL: Duration = Duration::from_millis(60);
/// Prefix of the user agent whose requests are counted.
const OPERATOR_USER_AGENT: &str = "rollora-operator/";

/// An API server with its objects, and the endpoints of all pods.
pub struct ScaleFixture {
    control_plane: ControlPlane,
    client: Client,
    state: SharedFixtureState,
    template: Option<RolloutTemplate>,
    /// Number of pools that were created.
    pool_count: u16,
    audit: AuditLog,
    intent_count: u32,
    port: ReservedPort,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for ScaleFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScaleFixture")
            .field("control_plane", &self.control_plane)
            .field("pool_count", &self.pool_count)
            .finish_non_exhaustive()
    }
}

/// Number of objects in a fixture.
#[derive(Debug, Clone, Copy)]
pub struct FixtureSize {
    /// Number of InferencePools in the fixture.
    pub pools: u16,
    /// Number of servers in each pool.
    pub pods: u8,
    /// Number of Rollouts in each pool.
    pub rollouts: u16,
    /// Number of versions of each adapter in the adapters ConfigMap.
    pub versions: u16,
}

/// Counts of the operator's requests to the API server, and of its status writes by cause.
#[derive(Debug, Serialize)]
pub struct OperatorRequestCounts {
    /// Requests by verb and resource, without those for the Lease and watches.
    requests: BTreeMap<String, u64>,
    /// Watches that were started.
    watches: u64,
    /// Requests of API discovery.
    discoveries: u64,
    #[serde(flatten)]
    writes: StatusWriteCounts,
}

impl ScaleFixture {
    /// Starts an API server without Rollouts, and the endpoints of the pods.
    pub async fn start() -> Result<Self> {
        let control_plane = ControlPlane::start().await?;
        control_plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
        let (client, state, port) =
            (control_plane.admin_client().await?, SharedFixtureState::new(), ReservedPort::reserve()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(endpoints::serve(endpoints::listen_on_loopback(port.number())?, state.clone()));
        let (watched, watch_client) = (state.clone(), client.clone());
        tasks.spawn(async move {
            if let Err(error) = watched.watch(watch_client).await {
                // Pending waits then fail with the description of what they wait for.
                watched.update(|state| state.rollouts.clear());
                drop(error);
            }
        });
        let audit = control_plane.audit_log();
        Ok(Self {
            control_plane,
            client,
            state,
            template: None,
            pool_count: 0,
            audit,
            intent_count: 0,
            port,
            _tasks: tasks,
        })
    }

    /// Returns the file with the admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.admin_kubeconfig()
    }

    /// Creates the first pool with one Rollout, which no operator has reconciled.
    pub async fn seed(&mut self, size: FixtureSize) -> Result<()> {
        self.create_namespaces(1).await?;
        etcd_pods::create(self.control_plane.etcd_address(), 0..1, size.pods, self.port.number()).await?;
        self.create(POOL_KIND, objects::pool_object(0)).await?;
        self.create_config_map(0, size, None).await?;
        self.create(ROLLOUT_KIND, objects::rollout_object(0, 0)).await?;
        self.pool_count = 1;
        Ok(())
    }

    /// Waits until an operator has completed the first Rollout, and records it as the template of the others.
    pub async fn record_template(&mut self) -> Result<()> {
        let name = objects::rollout_name(0, 0);
        let settled = |state: &mut state::FixtureState| {
            let cached = state.rollouts.get(&name).filter(|cached| cached.is_settled())?;
            let rewrite = state.rewrites.get(&0)?.get(&name)?.clone();
            Some((cached.rollout.clone(), rewrite))
        };
        let (rollout, rewrite) = self.state.wait_for("the first Rollout", WAIT_TIMEOUT, settled).await?;
        let map = Api::<ConfigMap>::namespaced(self.client.clone(), &objects::namespace(0));
        let map = map.get(&objects::config_map_name(0)).await?;
        let directives = map.data.as_ref().and_then(|data| data.get(rollora_api::names::DIRECTIVES_KEY));
        self.template = Some(RolloutTemplate {
            status: serde_json::to_value(rollout.status.context("the first Rollout has no status")?)?,
            directives: OperatorDirectives::parse(directives.context("the operator has not written its directives")?)?,
            rollout_uid: rollout.metadata.uid.context("the first Rollout has no UID")?,
            rewrite_uid: rewrite.metadata.uid.clone().context("the rewrite of the first Rollout has no UID")?,
            rewrite: serde_json::to_value(rewrite)?,
        });
        Ok(())
    }

    /// Creates all objects that are missing for this size. New Rollouts look as if they had succeeded long ago. The
    /// spec of every Rollout has changed since it was last reconciled.
    pub async fn grow(&mut self, size: FixtureSize) -> Result<()> {
        let template = self.template.clone().context("no template was recorded")?;
        ensure!(
            size.pods <= objects::MAX_SERVERS_PER_POOL,
            "{} servers are more than a pool has addresses for",
            size.pods
        );
        self.create_namespaces(size.pools).await?;
        etcd_pods::create(
            self.control_plane.etcd_address(),
            self.pool_count..size.pools,
            size.pods,
            self.port.number(),
        )
        .await?;
        let this = &*self;
        let new = this.pool_count..size.pools;
        for_each_concurrent(
            new.clone(),
            |pool| async move { this.create(POOL_KIND, objects::pool_object(pool)).await.map(drop) },
            1,
        )
        .await?;
        let map_template = template.clone();
        let maps = new
            .clone()
            .map(|pool| Ok((pool, map_template.directives(pool, size.rollouts)?)))
            .collect::<Result<Vec<_>>>()?;
        for_each_concurrent(
            maps,
            |(pool, directives)| async move { this.create_config_map(pool, size, Some(&directives)).await },
            MAX_CONCURRENT_REQUESTS,
        )
        .await?;
        // The first Rollout of the first pool exists already, and so do its objects.
        if this.pool_count == 1 {
            let directives = template.directives(0, size.rollouts)?;
            this.replace_config_map(0, size, &directives).await?;
        }
        let old: Vec<String> = this.state.with(|state| state.rollouts.keys().cloned().collect());
        for_each_concurrent(old.clone(), |name| async move { this.touch_spec(&name).await }, MAX_CONCURRENT_REQUESTS)
            .await?;
        let existing: BTreeSet<String> = old.into_iter().collect();
        let loras = (0..size.pools).flat_map(|pool| (0..size.rollouts).map(move |number| (pool, number)));
        let loras: Vec<_> =
            loras.filter(|(pool, number)| !existing.contains(&objects::rollout_name(*pool, *number))).collect();
        let template = &template;
        for_each_concurrent(loras, |lora| this.create_rollout(template, lora), MAX_CONCURRENT_REQUESTS).await?;
        let count = usize::from(size.pools) * usize::from(size.rollouts);
        let all = |state: &mut state::FixtureState| {
            let made =
                state.rollouts.len() == count && state.rollouts.values().all(|cached| cached.rollout.status.is_some());
            (made && state.pool_configs.len() == usize::from(size.pools)).then_some(())
        };
        this.state.wait_for("the created objects to appear in the watches", WAIT_TIMEOUT, all).await?;
        self.pool_count = self.pool_count.max(size.pools);
        Ok(())
    }

    async fn create_rollout(&self, template: &RolloutTemplate, lora: (u16, u16)) -> Result<()> {
        let rollout = self.create(ROLLOUT_KIND, objects::rollout_object(lora.0, lora.1)).await?;
        let rollout_uid = rollout.uid().context("the created Rollout has no UID")?;
        let rewrite = self.create(REWRITE_KIND, template.rewrite(lora, &rollout_uid)?).await?;
        let rewrite_uid = rewrite.uid().context("the created rewrite has no UID")?;
        let status = json!({ "status": template.status(lora, &rollout_uid, &rewrite_uid)? });
        let api = self.api(ROLLOUT_KIND, lora.0);
        let patch = Patch::Merge(status);
        api.patch_status(&objects::rollout_name(lora.0, lora.1), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn create(&self, kind: FixtureKind, object: Value) -> Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let name = object.name_any();
        let namespace = object.namespace().unwrap_or_default();
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace, &state::api_resource(kind));
        api.create(&PostParams::default(), &object).await.with_context(|| format!("cannot create {name}"))
    }

    async fn create_namespaces(&self, pools: u16) -> Result<()> {
        let api = Api::<Namespace>::all(self.client.clone());
        let existing: BTreeSet<String> =
            api.list(&kube::api::ListParams::default()).await?.iter().map(kube::ResourceExt::name_any).collect();
        let wanted: BTreeSet<String> = (0..pools).map(objects::namespace).collect();
        for name in wanted.difference(&existing) {
            let object = serde_json::from_value(objects::namespace_object(name))?;
            api.create(&PostParams::default(), &object).await?;
        }
        Ok(())
    }

    async fn create_config_map(
        &self,
        pool: u16,
        size: FixtureSize,
        directives: Option<&OperatorDirectives>,
    ) -> Result<()> {
        let object: ConfigMap =
            serde_json::from_value(objects::config_map_object(pool, size.rollouts, size.versions, directives))?;
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &objects::namespace(pool));
        api.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    async fn replace_config_map(&self, pool: u16, size: FixtureSize, directives: &OperatorDirectives) -> Result<()> {
        let object = objects::config_map_object(pool, size.rollouts, size.versions, Some(directives));
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &objects::namespace(pool));
        let patch = Patch::Merge(json!({ "data": object["data"] }));
        api.patch(&objects::config_map_name(pool), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn api(&self, kind: FixtureKind, pool: u16) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &objects::namespace(pool), &state::api_resource(kind))
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<()> {
        let pool = objects::pool_from_name(name).with_context(|| format!("{name} names no pool"))?;
        let patch = Patch::Merge(patch);
        self.api(ROLLOUT_KIND, pool).patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Changes a field of the spec that requires no action of the operator.
    async fn touch_spec(&self, name: &str) -> Result<()> {
        let generation = self.state.with(|state| state.rollouts.get(name)?.rollout.metadata.generation);
        let deadline = format!("{}s", 1800 + generation.unwrap_or_default());
        self.patch(name, json!({ "spec": { "strategy": { "progressDeadline": deadline } } })).await
    }

    /// Waits until every Rollout has been reconciled since its spec changed.
    pub async fn wait_until_reconciled(&self) -> Result<()> {
        let all = |state: &mut state::FixtureState| {
            state.rollouts.values().all(state::CachedRollout::is_reconciled).then_some(())
        };
        self.state.wait_for("every Rollout to be reconciled", WAIT_TIMEOUT, all).await
    }

    /// Sets whether routers stay behind the last weights of rewrites with split traffic.
    pub fn hold_routers(&self, held: bool) {
        self.state.update(|state| state.routers_held = held);
    }

    /// Sets `version` as the desired one of the first Rollout of `count` pools, and waits until their steps are in
    /// progress. Routers must be held.
    pub async fn begin_rollouts(&self, count: u16, version: u16) -> Result<()> {
        let begin = |pool: u16| async move {
            let id = objects::adapter_id(pool, 0, version);
            self.patch(&objects::rollout_name(pool, 0), json!({ "spec": { "adapter": { "id": id } } })).await
        };
        for_each_concurrent(0..count, begin, MAX_CONCURRENT_REQUESTS).await?;
        let active = |state: &mut state::FixtureState| {
            let is_active = |pool: u16| {
                let cached = state.rollouts.get(&objects::rollout_name(pool, 0));
                let id = objects::adapter_id(pool, 0, version);
                cached.is_some_and(|cached| {
                    let desired = cached.status().revision.desired;
                    cached.awaits_routers() && desired.is_some_and(|desired| desired.as_str() == id)
                })
            };
            (0..count).all(is_active).then_some(())
        };
        self.state.wait_for("the new rollouts to be in progress", WAIT_TIMEOUT, active).await
    }

    /// Waits until no rollout is in progress.
    pub async fn wait_until_settled(&self) -> Result<()> {
        let all = |state: &mut state::FixtureState| {
            state.rollouts.values().all(state::CachedRollout::is_settled).then_some(())
        };
        self.state.wait_for("every Rollout to be complete", WAIT_TIMEOUT, all).await
    }

    /// Sends the same intent to the first Rollout of `count` pools, one after the other. Returns for each the time in
    /// milliseconds from just before the intent is written until the watch shows its rewrite with one target.
    pub async fn send_intents(&mut self, verb: IntentKind, count: u16) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for pool in 0..count {
            self.intent_count += 1;
            let name = objects::rollout_name(pool, 0);
            let rollout = self.state.with(|state| state.rollouts.get(&name).map(|cached| cached.rollout.clone()));
            let rollout: Rollout = rollout.with_context(|| format!("Rollout {name} does not exist any more"))?;
            let status = rollout.status.unwrap_or_default();
            let intent = Intent {
                id: format!("intent-{}", self.intent_count),
                verb,
                revision: status.revision.number,
                step: status.step.map(|step| step.index),
                claimed_by: None,
            };
            let targets = |state: &mut state::FixtureState| {
                Some(state.rewrites.get(&pool)?.get(&name)?.spec.rules.first()?.targets.len())
            };
            ensure!(self.state.with(targets) == Some(2), "the traffic of {name} is not split");
            let text = serde_json::to_string(&intent)?;
            let start = clock::now();
            self.patch(&name, json!({ "metadata": { "annotations": { INTENT_ANNOTATION: text } } })).await?;
            let one = |state: &mut state::FixtureState| (targets(state) == Some(1)).then_some(());
            self.state.wait_for("an intent to be executed", WAIT_TIMEOUT, one).await?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            // Varies, so that intents do not synchronize with the operator's polls.
            tokio::time::sleep(INTENT_INTERVAL + Duration::from_millis(u64::from(pool * 7 % 50))).await;
        }
        Ok(times)
    }

    /// Starts the counts over.
    pub fn reset_counts(&mut self) {
        self.audit = self.control_plane.audit_log();
        self.state.update(|state| state.writes = StatusWriteCounts::default());
    }

    /// Returns the counts since [`ScaleFixture::reset_counts`].
    pub fn request_counts(&self) -> Result<OperatorRequestCounts> {
        let mut counts = OperatorRequestCounts {
            requests: BTreeMap::new(),
            watches: 0,
            discoveries: 0,
            writes: self.state.with(|state| state.writes.clone()),
        };
        for event in self.audit.events()? {
            if !event.user_agent.starts_with(OPERATOR_USER_AGENT) || event.resource == "leases" {
                continue;
            }
            if event.verb == "watch" {
                counts.watches += 1;
                continue;
            }
            if event.resource.is_empty() {
                counts.discoveries += 1;
                continue;
            }
            let slash = if event.subresource.is_empty() { "" } else { "/" };
            let what = format!("{} {}{slash}{}", event.verb, event.resource, event.subresource);
            *counts.requests.entry(what).or_default() += 1;
        }
        Ok(counts)
    }
}

/// Runs `act` for each item, at most `concurrency` at a time.
async fn for_each_concurrent<T, F: Future<Output = Result<()>>>(
    items: impl IntoIterator<Item = T>,
    act: impl Fn(T) -> F,
    concurrency: usize,
) -> Result<()> {
    stream::iter(items).map(Ok).try_for_each_concurrent(concurrency, act).await
}
