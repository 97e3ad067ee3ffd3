//! The operator dies after any of its writes to the API server, and the rollout ends as if it had not.
//!
//! Its requests go through a turnstile in front of the real API server, which counts what is written: status, rewrite,
//! ConfigMap, Rollout and events, everything but the renewals of its Lease. Exactly when the API server has taken the n-th
//! write of a rollout, and before the operator is told, it gets SIGKILL.

use crate::{
    chain::{PATIENCE, ends, every_step_once, outcome, over, version},
    numbers::say,
    steps::{Kept, behind_a_turnstile},
};
use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use rollora_e2e::{
    bed::{Bed, Setup},
    cluster::Cluster,
    scenario::{has_a_cluster, long, on_a_cluster},
    traffic::Crowd,
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
fn killed_after_any_of_its_writes_the_operator_comes_to_the_same_end() {
    if !has_a_cluster("the operator is killed after its writes") {
        return;
    }
    let shared = Kept::default();
    let parts = async || behind_a_turnstile(Arc::clone(&shared), |_| Ok(())).await;
    on_a_cluster(&Setup::guide(Duration::from_millis(200)), parts, async |bed| {
        let turnstile: &Arc<WriteInterceptor> = shared.get().context("no turnstile")?;
        bed.sees_baseline().await?;
        bed.clients_start(&Crowd::mixed(MODEL, Duration::from_millis(20)));

        // Undisturbed: so many writes there are, and so it ends.
        turnstile.clear_writes();
        bed.list(&version(2)).await?;
        let seen = bed.sees_within(PATIENCE, over(2)).await?;
        let (writes, expected) = (turnstile.writes(), outcome(&seen, 2)?);
        ensure!(writes.len() >= 10, "a whole rollout with so few writes? {writes:?}");

        let mut points: Vec<usize> = (1..=writes.len()).collect();
        if !long() {
            points.shuffle(&mut StdRng::seed_from_u64(SEED));
            points.truncate(5);
        }
        let (mut last, mut killed) = (2, 0);
        for point in points {
            last += 1;
            if killed_after(bed, turnstile, point, last).await? {
                killed += 1;
            }
            let seen = bed.sees_within(PATIENCE, over(last)).await?;
            let came_to = outcome(&seen, last)?;
            ensure!(came_to == expected, "killed after write {point} it came to\n{came_to}, not to\n{expected}");
        }
        let record = bed.clients_saw_nothing_wrong().await?;
        every_step_once(&record, 2..=last)?;
        // How many writes a rollout has varies a little: the last ones may not be reached.
        ensure!(killed + 3 >= last - 2, "only {killed} of {} kills happened", last - 2);
        say(&format!(
            "the operator killed after a write: {killed} of {} rollouts (a rollout has {} writes), seed {SEED}: {}",
            last - 2,
            writes.len(),
            record.verdict()
        ));
        Ok(())
    });
}

/// Lists a version, kills the operator after so many writes, and starts it again. Whether there were so many.
async fn killed_after(
    bed: &mut Bed<Cluster>,
    turnstile: &WriteInterceptor,
    point: usize,
    number: usize,
) -> Result<bool> {
    let was_killed = Arc::new(AtomicBool::new(false));
    let operators = bed.place.operators();
    turnstile.after_write(point, {
        let was_killed = Arc::clone(&was_killed);
        move || {
            operators.iter().for_each(rollora_testbed::kubelet::ContainerHandle::kill_and_hold);
            was_killed.store(true, Ordering::SeqCst);
        }
    });
    bed.list(&version(number)).await?;
    let killed = Arc::clone(&was_killed);
    let is_over = over(number);
    let either = rollora_e2e::seen::Condition::new(
        format!("the operator was killed after write {point} of the rollout of v{number}, or that is over"),
        move |seen| killed.load(Ordering::SeqCst) || is_over.holds(seen),
    );
    let seen = bed.sees_within(PATIENCE, either).await;
    let reached = turnstile.hook_has_run();
    seen?;
    if reached {
        let away = StdRng::seed_from_u64(point as u64).random_range(0..300);
        tokio::time::sleep(Duration::from_millis(away)).await;
        bed.start_operator().await?;
    }
    ends(bed, number).await?;
    Ok(reached)
}
