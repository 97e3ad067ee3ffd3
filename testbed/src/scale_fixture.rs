//! Many Rollouts in many pools of many pods, on a real API server: the objects are real, the pods are not.
//!
//! One process answers for all sidecars and routers ([`answers`]), at an address of each pod's own. What a Rollout, its
//! rewrite and the operator's key look like when all is done is taken from one that the operator has carried through
//! ([`Population::learn`]), so that thousands more can be made as if it had carried those through too.
//!
//! Pods are written into etcd, as the API server would have left them there: through the API server each would take a
//! second write for the status that a kubelet reports.

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

/// Requests that are on their way at once where many are made.
const MAX_CONCURRENT_REQUESTS: usize = 48;
/// How long anything may take.
const WAIT_TIMEOUT: Duration = Duration::from_mins(4);
/// What lies between one wish and the next.
const INTENT_INTERVAL: Duration = Duration::from_millis(60);
/// The program whose requests are counted.
const OPERATOR_USER_AGENT: &str = "rollora-operator/";

/// The API server and all that lives on it.
pub struct ScaleFixture {
    control_plane: ControlPlane,
    client: Client,
    state: SharedFixtureState,
    template: Option<RolloutTemplate>,
    /// Pools that are there.
    pool_count: u16,
    audit: AuditLog,
    intent_count: u32,
    port: ReservedPort,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for ScaleFixture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Population")
            .field("plane", &self.control_plane)
            .field("pools", &self.pool_count)
            .finish_non_exhaustive()
    }
}

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct FixtureSize {
    /// Pools.
    pub pools: u16,
    /// Servers of each.
    pub pods: u8,
    /// Rollouts in each.
    pub rollouts: u16,
    /// Versions of each adapter that are listed.
    pub versions: u16,
}

/// What was asked of the API server by the operator, and what Rollouts' status was written for.
#[derive(Debug, Serialize)]
pub struct OperatorRequestCounts {
    /// Requests but those of the Lease and watches, by verb and resource.
    requests: BTreeMap<String, u64>,
    /// Watches that were begun.
    watches: u64,
    /// Questions which kinds are installed.
    discoveries: u64,
    #[serde(flatten)]
    writes: StatusWriteCounts,
}

impl ScaleFixture {
    /// An API server with nothing on it, and somebody who answers for pods.
    pub async fn start() -> Result<Self> {
        let plane = ControlPlane::start().await?;
        plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
        let (client, seen, port) = (plane.admin_client().await?, SharedFixtureState::new(), ReservedPort::reserve()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(endpoints::serve(endpoints::listen_on_loopback(port.number())?, seen.clone()));
        let (watching, of) = (seen.clone(), client.clone());
        tasks.spawn(async move {
            if let Err(error) = watching.watch(of).await {
                // Whoever waits for what is not seen any more says what it waits for.
                watching.update(|seen| seen.rollouts.clear());
                drop(error);
            }
        });
        let audit = plane.audit_log();
        Ok(Self {
            control_plane: plane,
            client,
            state: seen,
            template: None,
            pool_count: 0,
            audit,
            intent_count: 0,
            port,
            _tasks: tasks,
        })
    }

    /// A kubeconfig of somebody who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.admin_kubeconfig()
    }

    /// Makes the first Rollout of the first pool, which nobody has looked at yet.
    pub async fn seed(&mut self, size: FixtureSize) -> Result<()> {
        self.create_namespaces(1).await?;
        etcd_pods::create(self.control_plane.etcd_address(), 0..1, size.pods, self.port.number()).await?;
        self.create(POOL_KIND, objects::pool_object(0)).await?;
        self.create_config_map(0, size, None).await?;
        self.create(ROLLOUT_KIND, objects::rollout_object(0, 0)).await?;
        self.pool_count = 1;
        Ok(())
    }

    /// Waits until an operator has carried the first Rollout through, and remembers what it looks like then.
    pub async fn record_template(&mut self) -> Result<()> {
        let name = objects::rollout_name(0, 0);
        let settled = |seen: &mut state::FixtureState| {
            let known = seen.rollouts.get(&name).filter(|known| known.is_settled())?;
            let rewrite = seen.rewrites.get(&0)?.get(&name)?.clone();
            Some((known.rollout.clone(), rewrite))
        };
        let (rollout, rewrite) = self.state.wait_for("the first Rollout", WAIT_TIMEOUT, settled).await?;
        let map = Api::<ConfigMap>::namespaced(self.client.clone(), &objects::namespace(0));
        let map = map.get(&objects::config_map_name(0)).await?;
        let key = map.data.as_ref().and_then(|data| data.get(rollora_api::names::DIRECTIVES_KEY));
        self.template = Some(RolloutTemplate {
            status: serde_json::to_value(rollout.status.context("a Rollout without status")?)?,
            directives: OperatorDirectives::parse(key.context("the operator has not written its key")?)?,
            rollout_uid: rollout.metadata.uid.context("a Rollout without UID")?,
            rewrite_uid: rewrite.metadata.uid.clone().context("a rewrite without UID")?,
            rewrite: serde_json::to_value(rewrite)?,
        });
        Ok(())
    }

