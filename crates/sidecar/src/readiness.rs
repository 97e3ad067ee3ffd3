//! Whether requests may be sent to the server. Pure.
//!
//! Not ready from the moment the server goes away until what it had is back. Once a process of the server was ready, a
//! new adapter takes nothing back: what is not resident yet gets no weight, and everything else is served as before.

use crate::{
    decide::SLOW_CALL_THRESHOLD,
    source::is_hub_name,
    spec::AdapterGoal,
    state::{CallKind, ServerHealth, SidecarState, TrackedAdapter},
};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ADAPTERS_NOT_VERIFIED, ReadinessStatus, SUSPECT},
};

/// Whether the server is ready, and why.
pub fn readiness(memory: &SidecarState, now: Timestamp) -> ReadinessStatus {
    match &memory.health {
        ServerHealth::Down { problem: None } => return ReadinessStatus::default(),
        ServerHealth::Down { problem: Some(problem) } => return not_ready(&problem.reason, problem.message.clone()),
        ServerHealth::Suspect { reason } => {
            return not_ready(SUSPECT, format!("{reason}; it is being asked whether it still is the same server"));
        }
        ServerHealth::Up => {}
    }
    let Some(known) = &memory.process else { return ReadinessStatus::default() };
    if let Some(id) = blocking_hub_load(memory, now) {
        return not_ready(
            "HubLoadBlocksServer",
            format!("vLLM downloads adapter `{id}` from the hub inside its engine and may answer nothing meanwhile"),
        );
    }
    if known.was_ready {
        return ready("every request can be sent here");
    }
    let needed = adapter_names(memory, |adapter| {
        let wish = adapter.spec.as_ref();
        wish.is_some_and(|wish| wish.serving || wish.required)
            && adapter.wants_loading()
            && !is_verified_enough(memory, adapter)
    });
    if !needed.is_empty() {
        return not_ready(ADAPTERS_NOT_VERIFIED, format!("not verified yet, and serving or required: {needed}"));
    }
    if now >= known.first_seen + memory.policy.settle_timeout {
        return ready("the time to settle is over");
    }
    if memory.config.is_none() {
        return not_ready("NoAdaptersFile", "no good adapters file has been read yet".to_owned());
    }
    let unsettled =
        adapter_names(memory, |adapter| adapter.goal() == AdapterGoal::Resident && !is_settled(memory, adapter));
    if unsettled.is_empty() {
        ready("every adapter has been dealt with")
    } else {
        not_ready("Settling", format!("not dealt with yet: {unsettled}"))
    }
}

/// A probe that got no answer is undecided: it holds nothing up. Where nobody probes, registration counts as proof.
fn is_verified_enough(memory: &SidecarState, adapter: &TrackedAdapter) -> bool {
    let verified = adapter.verified || !memory.policy.probe_enabled;
    adapter.registered.is_some() && (verified || adapter.inconclusive_probes > 0 || adapter.source_changed())
}

/// Whether an adapter that nobody depends on yet needs no more waiting for: it is there, or it failed and was never
/// there before.
fn is_settled(memory: &SidecarState, adapter: &TrackedAdapter) -> bool {
    let failed = adapter.attempts > 0 || adapter.fetch.attempts > 0 || adapter.crash_hold.is_some();
    let in_vain = adapter.needs_person || adapter.fetch.needs_person || adapter.source_refusal().is_some();
    is_verified_enough(memory, adapter) || in_vain || (failed && !adapter.was_verified())
}

/// A hub download that takes longer than a load from a disk does.
fn blocking_hub_load(memory: &SidecarState, now: Timestamp) -> Option<&AdapterId> {
    let blocking = |call: &crate::state::InFlightCall| {
        call.kind == CallKind::Load && is_hub_name(&call.source) && now >= call.started_at + SLOW_CALL_THRESHOLD
    };
    let under_way = memory.in_flight().find(|(_, _, call)| blocking(call)).map(|(id, _, _)| id);
    // Nobody waits for the answer any more, and the engine does as before.
    under_way.or_else(|| memory.hung_hub_load.as_ref().filter(|id| memory.adapters.contains_key(*id)))
}

/// The names of the adapters that are chosen: at most five.
fn adapter_names(memory: &SidecarState, choose: impl Fn(&TrackedAdapter) -> bool) -> String {
    let chosen: Vec<_> =
        memory.adapters.iter().filter(|(_, adapter)| choose(adapter)).map(|(id, _)| id.as_str()).collect();
    let (shown, more) = chosen.split_at(chosen.len().min(5));
    let shown = shown.join(", ");
    if more.is_empty() { shown } else { format!("{shown} and {} more", more.len()) }
}

fn ready(message: &str) -> ReadinessStatus {
    ReadinessStatus { ready: true, reason: "Ready".to_owned(), message: message.to_owned() }
}

fn not_ready(reason: &str, message: String) -> ReadinessStatus {
    ReadinessStatus { ready: false, reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests;
