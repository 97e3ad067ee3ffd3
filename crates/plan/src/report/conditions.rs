//! The conditions of a Rollout. What could not be observed leaves a condition as it was.

use super::{Report, is_clean, rejection};
use crate::{
    capacity::{self, Capacity},
    residency,
    routers::shadowed,
    text,
};
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type, reason, set_condition},
    names::AdapterId,
    rewrite::PoolRef,
    rollout::{
        RolloutStatus,
        status::{RetirementState, StepState},
    },
};

/// One condition: whether it holds, why in a word, why in words.
type Said = (ConditionStatus, &'static str, String);

/// Writes all of them.
pub(super) fn write(report: &Report<'_>, status: &mut RolloutStatus) {
    let said = [
        (condition_type::READY, ready(report, status)),
        (condition_type::AVAILABLE, available(report, status)),
        (condition_type::PROGRESSING, Some(progressing(report, status))),
        (condition_type::ADAPTER_RESIDENT, resident(report, status)),
        (condition_type::TRAFFIC_APPLIED, applied(report, status)),
        (condition_type::CLEANED_UP, Some(cleaned_up(report, status))),
        (condition_type::ADAPTERS_FIT, fits(report, status)),
        (condition_type::STALLED, Some(stalled(report, status))),
    ];
    for (kind, said) in said {
        let Some((holds, reason, message)) = said else { continue };
        set_condition(
            &mut status.conditions,
            Condition {
                type_: kind.to_owned(),
                status: holds,
                reason: reason.to_owned(),
                message,
                last_transition_time: report.case.now,
                observed_generation: report.case.rollout.metadata.generation,
            },
        );
    }
}

fn yes(reason: &'static str, message: impl Into<String>) -> Said {
    (ConditionStatus::True, reason, message.into())
}

fn no(reason: &'static str, message: impl Into<String>) -> Said {
    (ConditionStatus::False, reason, message.into())
}

/// The first thing that is waited for, or that nothing is known.
fn main_wait(report: &Report<'_>) -> (&'static str, String) {
    report.waits.first().map_or((reason::PROGRESSING, String::new()), |wait| (wait.reason, wait.message.clone()))
}

fn has_succeeded(status: &RolloutStatus) -> bool {
    rejection(status).is_none() && status.step.as_ref().is_some_and(|step| step.state == StepState::Done)
}

fn ready(report: &Report<'_>, status: &RolloutStatus) -> Option<Said> {
    if let Some(why) = rejection(status) {
        return Some(no(reason::ADAPTER_REJECTED, why));
    }
    if !has_succeeded(status) {
        let (why, message) = main_wait(report);
        return Some(no(why, message));
    }
    if let Some(other) = &report.proof.shadowed_by {
        return Some(no(reason::SHADOWED_BY, shadowed(other)));
    }
    let servers = report.case.servers()?;
    let desired = status.revision.desired.as_ref()?;
    Some(match unserved(&report.case.spec.pool_ref, servers, [desired]) {
        None => yes(reason::SUCCEEDED, format!("{desired} serves all requests")),
        Some(missing) => missing,
    })
}

fn available(report: &Report<'_>, status: &RolloutStatus) -> Option<Said> {
    let servers = report.case.servers()?;
    let weighted: Vec<&AdapterId> = status.weights.desired.iter().map(|target| &target.id).collect();
    if weighted.is_empty() && status.revision.stable.is_none() {
        return Some(no(reason::PROGRESSING, "nothing serves the name yet"));
    }
    let served = if weighted.is_empty() { status.revision.stable.iter().collect() } else { weighted };
    Some(
        unserved(&report.case.spec.pool_ref, servers, served)
            .unwrap_or_else(|| yes(reason::SUCCEEDED, "the name is served")),
    )
}

/// Why one of these ids cannot be served, where one cannot.
pub(super) fn unserved<'a>(
    pool: &PoolRef,
    servers: &[crate::observed::Server],
    ids: impl IntoIterator<Item = &'a AdapterId>,
) -> Option<Said> {
    if !servers.iter().any(|server| server.ready) {
        return Some(no(reason::NO_READY_PODS, text::none_ready(pool)));
    }
    ids.into_iter().find_map(|id| {
        let lacking = residency::lacking(id, servers);
        let names: Vec<&str> = lacking.iter().map(|server| server.name.as_str()).collect();
        let lack = if names.len() == 1 { "lacks" } else { "lack" };
        (!names.is_empty()).then(|| no(reason::NOT_RESIDENT, format!("{} {lack} {id}", text::list(&names))))
    })
}