    /// Makes everything that is missing up to this size. What is new is as if it had succeeded long ago, and no
    /// Rollout was looked at since its spec was changed.
    pub async fn grow(&mut self, size: FixtureSize) -> Result<()> {
        let template = self.template.clone().context("nothing was learned yet")?;
        ensure!(size.pods <= objects::MAX_SERVERS_PER_POOL, "more servers than a pool has addresses for");
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
        let keyed = template.clone();
        let maps =
            new.clone().map(|pool| Ok((pool, keyed.directives(pool, size.rollouts)?))).collect::<Result<Vec<_>>>()?;
        for_each_concurrent(
            maps,
            |(pool, key)| async move { this.create_config_map(pool, size, Some(&key)).await },
            MAX_CONCURRENT_REQUESTS,
        )
        .await?;
        // The first one of the first pool is there, and so is what it names.
        if this.pool_count == 1 {
            let key = template.directives(0, size.rollouts)?;
            this.replace_config_map(0, size, &key).await?;
        }
        let old: Vec<String> = this.state.with(|seen| seen.rollouts.keys().cloned().collect());
        for_each_concurrent(old.clone(), |name| async move { this.touch_spec(&name).await }, MAX_CONCURRENT_REQUESTS)
            .await?;
        let there: BTreeSet<String> = old.into_iter().collect();
        let loras = (0..size.pools).flat_map(|pool| (0..size.rollouts).map(move |number| (pool, number)));
        let loras: Vec<_> =
            loras.filter(|(pool, number)| !there.contains(&objects::rollout_name(*pool, *number))).collect();
        let template = &template;
        for_each_concurrent(loras, |lora| this.create_rollout(template, lora), MAX_CONCURRENT_REQUESTS).await?;
        let count = usize::from(size.pools) * usize::from(size.rollouts);
        let all = |seen: &mut state::FixtureState| {
            let made =
                seen.rollouts.len() == count && seen.rollouts.values().all(|known| known.rollout.status.is_some());
            (made && seen.pool_configs.len() == usize::from(size.pools)).then_some(())
        };
        this.state.wait_for("all that was made", WAIT_TIMEOUT, all).await?;
        self.pool_count = self.pool_count.max(size.pools);
        Ok(())
    }

    async fn create_rollout(&self, template: &RolloutTemplate, lora: (u16, u16)) -> Result<()> {
        let rollout = self.create(ROLLOUT_KIND, objects::rollout_object(lora.0, lora.1)).await?;
        let rollout_uid = rollout.uid().context("a Rollout without UID")?;
        let rewrite = self.create(REWRITE_KIND, template.rewrite(lora, &rollout_uid)?).await?;
        let rewrite_uid = rewrite.uid().context("a rewrite without UID")?;
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
        api.create(&PostParams::default(), &object).await.with_context(|| format!("cannot make {name}"))
    }

    async fn create_namespaces(&self, pools: u16) -> Result<()> {
        let api = Api::<Namespace>::all(self.client.clone());
        let there: BTreeSet<String> =
            api.list(&kube::api::ListParams::default()).await?.iter().map(kube::ResourceExt::name_any).collect();
        let wanted: BTreeSet<String> = (0..pools).map(objects::namespace).collect();
        for name in wanted.difference(&there) {
            let object = serde_json::from_value(objects::namespace_object(name))?;
            api.create(&PostParams::default(), &object).await?;
        }
        Ok(())
    }

