//! Two operators reconcile simultaneously, or an operator continues that should have stopped: weights never go
//! backwards, and the rollout reaches the same end state.

use crate::{
    rollout_chain::{
        ROLLOUT_TIMEOUT, adapter_id, check_every_step_once, check_never_backwards, rollout_finished, routers_reached,
        status_summary, wait_for_rollout,
    },
    run_stats::print_line,
    step_faults::{InterceptorSlot, options_with_write_interceptor, set_short_lease},
};
use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use rand::{SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::WaitCondition,
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, long_tests_enabled, run_on_cluster},
    traffic::LoadProfile,
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

/// Adds a second operator with a Lease of its own, so that both consider themselves the leader.
fn add_rival_operator(objects: &mut Manifests) -> Result<()> {
    set_short_lease(objects)?;
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

fn leases_api(harness: &Harness<ClusterEnvironment>) -> Api<Lease> {
    Api::namespaced(harness.environment.client(), harness.environment.namespace())
}

/// Returns the holder of the operator's Lease.
async fn lease_holder(harness: &Harness<ClusterEnvironment>) -> Result<Option<String>> {
    let lease = leases_api(harness).get_opt(OPERATOR).await?;
    Ok(lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity))
}

/// Fails unless each of the two operators holds its Lease.
async fn check_both_lead(harness: &Harness<ClusterEnvironment>) -> Result<()> {
    for name in [OPERATOR, RIVAL] {
        let held = leases_api(harness).get(name).await?.spec.and_then(|spec| spec.holder_identity);
        ensure!(held.as_ref().is_some_and(|holder| holder.starts_with(name)), "{name} is held by {held:?}");
    }
    Ok(())
}

#[test]
fn two_leaders_never_move_weights_backwards() {
    if !cluster_tools_available("two operators work at once") {
        return;
    }
    let options =
        async || Ok(ClusterOptions { patch_manifests: Box::new(add_rival_operator), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(200)), options, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        let last = if long_tests_enabled() { 21 } else { 4 };
        for number in 2..=last {
            check_both_lead(harness).await?;
            harness.list_adapter(&adapter_id(number)).await?;
            ensure!(wait_for_rollout(harness, number).await? == 0, "a rollout was rejected, and nothing died");
        }
        let record = harness.stop_clients_and_verify().await?;
        check_every_step_once(&record, 2..=last)?;
        print_line(&format!("two operators at once: {} rollouts: {}", last - 1, record.verdict()));
        Ok(())
    });
}

/// What happens to the Lease of the leading operator.
#[derive(Debug, Clone, Copy)]
enum LeaseFault {
    Deleted,
    /// Another identity takes it, and never renews it.
    Stolen,
}

impl LeaseFault {
    async fn inject(self, harness: &Harness<ClusterEnvironment>) -> Result<()> {
        match self {
            Self::Deleted => drop(leases_api(harness).delete(OPERATOR, &DeleteParams::default()).await?),
            Self::Stolen => {
                let spec = json!({ "spec": { "holderIdentity": "another-identity", "leaseDurationSeconds": 2 } });
                leases_api(harness).patch(OPERATOR, &PatchParams::default(), &Patch::Merge(spec)).await?;
                // The operator notices the new holder and exits.
                let operator = harness.environment.operators().pop().context("there is no operator")?;
                let before = operator.restarts();
                harness
                    .wait_for(WaitCondition::new("the operator has left", {
                        let operator = operator.clone();
                        move |_| !operator.is_running() || operator.restarts() > before
                    }))
                    .await?;
                let why = operator.log_tail(40);
                ensure!(why.contains("was taken by another-identity"), "the log does not name the new holder:\n{why}");
                // A kubelet's backoff would grow each time, so the exited operator is released immediately.
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
fn deleted_or_stolen_lease_does_not_change_the_outcome() {
    if !cluster_tools_available("the Lease of the operator is deleted or stolen") {
        return;
    }
    let weights = [0, 10, 50, 100];
    let mut random = StdRng::seed_from_u64(SEED);
    let mut schedule = Vec::new();
    for fault in [LeaseFault::Deleted, LeaseFault::Stolen] {
        if long_tests_enabled() {
            schedule.extend(weights.map(|weight| (fault, weight)));
        } else {
            schedule.extend(weights.choose(&mut random).map(|weight| (fault, *weight)));
        }
    }
    let options =
        async || Ok(ClusterOptions { patch_manifests: Box::new(set_short_lease), ..ClusterOptions::default() });
    run_on_cluster(&Setup::guide(Duration::from_millis(300)), options, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(&adapter_id(2)).await?;
        let expected = status_summary(&harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(2)).await?, 2)?;
        let mut last = 2;
        for (fault, weight) in schedule {
            last += 1;
            harness.list_adapter(&adapter_id(last)).await?;
            if weight > 0 {
                harness.wait_for(routers_reached((last, weight))).await?;
            }
            fault.inject(harness).await?;
            wait_for_rollout(harness, last).await?;
            let summary =
                status_summary(&harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(last)).await?, last)?;
            ensure!(summary == expected, "{fault:?} at {weight}: it came to\n{summary}, not to\n{expected}");
        }
        check_every_step_once(&harness.stop_clients_and_verify().await?, 2..=last)
    });
}

/// The old leader is frozen with a write of the rewrite in flight, the other replica takes over and continues, then the
/// write arrives and the old leader is thawed.
#[test]
fn late_write_of_a_former_leader_is_refused() {
    if !cluster_tools_available("a write of an old leader arrives late") {
        return;
    }
    let two = |objects: &mut Manifests| {
        objects.object_mut("Deployment", OPERATOR)?["spec"]["replicas"] = json!(2);
        Ok(())
    };
    let shared = InterceptorSlot::default();
    let options = async || options_with_write_interceptor(Arc::clone(&shared), two).await;
    run_on_cluster(&Setup::guide(Duration::from_millis(300)), options, async |harness| {
        let interceptor: &Arc<WriteInterceptor> = shared.get().context("no write interceptor")?;
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(&adapter_id(2)).await?;
        harness.wait_for(routers_reached((2, 10))).await?;

        // The next write of the rewrite is the one for 50/50.
        interceptor.hold_next_write("inferencemodelrewrites/");
        let held = tokio::time::timeout(Duration::from_secs(20), interceptor.wait_held()).await??;
        ensure!(held.method == "PUT" && !held.path.ends_with("/status"), "held was {held}");
        let old = find_leader(harness).await?;
        old.freeze();
        harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(2)).await?;
        ensure!(lease_holder(harness).await?.as_deref() != Some(old.pod()), "the old leader still holds the Lease");

        // The write for 50/50 arrives when v2 has full weight.
        let status = interceptor.release_held().await?;
        ensure!(status == 409, "the API server answered the late write with {status}");
        old.thaw();
        harness.assert_holds_for(Duration::from_secs(1), rollout_finished(2)).await?;
        // The new leader alone performs the next rollout.
        harness.list_adapter(&adapter_id(3)).await?;
        wait_for_rollout(harness, 3).await?;
        let record = harness.stop_clients_and_verify().await?;
        check_never_backwards(&record)?;
        check_every_step_once(&record, 2..=3)
    });
}

async fn find_leader(harness: &Harness<ClusterEnvironment>) -> Result<ContainerHandle> {
    let holder = lease_holder(harness).await?.context("the Lease has no holder")?;
    let operators = harness.environment.operators();
    let found = operators.into_iter().find(|operator| operator.pod() == holder);
    found.with_context(|| format!("{holder} is no operator"))
}
