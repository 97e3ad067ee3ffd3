//! Many Rollouts in many pools of many pods, on a real API server: the objects are real, the pods are not.
//!
//! One process answers for all sidecars and routers ([`answers`]), at an address of each pod's own. What a Rollout, its
//! rewrite and the operator's key look like when all is done is taken from one that the operator has carried through
//! ([`Population::learn`]), so that thousands more can be made as if it had carried those through too.
//!
//! Pods are written into etcd, as the API server would have left them there: through the API server each would take a
//! second write for the status that a kubelet reports.

mod answers;
mod layout;
mod pods;
mod seen;

use super::control_plane::{Audit, ControlPlane, ours, upstream};
use crate::{clock, ports::Port};
use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::DynamicObject,
};
use layout::Template;
use rollora_api::{
    names::INTENT_ANNOTATION,
    operator_directives::OperatorDirectives,
    rollout::{Intent, IntentKind, Rollout},
};
use seen::{Kind, POOLS, REWRITES, ROLLOUTS, Shared, Writes};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    time::Duration,
};
use tokio::task::JoinSet;

/// Requests that are on their way at once where many are made.
const AT_ONCE: usize = 48;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(4);
/// What lies between one wish and the next.
const BREATH: Duration = Duration::from_millis(60);
/// The program whose requests are counted.
const AGENT: &str = "rollora-operator/";

/// The API server and all that lives on it.
pub struct Population {
    plane: ControlPlane,
    client: Client,
    seen: Shared,
    template: Option<Template>,
    /// Pools that are there.
    pools: u16,
    audit: Audit,
    wishes: u32,
    port: Port,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for Population {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Population").field("plane", &self.plane).field("pools", &self.pools).finish_non_exhaustive()
    }
}

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
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
pub struct Account {
    /// Requests but those of the Lease and watches, by verb and resource.
    requests: BTreeMap<String, u64>,
    /// Watches that were begun.
    watches: u64,
    /// Questions which kinds are installed.
    discoveries: u64,
    #[serde(flatten)]
    writes: Writes,
}

impl Population {
    /// An API server with nothing on it, and somebody who answers for pods.
    pub async fn start() -> Result<Self> {
        let plane = ControlPlane::start().await?;
        plane.install(&[ours()?, upstream()?].concat()).await?;
        let (client, seen, port) = (plane.admin().await?, Shared::new(), Port::reserve()?);
        let mut tasks = JoinSet::new();
        tasks.spawn(answers::serve(answers::listen(port.number())?, seen.clone()));
        let (watching, of) = (seen.clone(), client.clone());
        tasks.spawn(async move {
            if let Err(error) = watching.follow(of).await {
                // Whoever waits for what is not seen any more says what it waits for.
                watching.tell(|seen| seen.rollouts.clear());
                drop(error);
            }
        });
        let audit = plane.audit();
        Ok(Self { plane, client, seen, template: None, pools: 0, audit, wishes: 0, port, _tasks: tasks })
    }

