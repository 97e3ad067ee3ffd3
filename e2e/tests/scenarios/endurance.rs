//! Many rollouts, each with something that dies at a random moment, in some of them with a person who aborts or wants it all
//! at once, clients sending without pause.
//!
//! A run is ten rollouts one after the other on one bed; its seed says what dies, when, for how long, and who acts. Several runs go
//! on side by side. `ROLLORA_ROLLOUTS` says how many rollouts there are in the long schedule (1,000 on one machine and 100
//! on a cluster where it says nothing), `ROLLORA_FIRST_SEED` where the seeds begin.

use crate::step_faults::{FaultTarget, parts_with_own_control_plane, set_short_lease};
use crate::{
    rollout_chain::{ROLLOUT_TIMEOUT, adapter_id, check_never_backwards, rollout_finished, wait_for_rollout},
    run_stats::{VerdictSum, print_line},
};
use anyhow::Result;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rollora_e2e::{
    cluster::{ClusterEnvironment, ClusterOptions},
    scenario::{cluster_tools_available, run_on_cluster},
};
use rollora_e2e::{
    conditions::{WaitCondition, all_servers_ready, loaded_everywhere, served_by},
    harness::{Environment, Harness, Setup},
    local::LocalEnvironment,
    oracle::TrafficVerdict,
    scenario::{long_tests_enabled, run_on},
    traffic::LoadProfile,
};
use rollora_testbed::guide::MODEL;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

/// How many rollouts one bed sees.
const ROLLOUTS_PER_RUN: usize = 10;

/// What a place can suffer.
trait InjectFault: Environment {
    /// Something of it dies, and comes back; what, in words.
    async fn inject_fault(bed: &mut Harness<Self>, random: &mut StdRng) -> Result<&'static str>;
}

impl InjectFault for LocalEnvironment {
    async fn inject_fault(bed: &mut Harness<Self>, random: &mut StdRng) -> Result<&'static str> {
        let away = Duration::from_millis(random.random_range(0..300));
        if random.random_bool(0.5) {
            bed.kill_operator();
            tokio::time::sleep(away).await;
            bed.start_operator().await?;
            Ok("rollora local")
        } else {
            let index = random.random_range(0..bed.environment.servers().len());
            bed.kill_server(index);
            // The simulator would be back before anybody could notice; vLLM takes much longer to start.
            bed.wait_for(server_not_ready(index)).await?;
            tokio::time::sleep(away).await;
            bed.start_server(index).await?;
            Ok("server")
        }
    }
}

/// No more requests are sent to this server.
fn server_not_ready(index: usize) -> WaitCondition {
    WaitCondition::new(format!("server {index} is known to be dead"), move |seen| {
        seen.servers.get(index).is_some_and(|server| !server.ready)
    })
}

impl InjectFault for ClusterEnvironment {
    async fn inject_fault(bed: &mut Harness<Self>, random: &mut StdRng) -> Result<&'static str> {
        let away = Duration::from_millis(random.random_range(0..1500));
        let (victim, words) = match random.random_range(0..11) {
            // Only in the long schedule does a bed have an API server of its own.
            3..6 if !long_tests_enabled() => (FaultTarget::Operator, "operator"),
            0..3 => (FaultTarget::Operator, "operator"),
            3..5 => (FaultTarget::FrozenApiServer, "API server stands still"),
            5 => (FaultTarget::ApiServer, "API server"),
            6..8 => (FaultTarget::ExtProc(random.random_range(0..2)), "ext-proc"),
            8..10 => (FaultTarget::Server(random.random_range(0..3)), "server"),
            _ => (FaultTarget::Sidecar(random.random_range(0..3)), "sidecar"),
        };
        victim.inject(bed, away).await?;
        Ok(words)
    }
}

/// What a run came to.
struct RunResult {
    verdict: TrafficVerdict,
    retries: usize,
    faults: Vec<&'static str>,
    user_actions: Vec<&'static str>,
}

const ABORT: &str = "abort";

/// In one of four rollouts a person wants something else than the steps. Whether that is done depends on how far the
/// rollout is, and on who is dead.
async fn maybe_user_action<P: Environment>(bed: &Harness<P>, random: &mut StdRng) -> Result<Option<&'static str>> {
    let (what, command) = match random.random_range(0..8) {
        0 => (ABORT, [ABORT].as_slice()),
        1 => ("promote --full", ["promote", "--full"].as_slice()),
        _ => return Ok(None),
    };
    tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
    bed.environment.run_cli(command).await?;
    Ok(Some(what))
}

