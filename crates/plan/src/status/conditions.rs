//! The conditions of a Rollout. A condition whose inputs could not be observed stays as it was.

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

/// The status, reason and message of one condition.
type ConditionValue = (ConditionStatus, &'static str, String);

/// Writes every condition of the status.
pub(super) fn set_all(writer: &StatusWriter<'_>, status: &mut RolloutStatus) {
    let conditions = [
        (condition_type::READY, ready(writer, status)),
        (condition_type::AVAILABLE, available(writer, status)),
        (condition_type::PROGRESSING, Some(progressing(writer, status))),
        (condition_type::ADAPTER_RESIDENT, adapter_resident(writer, status)),
        (condition_type::TRAFFIC_APPLIED, traffic_applied(writer, status)),
        (condition_type::CLEANED_UP, Some(cleaned_up(writer, status))),
        (condition_type::ADAPTERS_FIT, adapters_fit(writer, status)),
        (condition_type::STALLED, Some(stalled(writer, status))),
    ];
    for (kind, value) in conditions {
        let Some((condition_status, reason, message)) = value else { continue };
        set_condition(
            &mut status.conditions,
            Condition {
                type_: kind.to_owned(),
                status: condition_status,
                reason: reason.to_owned(),
                message,
                last_transition_time: writer.context.now,
                observed_generation: writer.context.rollout.metadata.generation,
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

/// Returns the reason and message of the main wait; `Progressing` without a message if there is none.
fn primary_wait(writer: &StatusWriter<'_>) -> (&'static str, String) {
    writer.waits.first().map_or((reason::PROGRESSING, String::new()), |wait| (wait.reason, wait.message.clone()))
}

fn has_succeeded(status: &RolloutStatus) -> bool {
    rejection(status).is_none() && status.step.as_ref().is_some_and(|step| step.state == StepState::Done)
}

fn ready(writer: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    if let Some(why) = rejection(status) {
        return Some(condition_false(reason::ADAPTER_REJECTED, why));
    }
    if !has_succeeded(status) {
        let (why, message) = primary_wait(writer);
        return Some(condition_false(why, message));
    }
    if let Some(other) = &writer.proof.shadowed_by {
        return Some(condition_false(reason::SHADOWED_BY, shadowed_message(other)));
    }
    let servers = writer.context.servers()?;
    let desired = status.revision.desired.as_ref()?;
    Some(match unserved(&writer.context.spec.pool_ref, servers, [desired]) {
        None => condition_true(reason::SUCCEEDED, format!("{desired} serves all requests")),
        Some(missing) => missing,
    })
}

fn available(writer: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    let servers = writer.context.servers()?;
    let weighted: Vec<&AdapterId> = status.weights.desired.iter().map(|target| &target.id).collect();
    if weighted.is_empty() && status.revision.stable.is_none() {
        return Some(condition_false(reason::PROGRESSING, "nothing serves the model name yet"));
    }
    let served = if weighted.is_empty() { status.revision.stable.iter().collect() } else { weighted };
    Some(
        unserved(&writer.context.spec.pool_ref, servers, served)
            .unwrap_or_else(|| condition_true(reason::SUCCEEDED, "servers serve the model name")),
    )
}

/// Returns why one of these ids cannot be served; `None` if all can be.
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

fn progressing(writer: &StatusWriter<'_>, status: &RolloutStatus) -> ConditionValue {
    let done = status.step.as_ref().is_none_or(|step| step.state == StepState::Done);
    match (rejection(status), done) {
        (Some(why), true) => condition_false(reason::ROLLED_BACK, why),
        (None, true) if status.step.is_some() => condition_false(reason::SUCCEEDED, String::new()),
        (None, true) => {
            condition_false(reason::NO_MATCH, writer.waits.first().map(|wait| wait.message.clone()).unwrap_or_default())
        }
        (_, false) => {
            let (why, message) = primary_wait(writer);
            condition_true(why, message)
        }
    }
}

fn adapter_resident(writer: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    let servers = writer.context.servers()?;
    if let Some(missing) =
        unserved(&writer.context.spec.pool_ref, servers, status.weights.desired.iter().map(|target| &target.id))
    {
        return Some(missing);
    }
    let gate = writer.gate?;
    let desired = status.revision.desired.as_ref()?;
    if rejection(status).is_none() && !has_succeeded(status) && !gate.is_open() {
        if residency::could_serve(desired, servers) {
            // Every server has the adapter, but has not confirmed it since the file changed: nothing is known to
            // differ.
            return None;
        }
        return Some(condition_false(reason::NOT_RESIDENT, text::list(&gate.missing)));
    }
    let id = if rejection(status).is_some() { status.revision.stable.as_ref().unwrap_or(desired) } else { desired };
    Some(condition_true(reason::SUCCEEDED, format!("{id} is resident on every Ready server")))
}

fn traffic_applied(writer: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    if status.weights.desired.is_empty() {
        return Some(condition_false(reason::PROGRESSING, "no weights have been written yet"));
    }
    if writer.context.observed.routers.is_err()
        && writer.proof.wait.as_ref().is_some_and(|wait| wait.reason == reason::UNAVAILABLE)
    {
        return None;
    }
    Some(match &writer.proof.wait {
        None => condition_true(reason::SUCCEEDED, "every router applies the weights"),
        Some(wait) => condition_false(wait.reason, wait.message.clone()),
    })
}

fn cleaned_up(writer: &StatusWriter<'_>, status: &RolloutStatus) -> ConditionValue {
    if is_clean(status) {
        return condition_true(reason::CLEAN, "nothing is left to clean up");
    }
    let message: Vec<&str> = writer.retirement_waits.iter().map(|wait| wait.message.as_str()).collect();
    let why = writer.retirement_waits.first().map_or(reason::DRAINING, |wait| wait.reason);
    condition_false(why, message.join("; "))
}

/// Compares the adapters in use with the slots of vLLM; `None` while no server reports `max_loras`.
fn adapters_fit(writer: &StatusWriter<'_>, status: &RolloutStatus) -> Option<ConditionValue> {
    let directives = &writer.context.adapters()?.directives;
    let ours: Vec<&AdapterId> = status.revision.stable.iter().chain(&status.revision.desired).collect();
    match capacity::evaluate(directives, writer.context.servers()?, &ours) {
        Capacity::Unknown => None,
        Capacity::Fits { slots } => Some(condition_true(
            reason::FITS,
            format!("all adapters in use fit: each server has room for at least {slots}"),
        )),
        Capacity::TooSmall(message) => Some(condition_false(reason::TOO_FEW_SLOTS, message)),
    }
}

fn stalled(writer: &StatusWriter<'_>, status: &RolloutStatus) -> ConditionValue {
    // A refused write comes first: it keeps the other states from being applied.
    if let Some(why) = &writer.context.observed.write_refusal {
        return condition_true(reason::WRITE_REFUSED, why);
    }
    if let Some(why) = rejection(status) {
        return condition_true(reason::ADAPTER_REJECTED, why);
    }
    if writer.context.contested_until(status).is_some() {
        return condition_true(reason::CONTESTED, "another writer keeps editing the rewrite");
    }
    let stuck = writer.waits.first().filter(|wait| {
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
        None if status.retired.iter().any(|entry| entry.state == RetirementState::Suggested) => condition_false(
            reason::SUGGESTED,
            "an edit of the adapters file is left to a person: see the condition CleanedUp",
        ),
        None => condition_false(reason::PROGRESSING, String::new()),
    }
}
