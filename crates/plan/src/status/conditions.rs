//! The conditions of a Rollout. What could not be observed leaves a condition as it was.

use super::{StatusWriter, is_clean, rejection};
use crate::{
    capacity::{self, Capacity},
    residency,
    routers::shadowed_message,
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
type ConditionValue = (ConditionStatus, &'static str, String);

/// Writes all of them.
pub(super) fn set_all(report: &StatusWriter<'_>, status: &mut RolloutStatus) {
    let said = [
        (condition_type::READY, ready(report, status)),
        (condition_type::AVAILABLE, available(report, status)),
        (condition_type::PROGRESSING, Some(progressing(report, status))),
        (condition_type::ADAPTER_RESIDENT, adapter_resident(report, status)),
        (condition_type::TRAFFIC_APPLIED, traffic_applied(report, status)),
        (condition_type::CLEANED_UP, Some(cleaned_up(report, status))),
        (condition_type::ADAPTERS_FIT, adapters_fit(report, status)),
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
                last_transition_time: report.context.now,
                observed_generation: report.context.rollout.metadata.generation,
            },
        );
    }
}

fn condition_true(reason: &'static str, message: impl Into<String>) -> ConditionValue {
    (ConditionStatus::True, reason, message.into())
}

fn condition_false(reason: &'static str, message: impl Into<String>) -> ConditionValue {
    (ConditionStatus::False, reason, message.into())
}

/// The first thing that is waited for, or that nothing is known.
fn primary_wait(report: &StatusWriter<'_>) -> (&'static str, String) {
    report.waits.first().map_or((reason::PROGRESSING, String::new()), |wait| (wait.reason, wait.message.clone()))
}

fn has_succeeded(status: &RolloutStatus) -> bool {
    rejection(status).is_none() && status.step.as_ref().is_some_and(|step| step.state == StepState::Done)
}

fn ready(report: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    if let Some(why) = rejection(status) {
        return Some(condition_false(reason::ADAPTER_REJECTED, why));
    }
    if !has_succeeded(status) {
        let (why, message) = primary_wait(report);
        return Some(condition_false(why, message));
    }
    if let Some(other) = &report.proof.shadowed_by {
        return Some(condition_false(reason::SHADOWED_BY, shadowed_message(other)));
    }
    let servers = report.context.servers()?;
    let desired = status.revision.desired.as_ref()?;
    Some(match unserved(&report.context.spec.pool_ref, servers, [desired]) {
        None => condition_true(reason::SUCCEEDED, format!("{desired} serves all requests")),
        Some(missing) => missing,
    })
}

fn available(report: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    let servers = report.context.servers()?;
    let weighted: Vec<&AdapterId> = status.weights.desired.iter().map(|target| &target.id).collect();
    if weighted.is_empty() && status.revision.stable.is_none() {
        return Some(condition_false(reason::PROGRESSING, "nothing serves the name yet"));
    }
    let served = if weighted.is_empty() { status.revision.stable.iter().collect() } else { weighted };
    Some(
        unserved(&report.context.spec.pool_ref, servers, served)
            .unwrap_or_else(|| condition_true(reason::SUCCEEDED, "the name is served")),
    )
}

/// Why one of these ids cannot be served, where one cannot.
pub(super) fn unserved<'a>(
    pool: &PoolRef,
    servers: &[crate::observed::ObservedServer],
    ids: impl IntoIterator<Item = &'a AdapterId>,
) -> Option<ConditionValue> {
    if !servers.iter().any(|server| server.ready) {
        return Some(condition_false(reason::NO_READY_PODS, text::no_ready_servers(pool)));
    }
    ids.into_iter().find_map(|id| {
        let lacking = residency::servers_lacking(id, servers);
        let names: Vec<&str> = lacking.iter().map(|server| server.name.as_str()).collect();
        let lack = if names.len() == 1 { "lacks" } else { "lack" };
        (!names.is_empty())
            .then(|| condition_false(reason::NOT_RESIDENT, format!("{} {lack} {id}", text::list(&names))))
    })
}

