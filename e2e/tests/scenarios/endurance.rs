//! Many rollouts with continuous clients. In each of them a part fails at a random moment, and in some of them a person
//! aborts or promotes fully.
//!
//! A run is ten consecutive rollouts in one environment; its seed determines what fails, when, for how long, and what
//! the person does. Several runs are executed in parallel. `ROLLORA_ROLLOUTS` sets the number of rollouts in the long
//! schedule (default: 1,000 on one machine and 100 on a cluster), `ROLLORA_FIRST_SEED` the first seed (default: 0).

use crate::step_faults::{FaultTarget, options_with_own_control_plane, set_short_lease};
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

/// Number of rollouts in one environment.
const ROLLOUTS_PER_RUN: usize = 10;

/// An environment with the faults that it can suffer.
trait InjectFault: Environment {
    /// Makes a random part fail and come back; returns what it was.
    async fn inject_fault(harness: &mut Harness<Self>, random: &mut StdRng) -> Result<&'static str>;
}

impl InjectFault for LocalEnvironment {
    async fn inject_fault(harness: &mut Harness<Self>, random: &mut StdRng) -> Result<&'static str> {
        let away = Duration::from_millis(random.random_range(0..300));
        if random.random_bool(0.5) {
            harness.kill_operator();
            tokio::time::sleep(away).await;
            harness.start_operator().await?;
            Ok("rollora local")
        } else {
            let index = random.random_range(0..harness.environment.servers().len());
            harness.kill_server(index);
            // The simulator would be back before the gateway could notice; vLLM takes much longer to start.
            harness.wait_for(server_not_ready(index)).await?;
            tokio::time::sleep(away).await;
            harness.start_server(index).await?;
            Ok("server")
        }
    }
}

/// Holds if the gateway sends no more requests to this server.
fn server_not_ready(index: usize) -> WaitCondition {
    WaitCondition::new(format!("server {index} is not ready"), move |snapshot| {
        snapshot.servers.get(index).is_some_and(|server| !server.ready)
    })
}

impl InjectFault for ClusterEnvironment {
    async fn inject_fault(harness: &mut Harness<Self>, random: &mut StdRng) -> Result<&'static str> {
        let away = Duration::from_millis(random.random_range(0..1500));
        let (target, words) = match random.random_range(0..11) {
            // An environment has an API server of its own only in the long schedule.
            3..6 if !long_tests_enabled() => (FaultTarget::Operator, "operator"),
            0..3 => (FaultTarget::Operator, "operator"),
            3..5 => (FaultTarget::FrozenApiServer, "frozen API server"),
            5 => (FaultTarget::ApiServer, "API server"),
            6..8 => (FaultTarget::ExtProc(random.random_range(0..2)), "ext-proc"),
            8..10 => (FaultTarget::Server(random.random_range(0..3)), "server"),
            _ => (FaultTarget::Sidecar(random.random_range(0..3)), "sidecar"),
        };
        target.inject(harness, away).await?;
        Ok(words)
    }
}

/// The result of one run.
struct RunResult {
    verdict: TrafficVerdict,
    retries: usize,
    faults: Vec<&'static str>,
    user_actions: Vec<&'static str>,
}

const ABORT: &str = "abort";

/// In one of four rollouts a person aborts or promotes fully. Whether the command has an effect depends on the progress
/// of the rollout and on the current fault.
async fn maybe_user_action<E: Environment>(harness: &Harness<E>, random: &mut StdRng) -> Result<Option<&'static str>> {
    let (what, command) = match random.random_range(0..8) {
        0 => (ABORT, [ABORT].as_slice()),
        1 => ("promote --full", ["promote", "--full"].as_slice()),
        _ => return Ok(None),
    };
    tokio::time::sleep(Duration::from_millis(random.random_range(0..800))).await;
    harness.environment.run_cli(command).await?;
    Ok(Some(what))
}