    async fn create_config_map(&self, pool: u16, size: FixtureSize, key: Option<&OperatorDirectives>) -> Result<()> {
        let object: ConfigMap =
            serde_json::from_value(objects::config_map_object(pool, size.rollouts, size.versions, key))?;
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &objects::namespace(pool));
        api.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    async fn replace_config_map(&self, pool: u16, size: FixtureSize, key: &OperatorDirectives) -> Result<()> {
        let object = objects::config_map_object(pool, size.rollouts, size.versions, Some(key));
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &objects::namespace(pool));
        let patch = Patch::Merge(json!({ "data": object["data"] }));
        api.patch(&objects::config_map_name(pool), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn api(&self, kind: FixtureKind, pool: u16) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &objects::namespace(pool), &state::api_resource(kind))
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<()> {
        let pool = objects::pool_from_name(name).context("a Rollout of no pool")?;
        let patch = Patch::Merge(patch);
        self.api(ROLLOUT_KIND, pool).patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Changes the spec of a Rollout, and nothing that anybody would have to do anything for.
    async fn touch_spec(&self, name: &str) -> Result<()> {
        let generation = self.state.with(|seen| seen.rollouts.get(name)?.rollout.metadata.generation);
        let deadline = format!("{}s", 1800 + generation.unwrap_or_default());
        self.patch(name, json!({ "spec": { "strategy": { "progressDeadline": deadline } } })).await
    }

    /// Waits until every Rollout was looked at since its spec was changed.
    pub async fn wait_until_reconciled(&self) -> Result<()> {
        let all = |seen: &mut state::FixtureState| {
            seen.rollouts.values().all(state::CachedRollout::is_reconciled).then_some(())
        };
        self.state.wait_for("every Rollout to be reconciled", WAIT_TIMEOUT, all).await
    }

    /// From now on routers stay behind what is split, or not any more.
    pub fn hold_routers(&self, held: bool) {
        self.state.update(|seen| seen.routers_held = held);
    }

    /// Wants this version of the first adapter of so many pools, and waits until its steps are under way. Routers have
    /// to be held.
    pub async fn begin_rollouts(&self, count: u16, version: u16) -> Result<()> {
        let begin = |pool: u16| async move {
            let id = objects::adapter_id(pool, 0, version);
            self.patch(&objects::rollout_name(pool, 0), json!({ "spec": { "adapter": { "id": id } } })).await
        };
        for_each_concurrent(0..count, begin, MAX_CONCURRENT_REQUESTS).await?;
        let active = |seen: &mut state::FixtureState| {
            let is_active = |pool: u16| {
                let known = seen.rollouts.get(&objects::rollout_name(pool, 0));
                let id = objects::adapter_id(pool, 0, version);
                known.is_some_and(|known| {
                    let desired = known.status().revision.desired;
                    known.awaits_routers() && desired.is_some_and(|desired| desired.as_str() == id)
                })
            };
            (0..count).all(is_active).then_some(())
        };
        self.state.wait_for("rollouts that are under way", WAIT_TIMEOUT, active).await
    }

    /// Waits until no rollout is under way.
    pub async fn wait_until_settled(&self) -> Result<()> {
        let all =
            |seen: &mut state::FixtureState| seen.rollouts.values().all(state::CachedRollout::is_settled).then_some(());
        self.state.wait_for("every Rollout to be at its end", WAIT_TIMEOUT, all).await
    }

    /// Asks for the same of the first Rollout of so many pools, one after the other; gives for each how long it took,
    /// in milliseconds, from before the wish was written until its rewrite was seen with one target.
    pub async fn send_intents(&mut self, verb: IntentKind, count: u16) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for pool in 0..count {
            self.intent_count += 1;
            let name = objects::rollout_name(pool, 0);
            let rollout = self.state.with(|seen| seen.rollouts.get(&name).map(|known| known.rollout.clone()));
            let rollout: Rollout = rollout.context("a Rollout is gone")?;
            let status = rollout.status.unwrap_or_default();
            let intent = Intent {
                id: format!("wish-{}", self.intent_count),
                verb,
                revision: status.revision.number,
                step: status.step.map(|step| step.index),
                claimed_by: None,
            };
            let targets = |seen: &mut state::FixtureState| {
                Some(seen.rewrites.get(&pool)?.get(&name)?.spec.rules.first()?.targets.len())
            };
            ensure!(self.state.with(targets) == Some(2), "the traffic of {name} is not split");
            let text = serde_json::to_string(&intent)?;
            let start = clock::now();
            self.patch(&name, json!({ "metadata": { "annotations": { INTENT_ANNOTATION: text } } })).await?;
            let one = |seen: &mut state::FixtureState| (targets(seen) == Some(1)).then_some(());
            self.state.wait_for("a wish to be fulfilled", WAIT_TIMEOUT, one).await?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            // In no step with the looks of the operator.
            tokio::time::sleep(INTENT_INTERVAL + Duration::from_millis(u64::from(pool * 7 % 50))).await;
        }
        Ok(times)
    }

    /// Counts from now on.
    pub fn reset_counts(&mut self) {
        self.audit = self.control_plane.audit_log();
        self.state.update(|seen| seen.writes = StatusWriteCounts::default());
    }

    /// What was counted.
    pub fn request_counts(&self) -> Result<OperatorRequestCounts> {
        let mut account = OperatorRequestCounts {
            requests: BTreeMap::new(),
            watches: 0,
            discoveries: 0,
            writes: self.state.with(|seen| seen.writes.clone()),
        };
        for event in self.audit.events()? {
            if !event.user_agent.starts_with(OPERATOR_USER_AGENT) || event.resource == "leases" {
                continue;
            }
            if event.verb == "watch" {
                account.watches += 1;
                continue;
            }
            if event.resource.is_empty() {
                account.discoveries += 1;
                continue;
            }
            let slash = if event.subresource.is_empty() { "" } else { "/" };
            let what = format!("{} {}{slash}{}", event.verb, event.resource, event.subresource);
            *account.requests.entry(what).or_default() += 1;
        }
        Ok(account)
    }
}

/// Does the same for each, so many at once.
async fn for_each_concurrent<T, F: Future<Output = Result<()>>>(
    items: impl IntoIterator<Item = T>,
    act: impl Fn(T) -> F,
    at_once: usize,
) -> Result<()> {
    stream::iter(items).map(Ok).try_for_each_concurrent(at_once, act).await
}