fn progressing(report: &StatusWriter<'_>, status: &RolloutStatus) -> ConditionValue {
    let done = status.step.as_ref().is_none_or(|step| step.state == StepState::Done);
    match (rejection(status), done) {
        (Some(why), true) => condition_false(reason::ROLLED_BACK, why),
        (None, true) if status.step.is_some() => condition_false(reason::SUCCEEDED, String::new()),
        (None, true) => {
            condition_false(reason::NO_MATCH, report.waits.first().map(|wait| wait.message.clone()).unwrap_or_default())
        }
        (_, false) => {
            let (why, message) = primary_wait(report);
            condition_true(why, message)
        }
    }
}

fn adapter_resident(report: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    let servers = report.context.servers()?;
    if let Some(missing) =
        unserved(&report.context.spec.pool_ref, servers, status.weights.desired.iter().map(|target| &target.id))
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
        return Some(condition_false(reason::NOT_RESIDENT, text::list(&gate.missing)));
    }
    let id = if rejection(status).is_some() { status.revision.stable.as_ref().unwrap_or(desired) } else { desired };
    Some(condition_true(reason::SUCCEEDED, format!("{id} is resident on every Ready server")))
}

fn traffic_applied(report: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    if status.weights.desired.is_empty() {
        return Some(condition_false(reason::PROGRESSING, "no weights were given yet"));
    }
    if report.context.observed.routers.is_err()
        && report.proof.wait.as_ref().is_some_and(|wait| wait.reason == reason::UNAVAILABLE)
    {
        return None;
    }
    Some(match &report.proof.wait {
        None => condition_true(reason::SUCCEEDED, "every router has the weights"),
        Some(wait) => condition_false(wait.reason, wait.message.clone()),
    })
}

fn cleaned_up(report: &StatusWriter<'_>, status: &RolloutStatus) -> ConditionValue {
    if is_clean(status) {
        return condition_true(reason::CLEAN, "nothing is left to clean up");
    }
    let message: Vec<&str> = report.retirement_waits.iter().map(|wait| wait.message.as_str()).collect();
    let why = report.retirement_waits.first().map_or(reason::DRAINING, |wait| wait.reason);
    condition_false(why, message.join("; "))
}

/// Whether vLLM can hold what is in use; nothing is said while no server tells.
fn adapters_fit(report: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    let key = &report.context.adapters()?.directives;
    let ours: Vec<&AdapterId> = status.revision.stable.iter().chain(&status.revision.desired).collect();
    match capacity::evaluate(key, report.context.servers()?, &ours) {
        Capacity::Unknown => None,
        Capacity::Fits { slots } => Some(condition_true(
            reason::FITS,
            format!("all adapters in use fit: each server has room for {slots} at least"),
        )),
        Capacity::TooSmall(words) => Some(condition_false(reason::TOO_FEW_SLOTS, words)),
    }
}

fn stalled(report: &StatusWriter<'_>, status: &RolloutStatus) -> ConditionValue {
    // First what keeps this very status from coming true.
    if let Some(why) = &report.context.observed.write_refusal {
        return condition_true(reason::WRITE_REFUSED, why);
    }
    if let Some(why) = rejection(status) {
        return condition_true(reason::ADAPTER_REJECTED, why);
    }
    if report.context.contested_until(status).is_some() {
        return condition_true(reason::CONTESTED, "somebody else keeps editing the rewrite");
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
        Some(wait) => condition_true(wait.reason, wait.message.clone()),
        None if status.retired.iter().any(|entry| entry.state == RetirementState::Suggested) => {
            condition_false(reason::SUGGESTED, "an edit is left to a person, see CleanedUp")
        }
        None => condition_false(reason::PROGRESSING, String::new()),
    }
}
