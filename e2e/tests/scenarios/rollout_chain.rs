//! Consecutive rollouts in one environment, v1 to v2 to v3 and so on, and the invariants of each whatever faults
//! happen: weights only move forwards, and the end state is the same.

use crate::run_stats::print_line;
use anyhow::{Result, bail, ensure};
use rollora_api::{condition::ConditionStatus, rollout::status::Phase};
use rollora_e2e::{
    conditions::{
        SystemSnapshot, WaitCondition, cleaned_up, loaded_everywhere, served_by, succeeded, target_weights,
        unloaded_everywhere,
    },
    harness::{Environment, Harness},
    oracle::TrafficRecord,
};
use rollora_testbed::guide::MODEL;
use std::time::{Duration, Instant};

/// How long one rollout may take on a busy machine, whatever is killed meanwhile.
pub(crate) const ROLLOUT_TIMEOUT: Duration = Duration::from_mins(2);

/// A rollout that takes longer prints the messages of its status.
const SLOW_ROLLOUT: Duration = Duration::from_secs(12);

#[expect(clippy::disallowed_methods, reason = "how long a rollout takes")]
fn now() -> Instant {
    Instant::now()
}

/// Returns the id of the version with this number.
pub(crate) fn adapter_id(number: usize) -> String {
    format!("{MODEL}-v{number}")
}

/// Progress of a chain: the number of the highest version with a weight above 0, and the weight.
pub(crate) type ChainProgress = (usize, i32);

/// Returns the progress that these weights mean; `None` if no version has weight.
pub(crate) fn chain_progress(weights: &[(String, i32)]) -> Option<ChainProgress> {
    let number = |id: &str| id.rsplit_once("-v").and_then(|(_, number)| number.parse().ok());
    weights.iter().filter(|(_, weight)| *weight > 0).filter_map(|(id, weight)| Some((number(id)?, *weight))).max()
}

/// Holds if every router has reached at least this progress.
pub(crate) fn routers_reached(expected: ChainProgress) -> WaitCondition {
    WaitCondition::new(
        format!("every router has reached v{} with {}", expected.0, expected.1),
        move |snapshot: &SystemSnapshot| {
            let reached = |report: &rollora_api::router_report::RulesReport| {
                report
                    .models
                    .get(MODEL)
                    .and_then(|rule| chain_progress(&target_weights(rule)))
                    .is_some_and(|it| it >= expected)
            };
            !snapshot.routers.is_empty() && snapshot.routers.iter().all(|report| report.as_ref().is_ok_and(reached))
        },
    )
}

/// Holds in the end state of this version's rollout.
pub(crate) fn rollout_finished(number: usize) -> WaitCondition {
    let (old, new) = (adapter_id(number - 1), adapter_id(number));
    let serves = served_by(MODEL, &new).and(loaded_everywhere(&new));
    serves.and(succeeded(&new)).and(cleaned_up(&old)).and(unloaded_everywhere(&old)).and(conditions_settled())
}

/// Holds if every condition of the status has its final value.
fn conditions_settled() -> WaitCondition {
    use rollora_api::condition::condition_type::{
        ADAPTER_RESIDENT, AVAILABLE, CLEANED_UP, PROGRESSING, READY, STALLED, TRAFFIC_APPLIED,
    };
    WaitCondition::new("every condition has its final status", |snapshot| {
        let Ok(status) = &snapshot.status else { return false };
        let is = |kind: &str, expected: bool| {
            let found = status.conditions.iter().find(|condition| condition.type_ == kind);
            found.is_none_or(|it| (it.status == ConditionStatus::True) == expected)
        };
        [READY, AVAILABLE, ADAPTER_RESIDENT, TRAFFIC_APPLIED, CLEANED_UP].iter().all(|kind| is(kind, true))
            && [PROGRESSING, STALLED].iter().all(|kind| is(kind, false))
    })
}

