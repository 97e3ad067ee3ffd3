//! Rollouts one after the other on one bed, v1 to v2 to v3 and on, and what must be true of each whatever happens
//! meanwhile: weights only ever go forwards, and it ends the same.

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

/// How long one rollout may take, whatever is killed meanwhile, on a machine that does much else.
pub(crate) const ROLLOUT_TIMEOUT: Duration = Duration::from_mins(2);

/// A rollout that takes longer than this says what it waited for.
const SLOW_ROLLOUT: Duration = Duration::from_secs(12);

#[expect(clippy::disallowed_methods, reason = "how long a rollout takes")]
fn now() -> Instant {
    Instant::now()
}

/// The id of a version.
pub(crate) fn adapter_id(number: usize) -> String {
    format!("{MODEL}-v{number}")
}

/// How far a chain is: the highest version that has weight, and how much.
pub(crate) type ChainProgress = (usize, i32);

/// How far a chain is by these weights; nothing where nobody has any.
pub(crate) fn chain_progress(weights: &[(String, i32)]) -> Option<ChainProgress> {
    let number = |id: &str| id.rsplit_once("-v").and_then(|(_, number)| number.parse().ok());
    weights.iter().filter(|(_, weight)| *weight > 0).filter_map(|(id, weight)| Some((number(id)?, *weight))).max()
}

/// Every router is at least so far.
pub(crate) fn routers_reached(wanted: ChainProgress) -> WaitCondition {
    WaitCondition::new(
        format!("every router has come to v{} with {}", wanted.0, wanted.1),
        move |seen: &SystemSnapshot| {
            let far = |report: &rollora_api::router_report::RulesReport| {
                report
                    .models
                    .get(MODEL)
                    .and_then(|rule| chain_progress(&target_weights(rule)))
                    .is_some_and(|it| it >= wanted)
            };
            !seen.routers.is_empty() && seen.routers.iter().all(|report| report.as_ref().is_ok_and(far))
        },
    )
}

/// Everything that the rollout of this version comes to in the end.
pub(crate) fn rollout_finished(number: usize) -> WaitCondition {
    let (old, new) = (adapter_id(number - 1), adapter_id(number));
    let serves = served_by(MODEL, &new).and(loaded_everywhere(&new));
    serves.and(succeeded(&new)).and(cleaned_up(&old)).and(unloaded_everywhere(&old)).and(conditions_settled())
}

/// Every condition says what it says when there is nothing left to do.
fn conditions_settled() -> WaitCondition {
    use rollora_api::condition::condition_type::{
        ADAPTER_RESIDENT, AVAILABLE, CLEANED_UP, PROGRESSING, READY, STALLED, TRAFFIC_APPLIED,
    };
    WaitCondition::new("nothing is left to be done", |seen| {
        let Ok(status) = &seen.status else { return false };
        let is = |kind: &str, wanted: bool| {
            let found = status.conditions.iter().find(|condition| condition.type_ == kind);
            found.is_none_or(|it| (it.status == ConditionStatus::True) == wanted)
        };
        [READY, AVAILABLE, ADAPTER_RESIDENT, TRAFFIC_APPLIED, CLEANED_UP].iter().all(|kind| is(kind, true))
            && [PROGRESSING, STALLED].iter().all(|kind| is(kind, false))
    })
}

/// Waits for the end of the rollout of this version. A server that was killed while it tried the version takes the
/// blame to it, as it must: a person then says `retry`. How often that was said.
pub(crate) async fn wait_for_rollout<P: Environment>(bed: &Harness<P>, number: usize) -> Result<usize> {
    let (new, mut retries) = (adapter_id(number), 0);
    loop {
        let wanted = rollout_finished(number);
        let blamed = {
            let new = new.clone();
            move |seen: &SystemSnapshot| {
                let Ok(status) = &seen.status else { return false };
                let is_rejected = status.rejected.iter().any(|rejected| rejected.id.as_str() == new);
                is_rejected && matches!(status.phase, Phase::RolledBack | Phase::Pending | Phase::Succeeded)
            }
        };
        let is_over = rollout_finished(number);
        let either = WaitCondition::new(format!("{is_over}, or {new} is rejected"), move |seen| {
            is_over.holds(seen) || blamed(seen)
        });
        let (start, mut said) = (now(), Vec::<(Duration, String)>::new());
        let tell = |seen: &SystemSnapshot| {
            let message = seen.status.as_ref().map_or_else(Clone::clone, |status| status.message.clone());
            if said.last().is_none_or(|(_, last)| *last != message) {
                said.push((start.elapsed(), message));
            }
        };
        let seen = bed.wait_for_with(ROLLOUT_TIMEOUT, either, tell).await?;
        if start.elapsed() > SLOW_ROLLOUT {
            let said: Vec<_> = said.iter().map(|(at, message)| format!("\n  after {at:.1?}: {message}")).collect();
            print_line(&format!("the rollout of {new} took {:.1?}, and said{}", start.elapsed(), said.concat()));
        }
        if wanted.holds(&seen) {
            return Ok(retries);
        }
        ensure!(retries < 5, "{new} was rejected again and again");
        retries += 1;
        let said = bed.environment.run_cli(&["retry"]).await?;
        // It may have been taken in meanwhile.
        if said.code != 0 && !said.stderr.contains("nothing") {
            bail!("`rollora retry` ended with {said:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// No router ever went back: neither to an older version, nor to less of the new one.
pub(crate) fn check_never_backwards(record: &TrafficRecord) -> Result<()> {
    for (index, router) in record.routers.iter().enumerate() {
        let came: Vec<_> = router.intervals.iter().filter_map(|spell| chain_progress(&spell.weights)).collect();
        for pair in came.windows(2) {
            ensure!(pair[0] <= pair[1], "router {index} went from {:?} back to {:?}: {came:?}", pair[0], pair[1]);
        }
    }
    Ok(())
}

/// Every router went through every step of the guide's rollouts of these versions, and through nothing else.
pub(crate) fn check_every_step_once(record: &TrafficRecord, versions: std::ops::RangeInclusive<usize>) -> Result<()> {
    let mut expected = vec![(*versions.start() - 1, 100)];
    expected.extend(versions.flat_map(|number| [(number, 10), (number, 50), (number, 100)]));
    for (index, router) in record.routers.iter().enumerate() {
        let mut came: Vec<_> = router.intervals.iter().filter_map(|spell| chain_progress(&spell.weights)).collect();
        came.dedup();
        ensure!(came == expected, "router {index} went through {came:?}, not {expected:?}");
    }
    Ok(())
}

/// What a status comes to, with the version's number taken out: the same for every rollout of a chain.
pub(crate) fn status_summary(seen: &SystemSnapshot, number: usize) -> Result<String> {
    let status = seen.status.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let conditions: Vec<_> =
        status.conditions.iter().map(|it| format!("{}={:?}({})", it.type_, it.status, it.reason)).collect();
    let last = status.history.first().map(|ended| format!("{} {}", ended.id, ended.outcome));
    let retired: Vec<_> = status.retired.iter().filter(|it| it.id.as_str() == adapter_id(number - 1)).collect();
    let retired: Vec<_> = retired.iter().map(|it| format!("{} {:?}", it.id, it.state)).collect();
    let weights: Vec<_> = status.weights.desired.iter().map(|it| format!("{} {}", it.id, it.weight)).collect();
    let listed = seen.parse_adapters_file();
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
    // The longer number first: v1 is the beginning of v10.
    Ok(text.replace(&adapter_id(number), "NEW").replace(&adapter_id(number - 1), "OLD"))
}