/// So many rollouts one after the other; while each goes on, something dies once or twice.
async fn run_chain<P: InjectFault>(bed: &mut Harness<P>, seed: u64, rollouts: usize) -> Result<RunResult> {
    let mut random = StdRng::seed_from_u64(seed);
    bed.wait_for_within(ROLLOUT_TIMEOUT, v1_serving()).await?;
    bed.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(15)));
    let (mut retries, mut died, mut acts) = (0, Vec::new(), Vec::new());
    for number in 2..2 + rollouts {
        bed.list_adapter(&adapter_id(number)).await?;
        acts.extend(maybe_user_action(bed, &mut random).await?);
        for _ in 0..random.random_range(1..=2) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            died.push(P::inject_fault(bed, &mut random).await?);
        }
        retries += wait_for_rollout(bed, number).await?;
        bed.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(number).and(all_servers_ready())).await?;
    }
    let record = bed.stop_clients_and_verify().await?;
    if !acts.contains(&ABORT) {
        check_never_backwards(&record)?;
    }
    Ok(RunResult { verdict: record.verdict(), retries, faults: died, user_actions: acts })
}

fn v1_serving() -> WaitCondition {
    served_by(MODEL, &adapter_id(1)).and(loaded_everywhere(&adapter_id(1))).and(all_servers_ready())
}

/// How many rollouts, how many runs at a time, and where seeds begin.
struct RunPlan {
    rollouts: usize,
    parallel_runs: usize,
    first_seed: u64,
}

impl RunPlan {
    fn from_env(in_the_long_schedule: usize, side_by_side: usize) -> Self {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        if long_tests_enabled() {
            let rollouts = number("ROLLORA_ROLLOUTS").unwrap_or(in_the_long_schedule);
            let first_seed = number("ROLLORA_FIRST_SEED").unwrap_or(0) as u64;
            Self { rollouts, parallel_runs: side_by_side, first_seed }
        } else {
            Self { rollouts: 2, parallel_runs: 1, first_seed: 1 }
        }
    }
}

/// What all runs came to.
#[derive(Default)]
struct EnduranceTotals {
    requests: VerdictSum,
    rollouts: usize,
    faults: usize,
    user_actions: usize,
    retries: usize,
}

/// Runs one run for each seed; a run that fails fails the test, when all have ended.
fn run_all(what: &str, plan: &RunPlan, run: impl Fn(u64, usize) -> RunResult + Sync) {
    let (next, sum) = (AtomicUsize::new(0), Mutex::new(EnduranceTotals::default()));
    thread::scope(|scope| {
        for _ in 0..plan.parallel_runs {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let rollouts = plan.rollouts.saturating_sub(index * ROLLOUTS_PER_RUN).min(ROLLOUTS_PER_RUN);
                    if rollouts == 0 {
                        return;
                    }
                    let seed = plan.first_seed + index as u64;
                    let ran = run(seed, rollouts);
                    print_line(&format!(
                        "{what}, seed {seed}: {rollouts} rollouts, {} deaths ({}), acts ({}), {} retries: {}",
                        ran.faults.len(),
                        format_counts(&ran.faults),
                        format_counts(&ran.user_actions),
                        ran.retries,
                        ran.verdict
                    ));
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.requests.add(ran.verdict);
                    sum.rollouts += rollouts;
                    sum.faults += ran.faults.len();
                    sum.user_actions += ran.user_actions.len();
                    sum.retries += ran.retries;
                }
            });
        }
    });
    let EnduranceTotals { requests, rollouts, faults: deaths, user_actions: acts, retries } =
        sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    print_line(&format!("{what}: {rollouts} rollouts, {deaths} deaths, {acts} acts of a person, {retries} retries"));
    requests.print(what);
}

fn format_counts(died: &[&'static str]) -> String {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for what in died {
        *counts.entry(*what).or_default() += 1;
    }
    counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}

fn setup() -> Setup {
    Setup::guide(Duration::from_millis(150))
}

#[test]
fn many_rollouts_on_one_machine_with_something_dying_in_each() {
    run_all("on one machine", &RunPlan::from_env(1000, 4), |seed, rollouts| {
        let mut ran = None;
        run_on::<LocalEnvironment>(&setup(), async |bed| {
            ran = Some(run_chain(bed, seed, rollouts).await.map_err(|error| error.context(format!("seed {seed}")))?);
            Ok(())
        });
        ran.unwrap_or_else(|| unreachable!("a run that fails ends its thread"))
    });
}

#[test]
fn many_rollouts_on_a_cluster_with_something_dying_in_each() {
    if !cluster_tools_available("many rollouts on a cluster") {
        return;
    }
    run_all("on a cluster", &RunPlan::from_env(100, 2), |seed, rollouts| {
        let parts = async || {
            if long_tests_enabled() {
                parts_with_own_control_plane().await
            } else {
                Ok(ClusterOptions { patch_manifests: Box::new(set_short_lease), ..ClusterOptions::default() })
            }
        };
        let mut ran = None;
        run_on_cluster(&setup(), parts, async |bed| {
            ran = Some(run_chain(bed, seed, rollouts).await.map_err(|error| error.context(format!("seed {seed}")))?);
            Ok(())
        });
        ran.unwrap_or_else(|| unreachable!("a run that fails ends its thread"))
    });
}