/// Waits for the end of this version's rollout, and returns the number of retries. A version is rejected if its pilot
/// server is killed during the trial; a person then requests `retry`.
pub(crate) async fn wait_for_rollout<E: Environment>(harness: &Harness<E>, number: usize) -> Result<usize> {
    let (new, mut retries) = (adapter_id(number), 0);
    loop {
        let finished = rollout_finished(number);
        let was_rejected = {
            let new = new.clone();
            move |snapshot: &SystemSnapshot| {
                let Ok(status) = &snapshot.status else { return false };
                let is_rejected = status.rejected.iter().any(|rejected| rejected.id.as_str() == new);
                is_rejected && matches!(status.phase, Phase::RolledBack | Phase::Pending | Phase::Succeeded)
            }
        };
        let is_finished = rollout_finished(number);
        let either = WaitCondition::new(format!("{is_finished}, or {new} is rejected"), move |snapshot| {
            is_finished.holds(snapshot) || was_rejected(snapshot)
        });
        let (start, mut messages) = (now(), Vec::<(Duration, String)>::new());
        let on_poll = |snapshot: &SystemSnapshot| {
            let message = snapshot.status.as_ref().map_or_else(Clone::clone, |status| status.message.clone());
            if messages.last().is_none_or(|(_, last)| *last != message) {
                messages.push((start.elapsed(), message));
            }
        };
        let snapshot = harness.wait_for_with(ROLLOUT_TIMEOUT, either, on_poll).await?;
        if start.elapsed() > SLOW_ROLLOUT {
            let messages: Vec<_> =
                messages.iter().map(|(at, message)| format!("\n  after {at:.1?}: {message}")).collect();
            print_line(&format!(
                "the rollout of {new} took {:.1?}; its messages:{}",
                start.elapsed(),
                messages.concat()
            ));
        }
        if finished.holds(&snapshot) {
            return Ok(retries);
        }
        ensure!(retries < 5, "{new} was rejected {retries} times");
        retries += 1;
        let output = harness.environment.run_cli(&["retry"]).await?;
        // The operator may have cleared the rejection meanwhile.
        if output.code != 0 && !output.stderr.contains("nothing") {
            bail!("`rollora retry` ended with {output:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Fails if any router went back to an older version, or to less weight of the newer one.
pub(crate) fn check_never_backwards(record: &TrafficRecord) -> Result<()> {
    for (index, router) in record.routers.iter().enumerate() {
        let progress: Vec<_> =
            router.intervals.iter().filter_map(|interval| chain_progress(&interval.weights)).collect();
        for pair in progress.windows(2) {
            ensure!(pair[0] <= pair[1], "router {index} went from {:?} back to {:?}: {progress:?}", pair[0], pair[1]);
        }
    }
    Ok(())
}

/// Fails unless every router went through every step of these versions' rollouts, and through nothing else.
pub(crate) fn check_every_step_once(record: &TrafficRecord, versions: std::ops::RangeInclusive<usize>) -> Result<()> {
    let mut expected = vec![(*versions.start() - 1, 100)];
    expected.extend(versions.flat_map(|number| [(number, 10), (number, 50), (number, 100)]));
    for (index, router) in record.routers.iter().enumerate() {
        let mut progress: Vec<_> =
            router.intervals.iter().filter_map(|interval| chain_progress(&interval.weights)).collect();
        progress.dedup();
        ensure!(progress == expected, "router {index} went through {progress:?}, not {expected:?}");
    }
    Ok(())
}

/// Returns the end state as text without version numbers, which is equal for every rollout of a chain.
pub(crate) fn status_summary(snapshot: &SystemSnapshot, number: usize) -> Result<String> {
    let status = snapshot.status.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let conditions: Vec<_> =
        status.conditions.iter().map(|it| format!("{}={:?}({})", it.type_, it.status, it.reason)).collect();
    let last = status.history.first().map(|ended| format!("{} {}", ended.id, ended.outcome));
    let retired: Vec<_> = status.retired.iter().filter(|it| it.id.as_str() == adapter_id(number - 1)).collect();
    let retired: Vec<_> = retired.iter().map(|it| format!("{} {:?}", it.id, it.state)).collect();
    let weights: Vec<_> = status.weights.desired.iter().map(|it| format!("{} {}", it.id, it.weight)).collect();
    let listed = snapshot.parse_adapters_file();
    let ids = |list: &[rollora_api::adapters::AdapterEntry]| -> Vec<String> {
        list.iter()
            .map(|entry| entry.id.to_string())
            .filter(|id| [adapter_id(number - 1), adapter_id(number)].contains(id))
            .collect()
    };
    let text = format!(
        "{:?}; stable {:?}, desired {:?}; weights {weights:?}; listed {:?}, unlisted {:?}; retired {retired:?}; last \
         {last:?}; {}",
        status.phase,
        status.revision.stable.as_ref().map(ToString::to_string),
        status.revision.desired.as_ref().map(ToString::to_string),
        ids(&listed.ensure_exist),
        ids(&listed.ensure_not_exist),
        conditions.join(" "),
    );
    // The longer id first: v1 is a prefix of v10.
    Ok(text.replace(&adapter_id(number), "NEW").replace(&adapter_id(number - 1), "OLD"))
}