    /// A kubeconfig of somebody who may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.plane.admin_kubeconfig()
    }

    /// Makes the first Rollout of the first pool, which nobody has looked at yet.
    pub async fn seed(&mut self, size: Size) -> Result<()> {
        self.create_namespaces(1).await?;
        pods::create(self.plane.etcd(), 0..1, size.pods, self.port.number()).await?;
        self.create(POOLS, layout::pool_object(0)).await?;
        self.create_map(0, size, None).await?;
        self.create(ROLLOUTS, layout::rollout_object(0, 0)).await?;
        self.pools = 1;
        Ok(())
    }

    /// Waits until an operator has carried the first Rollout through, and remembers what it looks like then.
    pub async fn learn(&mut self) -> Result<()> {
        let name = layout::lora(0, 0);
        let settled = |seen: &mut seen::Seen| {
            let known = seen.rollouts.get(&name).filter(|known| known.is_settled())?;
            let rewrite = seen.rewrites.get(&0)?.get(&name)?.clone();
            Some((known.rollout.clone(), rewrite))
        };
        let (rollout, rewrite) = self.seen.until("the first Rollout", PATIENCE, settled).await?;
        let map = Api::<ConfigMap>::namespaced(self.client.clone(), &layout::namespace(0));
        let map = map.get(&layout::map_name(0)).await?;
        let key = map.data.as_ref().and_then(|data| data.get(rollora_api::names::DIRECTIVES_KEY));
        self.template = Some(Template {
            status: serde_json::to_value(rollout.status.context("a Rollout without status")?)?,
            key: OperatorDirectives::parse(key.context("the operator has not written its key")?)?,
            rollout_uid: rollout.metadata.uid.context("a Rollout without UID")?,
            rewrite_uid: rewrite.metadata.uid.clone().context("a rewrite without UID")?,
            rewrite: serde_json::to_value(rewrite)?,
        });
        Ok(())
    }

    /// Makes everything that is missing up to this size. What is new is as if it had succeeded long ago, and no
    /// Rollout was looked at since its spec was changed.
    pub async fn grow(&mut self, size: Size) -> Result<()> {
        let template = self.template.clone().context("nothing was learned yet")?;
        ensure!(size.pods <= layout::MOST_PODS, "more servers than a pool has addresses for");
        self.create_namespaces(size.pools).await?;
        pods::create(self.plane.etcd(), self.pools..size.pools, size.pods, self.port.number()).await?;
        let this = &*self;
        let new = this.pools..size.pools;
        each(new.clone(), |pool| async move { this.create(POOLS, layout::pool_object(pool)).await.map(drop) }, 1)
            .await?;
        let keyed = template.clone();
        let maps = new.clone().map(|pool| Ok((pool, keyed.key(pool, size.rollouts)?))).collect::<Result<Vec<_>>>()?;
        each(maps, |(pool, key)| async move { this.create_map(pool, size, Some(&key)).await }, AT_ONCE).await?;
        // The first one of the first pool is there, and so is what it names.
        if this.pools == 1 {
            let key = template.key(0, size.rollouts)?;
            this.replace_map(0, size, &key).await?;
        }
        let old: Vec<String> = this.seen.with(|seen| seen.rollouts.keys().cloned().collect());
        each(old.clone(), |name| async move { this.nudge(&name).await }, AT_ONCE).await?;
        let there: BTreeSet<String> = old.into_iter().collect();
        let loras = (0..size.pools).flat_map(|pool| (0..size.rollouts).map(move |number| (pool, number)));
        let loras: Vec<_> = loras.filter(|(pool, number)| !there.contains(&layout::lora(*pool, *number))).collect();
        let template = &template;
        each(loras, |lora| this.create_rollout(template, lora), AT_ONCE).await?;
        let count = usize::from(size.pools) * usize::from(size.rollouts);
        let all = |seen: &mut seen::Seen| {
            let made =
                seen.rollouts.len() == count && seen.rollouts.values().all(|known| known.rollout.status.is_some());
            (made && seen.maps.len() == usize::from(size.pools)).then_some(())
        };
        this.seen.until("all that was made", PATIENCE, all).await?;
        self.pools = self.pools.max(size.pools);
        Ok(())
    }

    async fn create_rollout(&self, template: &Template, lora: (u16, u16)) -> Result<()> {
        let rollout = self.create(ROLLOUTS, layout::rollout_object(lora.0, lora.1)).await?;
        let rollout_uid = rollout.uid().context("a Rollout without UID")?;
        let rewrite = self.create(REWRITES, template.rewrite(lora, &rollout_uid)?).await?;
        let rewrite_uid = rewrite.uid().context("a rewrite without UID")?;
        let status = json!({ "status": template.status(lora, &rollout_uid, &rewrite_uid)? });
        let api = self.api(ROLLOUTS, lora.0);
        let patch = Patch::Merge(status);
        api.patch_status(&layout::lora(lora.0, lora.1), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn create(&self, kind: Kind, object: Value) -> Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(object)?;
        let name = object.name_any();
        let namespace = object.namespace().unwrap_or_default();
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &namespace, &seen::resource(kind));
        api.create(&PostParams::default(), &object).await.with_context(|| format!("cannot make {name}"))
    }

    async fn create_namespaces(&self, pools: u16) -> Result<()> {
        let api = Api::<Namespace>::all(self.client.clone());
        let there: BTreeSet<String> =
            api.list(&kube::api::ListParams::default()).await?.iter().map(kube::ResourceExt::name_any).collect();
        let wanted: BTreeSet<String> = (0..pools).map(layout::namespace).collect();
        for name in wanted.difference(&there) {
            let object = serde_json::from_value(layout::namespace_object(name))?;
            api.create(&PostParams::default(), &object).await?;
        }
        Ok(())
    }

    async fn create_map(&self, pool: u16, size: Size, key: Option<&OperatorDirectives>) -> Result<()> {
        let object: ConfigMap = serde_json::from_value(layout::map_object(pool, size.rollouts, size.versions, key))?;
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &layout::namespace(pool));
        api.create(&PostParams::default(), &object).await?;
        Ok(())
    }

    async fn replace_map(&self, pool: u16, size: Size, key: &OperatorDirectives) -> Result<()> {
        let object = layout::map_object(pool, size.rollouts, size.versions, Some(key));
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &layout::namespace(pool));
        let patch = Patch::Merge(json!({ "data": object["data"] }));
        api.patch(&layout::map_name(pool), &PatchParams::default(), &patch).await?;
        Ok(())
    }

    fn api(&self, kind: Kind, pool: u16) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &layout::namespace(pool), &seen::resource(kind))
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<()> {
        let pool = layout::pool_of(name).context("a Rollout of no pool")?;
        let patch = Patch::Merge(patch);
        self.api(ROLLOUTS, pool).patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Changes the spec of a Rollout, and nothing that anybody would have to do anything for.
    async fn nudge(&self, name: &str) -> Result<()> {
        let generation = self.seen.with(|seen| seen.rollouts.get(name)?.rollout.metadata.generation);
        let deadline = format!("{}s", 1800 + generation.unwrap_or_default());
        self.patch(name, json!({ "spec": { "strategy": { "progressDeadline": deadline } } })).await
    }

    /// Waits until every Rollout was looked at since its spec was changed.
    pub async fn reconciled(&self) -> Result<()> {
        let all = |seen: &mut seen::Seen| seen.rollouts.values().all(seen::Known::is_reconciled).then_some(());
        self.seen.until("every Rollout to be reconciled", PATIENCE, all).await
    }

    /// From now on routers stay behind what is split, or not any more.
    pub fn hold(&self, held: bool) {
        self.seen.tell(|seen| seen.held = held);
    }

    /// Wants this version of the first adapter of so many pools, and waits until its steps are under way. Routers have
    /// to be held.
    pub async fn begin(&self, count: u16, version: u16) -> Result<()> {
        let begin = |pool: u16| async move {
            let id = layout::version(pool, 0, version);
            self.patch(&layout::lora(pool, 0), json!({ "spec": { "adapter": { "id": id } } })).await
        };
        each(0..count, begin, AT_ONCE).await?;
        let active = |seen: &mut seen::Seen| {
            let is_active = |pool: u16| {
                let known = seen.rollouts.get(&layout::lora(pool, 0));
                let id = layout::version(pool, 0, version);
                known.is_some_and(|known| {
                    let desired = known.status().revision.desired;
                    known.is_active() && desired.is_some_and(|desired| desired.as_str() == id)
                })
            };
            (0..count).all(is_active).then_some(())
        };
        self.seen.until("rollouts that are under way", PATIENCE, active).await
    }

    /// Waits until no rollout is under way.
    pub async fn settled(&self) -> Result<()> {
        let all = |seen: &mut seen::Seen| seen.rollouts.values().all(seen::Known::is_settled).then_some(());
        self.seen.until("every Rollout to be at its end", PATIENCE, all).await
    }

    /// Asks for the same of the first Rollout of so many pools, one after the other; gives for each how long it took,
    /// in milliseconds, from before the wish was written until its rewrite was seen with one target.
    pub async fn wish(&mut self, verb: IntentKind, count: u16) -> Result<Vec<f64>> {
        let mut times = Vec::new();
        for pool in 0..count {
            self.wishes += 1;
            let name = layout::lora(pool, 0);
            let rollout = self.seen.with(|seen| seen.rollouts.get(&name).map(|known| known.rollout.clone()));
            let rollout: Rollout = rollout.context("a Rollout is gone")?;
            let status = rollout.status.unwrap_or_default();
            let intent = Intent {
                id: format!("wish-{}", self.wishes),
                verb,
                revision: status.revision.number,
                step: status.step.map(|step| step.index),
                claimed_by: None,
            };
            let targets =
                |seen: &mut seen::Seen| Some(seen.rewrites.get(&pool)?.get(&name)?.spec.rules.first()?.targets.len());
            ensure!(self.seen.with(targets) == Some(2), "the traffic of {name} is not split");
            let text = serde_json::to_string(&intent)?;
            let start = clock::now();
            self.patch(&name, json!({ "metadata": { "annotations": { INTENT_ANNOTATION: text } } })).await?;
            let one = |seen: &mut seen::Seen| (targets(seen) == Some(1)).then_some(());
            self.seen.until("a wish to be fulfilled", PATIENCE, one).await?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
            // In no step with the looks of the operator.
            tokio::time::sleep(BREATH + Duration::from_millis(u64::from(pool * 7 % 50))).await;
        }
        Ok(times)
    }

    /// Counts from now on.
    pub fn mark(&mut self) {
        self.audit = self.plane.audit();
        self.seen.tell(|seen| seen.writes = Writes::default());
    }

    /// What was counted.
    pub fn account(&self) -> Result<Account> {
        let mut account = Account {
            requests: BTreeMap::new(),
            watches: 0,
            discoveries: 0,
            writes: self.seen.with(|seen| seen.writes.clone()),
        };
        for event in self.audit.events()? {
            if !event.user_agent.starts_with(AGENT) || event.resource == "leases" {
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
async fn each<T, F: Future<Output = Result<()>>>(
    items: impl IntoIterator<Item = T>,
    act: impl Fn(T) -> F,
    at_once: usize,
) -> Result<()> {
    stream::iter(items).map(Ok).try_for_each_concurrent(at_once, act).await
}
