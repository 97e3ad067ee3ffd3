//! Each part dies at each step of a rollout: the API server, a replica of ext-proc, a sidecar, a server, the operator.
//! Weights never go back, the rollout ends the same, and no client notices but those whose request was in the hands of
//! what died.

use crate::{
    chain::{PATIENCE, ends, never_backwards, outcome, over, reached, version},
    numbers::say,
};
use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::{Cluster, Parts},
    scenario::{has_a_cluster, long, on_a_cluster},
    seen::every_server_is_ready,
    traffic::Crowd,
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

/// What dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    ApiServer,
    /// It stands still and answers nobody.
    FrozenApiServer,
    ExtProc(usize),
    Sidecar(usize),
    Server(usize),
    Operator,
}

impl Victim {
    pub(crate) async fn dies(self, bed: &mut Bed<Cluster>, away: Duration) -> Result<()> {
        match self {
            Self::ApiServer => bed.kill_api_server(away).await,
            Self::FrozenApiServer => bed.freeze_api_server(away).await,
            Self::ExtProc(index) => bed.kill_ext_proc(index, away).await,
            Self::Sidecar(index) => bed.kill_sidecar(index, away).await,
            Self::Server(index) => bed.kill_vllm(index, away).await,
            Self::Operator => {
                bed.kill_operator();
                tokio::time::sleep(away).await;
                bed.start_operator().await
            }
        }
    }
}

/// When it dies: as soon as the rollout has come so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The version is listed, and one server begins to try it.
    Listed,
    Tenth,
    Half,
    /// The old version is about to be cleaned up.
    Whole,
}

const STEPS: [Step; 4] = [Step::Listed, Step::Tenth, Step::Half, Step::Whole];

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listed => "once it is listed",
            Self::Tenth => "at 90/10",
            Self::Half => "at 50/50",
            Self::Whole => "at 0/100",
        })
    }
}

impl Step {
    async fn comes(self, bed: &Bed<Cluster>, number: usize) -> Result<()> {
        let weight = match self {
            Self::Listed => return Ok(()),
            Self::Tenth => 10,
            Self::Half => 50,
            Self::Whole => 100,
        };
        bed.sees(reached((number, weight))).await.map(drop)
    }
}

/// The operator holds its Lease for two seconds.
pub(crate) fn short_lease(objects: &mut Manifests) -> Result<()> {
    let operator = objects.object_mut("Deployment", "rollora-operator")?;
    push_value(&mut operator["spec"]["template"]["spec"]["containers"][0]["args"], json!("--lease-duration=2s"))
}

/// A turnstile that a bed's parts go through, once they are there.
pub(crate) type Kept = Arc<OnceLock<Arc<WriteInterceptor>>>;

/// The shared control plane with an operator that holds its Lease for two seconds and goes through a turnstile, which is
/// kept; `change` is what else is different.
pub(crate) async fn behind_a_turnstile(
    kept: Kept,
    change: impl Fn(&mut Manifests) -> Result<()> + Send + Sync + 'static,
) -> Result<Parts> {
    let turnstile = Arc::new(WriteInterceptor::start(ControlPlane::shared().await?).await?);
    kept.set(Arc::clone(&turnstile)).ok();
    let change = move |objects: &mut Manifests| {
        short_lease(objects)?;
        change(objects)?;
        turnstile.route_through(objects, "rollora-operator")
    };
    Ok(Parts { change: Box::new(change), ..Parts::default() })
}

/// A control plane of its own, an operator that holds its Lease for two seconds, and a kubelet that starts it again soon
/// each time it has lost it: else waiting for that would be most of a scenario.
pub(crate) async fn own_plane() -> Result<Parts> {
    let plane = ControlPlane::start().await?;
    plane.install_crds(&[rollora_crds()?, upstream_crds()?].concat()).await?;
    let backoff = RestartBackoff { initial: Duration::from_millis(500), max: Duration::from_secs(1) };
    Ok(Parts { plane: Some(plane), backoff, change: Box::new(short_lease), ..Parts::default() })
}

#[test]
fn whatever_dies_at_whatever_step_the_rollout_ends_the_same() {
    if !has_a_cluster("each part dies at each step") {
        return;
    }
    let mut random = StdRng::seed_from_u64(SEED);
    let mut schedule = Vec::new();
    for victim in [Victim::ApiServer, Victim::ExtProc(1), Victim::Sidecar(1), Victim::Server(1), Victim::Operator] {
        if long() {
            schedule.extend(STEPS.map(|step| (victim, step)));
        } else {
            schedule.extend(STEPS.choose(&mut random).map(|step| (victim, *step)));
        }
    }
    on_a_cluster(&Setup::guide(Duration::from_millis(400)), own_plane, async |bed| {
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));
        bed.list(&version(2)).await?;
        let expected = outcome(&bed.sees_within(PATIENCE, over(2)).await?, 2)?;
        let mut number = 2;
        for (victim, step) in schedule {
            number += 1;
            bed.list(&version(number)).await?;
            step.comes(bed, number).await?;
            victim.dies(bed, Duration::from_millis(random.random_range(50..600))).await?;
            let retries = ends(bed, number).await?;
            let seen = bed.sees_within(PATIENCE, over(number).and(every_server_is_ready())).await?;
            let came_to = outcome(&seen, number)?;
            ensure!(came_to == expected, "{victim:?} {step}: it came to\n{came_to}, not to\n{expected}");
            if long() {
                say(&format!("{victim:?} died {step} of v{number}: it came to the same end, {retries} retries"));
            }
        }
        let record = bed.clients_saw_nothing_wrong().await?;
        never_backwards(&record)?;
        say(&format!("{} deaths, each at a step of a rollout, seed {SEED}: {}", number - 2, record.verdict()));
        Ok(())
    });
}
