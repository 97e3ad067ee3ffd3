//! Two operators work at once, or one works on that should have stopped: weights never go backwards, and the rollout ends
//! the same.

use crate::{
    chain::{PATIENCE, ends, every_step_once, never_backwards, outcome, over, reached, version},
    numbers::say,
    steps::{Kept, behind_a_turnstile, short_lease},
};
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, long, on_a_cluster},
    seen::Condition,
    traffic::Crowd,
};
use rollora_testbed::{
    guide::MODEL, kubelet::ContainerHandle, manifests::Manifests, manifests::push_value,
    write_interceptor::WriteInterceptor,
};
use serde_json::json;
use std::{sync::Arc, time::Duration};

const OPERATOR: &str = "rollora-operator";
const RIVAL: &str = "rollora-rival";
const SEED: u64 = 3;

/// A second operator that holds a Lease of its own: both believe that they are alone.
fn with_a_rival(objects: &mut Manifests) -> Result<()> {
    short_lease(objects)?;
    let mut rival = objects.object_mut("Deployment", OPERATOR)?.clone();
    rival["metadata"]["name"] = json!(RIVAL);
    push_value(
        &mut rival["spec"]["template"]["spec"]["containers"][0]["args"],
        json!(format!("--lease-name={RIVAL}")),
    )?;
    let role = objects.object_mut("Role", "rollora-operator-lease")?;
    push_value(&mut role["rules"][0]["resourceNames"], json!(RIVAL))?;
    objects.objects.push(rival);
    Ok(())
}

fn leases(bed: &Bed<Cluster>) -> Api<Lease> {
    Api::namespaced(bed.place.client(), bed.place.namespace())
}

/// Who holds the operator's Lease.
async fn holder(bed: &Bed<Cluster>) -> Result<Option<String>> {
    let lease = leases(bed).get_opt(OPERATOR).await?;
    Ok(lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity))
}

/// Both operators work: each holds its Lease.
async fn both_work(bed: &Bed<Cluster>) -> Result<()> {
    for name in [OPERATOR, RIVAL] {
        let held = leases(bed).get(name).await?.spec.and_then(|spec| spec.holder_identity);
        ensure!(held.as_ref().is_some_and(|holder| holder.starts_with(name)), "{name} is held by {held:?}");
    }
    Ok(())
}

#[test]
fn two_operators_that_both_lead_never_take_weights_back() {
    if !has_a_cluster("two operators work at once") {
        return;
    }
    let parts = async || Ok(Parts { change: Box::new(with_a_rival), ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_millis(200)), parts, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        let last = if long() { 21 } else { 4 };
        for number in 2..=last {
            both_work(bed).await?;
            bed.list(&version(number)).await?;
            ensure!(ends(bed, number).await? == 0, "a rollout was rejected, and nothing died");
        }
        let record = bed.clients_saw_nothing_wrong().await?;
        every_step_once(&record, 2..=last)?;
        say(&format!("two operators at once: {} rollouts: {}", last - 1, record.verdict()));
        Ok(())
    });
}

/// What happens to the Lease of an operator that works.
#[derive(Debug, Clone, Copy)]
enum Robbed {
    Deleted,
    /// Somebody else holds it, and is never heard of again.
    Stolen,
}