/// Runs consecutive rollouts; during each of them one or two parts fail.
async fn run_chain<E: InjectFault>(harness: &mut Harness<E>, seed: u64, rollouts: usize) -> Result<RunResult> {
    let mut random = StdRng::seed_from_u64(seed);
    harness.wait_for_within(ROLLOUT_TIMEOUT, v1_serving()).await?;
    harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(15)));
    let (mut retries, mut faults, mut user_actions) = (0, Vec::new(), Vec::new());
    for number in 2..2 + rollouts {
        harness.list_adapter(&adapter_id(number)).await?;
        user_actions.extend(maybe_user_action(harness, &mut random).await?);
        for _ in 0..random.random_range(1..=2) {
            tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
            faults.push(E::inject_fault(harness, &mut random).await?);
        }
        retries += wait_for_rollout(harness, number).await?;
        harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(number).and(all_servers_ready())).await?;
    }
    let record = harness.stop_clients_and_verify().await?;
    if !user_actions.contains(&ABORT) {
        check_never_backwards(&record)?;
    }
    Ok(RunResult { verdict: record.verdict(), retries, faults, user_actions })
}

fn v1_serving() -> WaitCondition {
    served_by(MODEL, &adapter_id(1)).and(loaded_everywhere(&adapter_id(1))).and(all_servers_ready())
}

/// Number of rollouts, number of parallel runs, and the first seed.
struct RunPlan {
    rollouts: usize,
    parallel_runs: usize,
    first_seed: u64,
}

impl RunPlan {
    fn from_env(long_rollouts: usize, parallel_runs: usize) -> Self {
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
        if long_tests_enabled() {
            let rollouts = number("ROLLORA_ROLLOUTS").unwrap_or(long_rollouts);
            let first_seed = number("ROLLORA_FIRST_SEED").unwrap_or(0) as u64;
            Self { rollouts, parallel_runs, first_seed }
        } else {
            Self { rollouts: 2, parallel_runs: 1, first_seed: 1 }
        }
    }
}

/// The sums over all runs.
#[derive(Default)]
struct EnduranceTotals {
    requests: VerdictSum,
    rollouts: usize,
    faults: usize,
    user_actions: usize,
    retries: usize,
}

/// Runs one run per seed; a failed run fails the test after all runs have ended.
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
                    let result = run(seed, rollouts);
                    print_line(&format!(
                        "{what}, seed {seed}: {rollouts} rollouts, {} faults ({}), user actions ({}), {} retries: {}",
                        result.faults.len(),
                        format_counts(&result.faults),
                        format_counts(&result.user_actions),
                        result.retries,
                        result.verdict
                    ));
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.requests.add(result.verdict);
                    sum.rollouts += rollouts;
                    sum.faults += result.faults.len();
                    sum.user_actions += result.user_actions.len();
                    sum.retries += result.retries;
                }
            });
        }
    });
    let EnduranceTotals { requests, rollouts, faults, user_actions, retries } =
        sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    print_line(&format!(
        "{what}: {rollouts} rollouts, {faults} faults, {user_actions} user actions, {retries} retries"
    ));
    requests.print(what);
}

fn format_counts(faults: &[&'static str]) -> String {
    let mut counts = std::collections::BTreeMap::<_, usize>::new();
    for what in faults {
        *counts.entry(*what).or_default() += 1;
    }
    counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
}

fn setup() -> Setup {
    Setup::guide(Duration::from_millis(150))
}

#[test]
fn many_local_rollouts_survive_random_faults() {
    run_all("on one machine", &RunPlan::from_env(1000, 4), |seed, rollouts| {
        let mut result = None;
        run_on::<LocalEnvironment>(&setup(), async |harness| {
            result =
                Some(run_chain(harness, seed, rollouts).await.map_err(|error| error.context(format!("seed {seed}")))?);
            Ok(())
        });
        result.unwrap_or_else(|| unreachable!("a run that fails ends its thread"))
    });
}

#[test]
fn many_cluster_rollouts_survive_random_faults() {
    if !cluster_tools_available("many rollouts on a cluster") {
        return;
    }
    run_all("on a cluster", &RunPlan::from_env(100, 2), |seed, rollouts| {
        let options = async || {
            if long_tests_enabled() {
                options_with_own_control_plane().await
            } else {
                Ok(ClusterOptions { patch_manifests: Box::new(set_short_lease), ..ClusterOptions::default() })
            }
        };
        let mut result = None;
        run_on_cluster(&setup(), options, async |harness| {
            result =
                Some(run_chain(harness, seed, rollouts).await.map_err(|error| error.context(format!("seed {seed}")))?);
            Ok(())
        });
        result.unwrap_or_else(|| unreachable!("a run that fails ends its thread"))
    });
}