fn progressing(report: &Report<'_>, status: &RolloutStatus) -> Said {
    let done = status.step.as_ref().is_none_or(|step| step.state == StepState::Done);
    match (rejection(status), done) {
        (Some(why), true) => no(reason::ROLLED_BACK, why),
        (None, true) if status.step.is_some() => no(reason::SUCCEEDED, String::new()),
        (None, true) => no(reason::NO_MATCH, report.waits.first().map(|wait| wait.message.clone()).unwrap_or_default()),
        (_, false) => {
            let (why, message) = main_wait(report);
            yes(why, message)
        }
    }
}

fn resident(report: &Report<'_>, status: &RolloutStatus) -> Option<Said> {
    let servers = report.case.servers()?;
    if let Some(missing) =
        unserved(&report.case.spec.pool_ref, servers, status.weights.desired.iter().map(|target| &target.id))
    {
        return Some(missing);
    }
    let gate = report.gate?;
    let desired = status.revision.desired.as_ref()?;
    if rejection(status).is_none() && !has_succeeded(status) && !gate.is_open() {
        if residency::could_serve(desired, servers) {
            // Everybody has it, and has not told so since the file was last changed: nothing is known to be different.
            return None;
        }
        return Some(no(reason::NOT_RESIDENT, text::list(&gate.missing)));
    }
    let id = if rejection(status).is_some() { status.revision.stable.as_ref().unwrap_or(desired) } else { desired };
    Some(yes(reason::SUCCEEDED, format!("{id} is resident on every Ready server")))
}

fn applied(report: &Report<'_>, status: &RolloutStatus) -> Option<Said> {
    if status.weights.desired.is_empty() {
        return Some(no(reason::PROGRESSING, "no weights were given yet"));
    }
    if report.case.world.routers.is_err()
        && report.proof.wait.as_ref().is_some_and(|wait| wait.reason == reason::UNAVAILABLE)
    {
        return None;
    }
    Some(match &report.proof.wait {
        None => yes(reason::SUCCEEDED, "every router has the weights"),
        Some(wait) => no(wait.reason, wait.message.clone()),
    })
}

fn cleaned_up(report: &Report<'_>, status: &RolloutStatus) -> Said {
    if is_clean(status) {
        return yes(reason::CLEAN, "nothing is left to clean up");
    }
    let message: Vec<&str> = report.retiring.iter().map(|wait| wait.message.as_str()).collect();
    let why = report.retiring.first().map_or(reason::DRAINING, |wait| wait.reason);
    no(why, message.join("; "))
}

/// Whether vLLM can hold what is in use; nothing is said while no server tells.
fn fits(report: &Report<'_>, status: &RolloutStatus) -> Option<Said> {
    let key = &report.case.adapters()?.key;
    let ours: Vec<&AdapterId> = status.revision.stable.iter().chain(&status.revision.desired).collect();
    match capacity::look(key, report.case.servers()?, &ours) {
        Capacity::Unknown => None,
        Capacity::Fits { slots } => {
            Some(yes(reason::FITS, format!("all adapters in use fit: each server has room for {slots} at least")))
        }
        Capacity::TooSmall(words) => Some(no(reason::TOO_FEW_SLOTS, words)),
    }
}

fn stalled(report: &Report<'_>, status: &RolloutStatus) -> Said {
    // First what keeps this very status from coming true.
    if let Some(why) = &report.case.world.refused {
        return yes(reason::WRITE_REFUSED, why);
    }
    if let Some(why) = rejection(status) {
        return yes(reason::ADAPTER_REJECTED, why);
    }
    if report.case.contest_end(status).is_some() {
        return yes(reason::CONTESTED, "somebody else keeps editing the rewrite");
    }
    let stuck = report.waits.first().filter(|wait| {
        matches!(
            wait.reason,
            reason::DEADLINE_EXCEEDED
                | reason::STABLE_NOT_RESIDENT
                | reason::SHADOWED_BY
                | reason::DOUBLE_REWRITE
                | reason::INVALID
        )
    });
    match stuck {
        Some(wait) => yes(wait.reason, wait.message.clone()),
        None if status.retired.iter().any(|entry| entry.state == RetirementState::Suggested) => {
            no(reason::SUGGESTED, "an edit is left to a person, see CleanedUp")
        }
        None => no(reason::PROGRESSING, String::new()),
    }
}