impl Robbed {
    async fn happens(self, bed: &Bed<Cluster>) -> Result<()> {
        match self {
            Self::Deleted => drop(leases(bed).delete(OPERATOR, &DeleteParams::default()).await?),
            Self::Stolen => {
                let spec = json!({ "spec": { "holderIdentity": "somebody-else", "leaseDurationSeconds": 2 } });
                leases(bed).patch(OPERATOR, &PatchParams::default(), &Patch::Merge(spec)).await?;
                // It notices, and leaves.
                let operator = bed.place.operators().pop().context("there is no operator")?;
                let before = operator.restarts();
                bed.sees(Condition::new("the operator has left", {
                    let operator = operator.clone();
                    move |_| !operator.is_running() || operator.restarts() > before
                }))
                .await?;
                let why = operator.log_tail(40);
                ensure!(why.contains("was taken by somebody-else"), "it does not say why it left:\n{why}");
                // A kubelet would wait longer each time, once it has seen the end.
                while !operator.is_running() {
                    operator.release();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Ok(())
    }
}

#[test]
fn a_lease_that_is_deleted_or_stolen_at_a_step_changes_nothing() {
    if !has_a_cluster("the Lease of the operator is deleted or stolen") {
        return;
    }
    let weights = [0, 10, 50, 100];
    let mut random = StdRng::seed_from_u64(SEED);
    let mut schedule = Vec::new();
    for robbed in [Robbed::Deleted, Robbed::Stolen] {
        if long() {
            schedule.extend(weights.map(|weight| (robbed, weight)));
        } else {
            schedule.extend(weights.choose(&mut random).map(|weight| (robbed, *weight)));
        }
    }
    let parts = async || Ok(Parts { change: Box::new(short_lease), ..Parts::default() });
    on_a_cluster(&Setup::guide(Duration::from_millis(300)), parts, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(&version(2)).await?;
        let expected = outcome(&bed.sees_within(PATIENCE, over(2)).await?, 2)?;
        let mut last = 2;
        for (robbed, weight) in schedule {
            last += 1;
            bed.list(&version(last)).await?;
            if weight > 0 {
                bed.sees(reached((last, weight))).await?;
            }
            robbed.happens(bed).await?;
            ends(bed, last).await?;
            let came_to = outcome(&bed.sees_within(PATIENCE, over(last)).await?, last)?;
            ensure!(came_to == expected, "{robbed:?} at {weight}: it came to\n{came_to}, not to\n{expected}");
        }
        every_step_once(&bed.clients_saw_nothing_wrong().await?, 2..=last)
    });
}

/// The old leader stands still with a write of the rewrite on its way, the other replica takes over and goes on, and then
/// the write arrives and the old leader wakes up.
#[test]
fn a_write_of_a_leader_that_was_overtaken_is_refused() {
    if !has_a_cluster("a write of an old leader arrives late") {
        return;
    }
    let two = |objects: &mut Manifests| {
        objects.object_mut("Deployment", OPERATOR)?["spec"]["replicas"] = json!(2);
        Ok(())
    };
    let shared = Kept::default();
    let parts = async || behind_a_turnstile(Arc::clone(&shared), two).await;
    on_a_cluster(&Setup::guide(Duration::from_millis(300)), parts, async |bed| {
        let turnstile: &Arc<WriteInterceptor> = shared.get().context("no turnstile")?;
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(&version(2)).await?;
        bed.sees(reached((2, 10))).await?;

        // The next one is that to 50/50.
        turnstile.hold_next_write("inferencemodelrewrites/");
        let held = tokio::time::timeout(Duration::from_secs(20), turnstile.wait_held()).await??;
        ensure!(held.method == "PUT" && !held.path.ends_with("/status"), "held was {held}");
        let old = leader(bed).await?;
        old.freeze();
        bed.sees_within(PATIENCE, over(2)).await?;
        ensure!(holder(bed).await?.as_deref() != Some(old.pod()), "the old leader still holds the Lease");

        // 50/50 arrives when v2 has everything.
        let status = turnstile.release_held().await?;
        ensure!(status == 409, "the API server answered the late write with {status}");
        old.thaw();
        bed.keeps_seeing(Duration::from_secs(1), over(2)).await?;
        // The next rollout is the new leader's alone.
        bed.list(&version(3)).await?;
        ends(bed, 3).await?;
        let record = bed.clients_saw_nothing_wrong().await?;
        never_backwards(&record)?;
        every_step_once(&record, 2..=3)
    });
}

async fn leader(bed: &Bed<Cluster>) -> Result<ContainerHandle> {
    let holder = holder(bed).await?.context("nobody holds the Lease")?;
    let operators = bed.place.operators();
    let found = operators.into_iter().find(|operator| operator.pod() == holder);
    found.with_context(|| format!("{holder} is no operator"))
}
