//! Each part fails at each step of a rollout: the API server, a replica of ext-proc, a sidecar, a server, the operator.
//! Weights never go backwards, the rollout reaches the same end state, and the only failed requests are those in flight
//! at the killed process.

use crate::{
    rollout_chain::{
        ROLLOUT_TIMEOUT, adapter_id, check_never_backwards, rollout_finished, routers_reached, status_summary,
        wait_for_rollout,
    },
    run_stats::print_line,
};
use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    conditions::all_servers_ready,
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, long_tests_enabled, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{
    control_plane::{ControlPlane, rollora_crds, upstream_crds},
    guide::MODEL,
    kubelet::RestartBackoff,
    manifests::Manifests,
    manifests::push_value,
    write_interceptor::WriteInterceptor,
};
use serde_json::json;
use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

const SEED: u64 = 5;

/// The part that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultTarget {
    ApiServer,
    /// It accepts connections and answers none.
    FrozenApiServer,
    ExtProc(usize),
    Sidecar(usize),
    Server(usize),
    Operator,
}

impl FaultTarget {
    pub(crate) async fn inject(self, harness: &mut Harness<ClusterEnvironment>, away: Duration) -> Result<()> {
        match self {
            Self::ApiServer => harness.kill_api_server(away).await,
            Self::FrozenApiServer => harness.freeze_api_server(away).await,
            Self::ExtProc(index) => harness.kill_ext_proc(index, away).await,
            Self::Sidecar(index) => harness.kill_sidecar(index, away).await,
            Self::Server(index) => harness.kill_vllm(index, away).await,
            Self::Operator => {
                harness.kill_operator();
                tokio::time::sleep(away).await;
                harness.start_operator().await
            }
        }
    }
}

/// The progress of the rollout at which the part fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultPoint {
    /// The version is listed, and one server starts to try it.
    Listed,
    AtTenPercent,
    AtHalf,
    /// The old version is about to be cleaned up.
    AtFull,
}

const FAULT_POINTS: [FaultPoint; 4] =
    [FaultPoint::Listed, FaultPoint::AtTenPercent, FaultPoint::AtHalf, FaultPoint::AtFull];

impl fmt::Display for FaultPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listed => "once it is listed",
            Self::AtTenPercent => "at 90/10",
            Self::AtHalf => "at 50/50",
            Self::AtFull => "at 0/100",
        })
    }
}

impl FaultPoint {
    async fn wait(self, harness: &Harness<ClusterEnvironment>, number: usize) -> Result<()> {
        let weight = match self {
            Self::Listed => return Ok(()),
            Self::AtTenPercent => 10,
            Self::AtHalf => 50,
            Self::AtFull => 100,
        };
        harness.wait_for(routers_reached((number, weight))).await.map(drop)
    }
}

/// Sets the operator's Lease duration to two seconds.
pub(crate) fn set_short_lease(objects: &mut Manifests) -> Result<()> {
    let operator = objects.object_mut("Deployment", "rollora-operator")?;
    push_value(&mut operator["spec"]["template"]["spec"]["containers"][0]["args"], json!("--lease-duration=2s"))
}

/// The write interceptor of an environment, once its options are built.
pub(crate) type InterceptorSlot = Arc<OnceLock<Arc<WriteInterceptor>>>;

/// Returns options for the shared control plane with an operator that has a Lease duration of two seconds and writes
/// through an interceptor, which is put into `slot`; `change` applies further changes to the manifests.
pub(crate) async fn options_with_write_interceptor(
    slot: InterceptorSlot,
    change: impl Fn(&mut Manifests) -> Result<()> + Send + Sync + 'static,
) -> Result<ClusterOptions> {
    let interceptor = Arc::new(WriteInterceptor::start(ControlPlane::shared().await?).await?);
    slot.set(Arc::clone(&interceptor)).ok();
    let change = move |objects: &mut Manifests| {
        set_short_lease(objects)?;
        change(objects)?;
        interceptor.route_through(objects, "rollora-operator")
    };
    Ok(ClusterOptions { patch_manifests: Box::new(change), ..ClusterOptions::default() })
}

/// Returns options with a control plane of their own, an operator with a Lease duration of two seconds, and a kubelet
/// that restarts it soon each time it has lost its Lease: waiting for the backoff would be most of a scenario.
pub(crate) async fn options_with_own_control_plane() -> Result<ClusterOptions> {
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
    let backoff = RestartBackoff { initial: Duration::from_millis(500), max: Duration::from_secs(1) };
    Ok(ClusterOptions {
        control_plane: Some(plane),
        backoff,
        patch_manifests: Box::new(set_short_lease),
        ..ClusterOptions::default()
    })
}

#[test]
fn any_fault_at_any_step_leads_to_the_same_end_state() {
    if !cluster_tools_available("each part dies at each step") {
        return;
    }
    let mut random = StdRng::seed_from_u64(SEED);
    let mut schedule = Vec::new();
    for target in [
        FaultTarget::ApiServer,
        FaultTarget::ExtProc(1),
        FaultTarget::Sidecar(1),
        FaultTarget::Server(1),
        FaultTarget::Operator,
    ] {
        if long_tests_enabled() {
            schedule.extend(FAULT_POINTS.map(|step| (target, step)));
        } else {
            schedule.extend(FAULT_POINTS.choose(&mut random).map(|step| (target, *step)));
        }
    }
    run_on_cluster(&Setup::guide(Duration::from_millis(400)), options_with_own_control_plane, async |harness| {
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));
        harness.list_adapter(&adapter_id(2)).await?;
        let expected = status_summary(&harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(2)).await?, 2)?;
        let mut number = 2;
        for (target, step) in schedule {
            number += 1;
            harness.list_adapter(&adapter_id(number)).await?;
            step.wait(harness, number).await?;
            target.inject(harness, Duration::from_millis(random.random_range(50..600))).await?;
            let retries = wait_for_rollout(harness, number).await?;
            let snapshot =
                harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(number).and(all_servers_ready())).await?;
            let summary = status_summary(&snapshot, number)?;
            ensure!(summary == expected, "{target:?} {step}: it came to\n{summary}, not to\n{expected}");
            if long_tests_enabled() {
                print_line(&format!("{target:?} died {step} of v{number}: it came to the same end, {retries} retries"));
            }
        }
        let record = harness.stop_clients_and_verify().await?;
        check_never_backwards(&record)?;
        print_line(&format!("{} deaths, each at a step of a rollout, seed {SEED}: {}", number - 2, record.verdict()));
        Ok(())
    });
}
