//! The operator is killed after any of its writes to the API server, and the rollout reaches the same end state.
//!
//! Its requests go through a write interceptor in front of the real API server, which counts all writes (statuses,
//! rewrites, ConfigMaps, Rollouts and events) except the renewals of its Lease. The operator gets SIGKILL after the API
//! server has applied the n-th write of a rollout and before the operator receives the response.

use crate::{
    rollout_chain::{
        ROLLOUT_TIMEOUT, adapter_id, check_every_step_once, rollout_finished, status_summary, wait_for_rollout,
    },
    run_stats::print_line,
    step_faults::{InterceptorSlot, options_with_write_interceptor},
};
use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use rollora_e2e::{
    cluster::ClusterEnvironment,
    harness::{Harness, Setup},
    scenario::{cluster_tools_available, long_tests_enabled, run_on_cluster},
    traffic::LoadProfile,
};
use rollora_testbed::{guide::MODEL, write_interceptor::WriteInterceptor};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

const SEED: u64 = 11;

#[test]
fn operator_kill_after_any_write_keeps_the_outcome() {
    if !cluster_tools_available("the operator is killed after its writes") {
        return;
    }
    let shared = InterceptorSlot::default();
    let options = async || options_with_write_interceptor(Arc::clone(&shared), |_| Ok(())).await;
    run_on_cluster(&Setup::guide(Duration::from_millis(200)), options, async |harness| {
        let interceptor: &Arc<WriteInterceptor> = shared.get().context("no write interceptor")?;
        harness.wait_for_baseline().await?;
        harness.start_clients(&LoadProfile::mixed(MODEL, Duration::from_millis(20)));

        // The first rollout is undisturbed: it determines the number of writes and the expected end state.
        interceptor.clear_writes();
        harness.list_adapter(&adapter_id(2)).await?;
        let snapshot = harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(2)).await?;
        let (writes, expected) = (interceptor.writes(), status_summary(&snapshot, 2)?);
        ensure!(writes.len() >= 10, "a whole rollout has only these writes: {writes:?}");

        let mut points: Vec<usize> = (1..=writes.len()).collect();
        if !long_tests_enabled() {
            points.shuffle(&mut StdRng::seed_from_u64(SEED));
            points.truncate(5);
        }
        let (mut last, mut killed) = (2, 0);
        for point in points {
            last += 1;
            if kill_after_write(harness, interceptor, point, last).await? {
                killed += 1;
            }
            let snapshot = harness.wait_for_within(ROLLOUT_TIMEOUT, rollout_finished(last)).await?;
            let summary = status_summary(&snapshot, last)?;
            ensure!(summary == expected, "killed after write {point} it came to\n{summary}, not to\n{expected}");
        }
        let record = harness.stop_clients_and_verify().await?;
        check_every_step_once(&record, 2..=last)?;
        // The number of writes per rollout varies a little: the last points may not be reached.
        ensure!(killed + 3 >= last - 2, "only {killed} of {} kills happened", last - 2);
        print_line(&format!(
            "the operator killed after a write: {killed} of {} rollouts (a rollout has {} writes), seed {SEED}: {}",
            last - 2,
            writes.len(),
            record.verdict()
        ));
        Ok(())
    });
}

/// Lists a version, kills the operator after its n-th write, and starts it again. Returns whether there were that many
/// writes.
async fn kill_after_write(
    harness: &mut Harness<ClusterEnvironment>,
    interceptor: &WriteInterceptor,
    point: usize,
    number: usize,
) -> Result<bool> {
    let was_killed = Arc::new(AtomicBool::new(false));
    let operators = harness.environment.operators();
    interceptor.after_write(point, {
        let was_killed = Arc::clone(&was_killed);
        move || {
            operators.iter().for_each(rollora_testbed::kubelet::ContainerHandle::kill_and_hold);
            was_killed.store(true, Ordering::SeqCst);
        }
    });
    harness.list_adapter(&adapter_id(number)).await?;
    let killed = Arc::clone(&was_killed);
    let is_finished = rollout_finished(number);
    let either = rollora_e2e::conditions::WaitCondition::new(
        format!("the operator was killed after write {point} of the rollout of v{number}, or the rollout finished"),
        move |snapshot| killed.load(Ordering::SeqCst) || is_finished.holds(snapshot),
    );
    let snapshot = harness.wait_for_within(ROLLOUT_TIMEOUT, either).await;
    let reached = interceptor.hook_has_run();
    snapshot?;
    if reached {
        let away = StdRng::seed_from_u64(point as u64).random_range(0..300);
        tokio::time::sleep(Duration::from_millis(away)).await;
        harness.start_operator().await?;
    }
    wait_for_rollout(harness, number).await?;
    Ok(reached)
}
