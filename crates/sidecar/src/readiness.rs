//! Decides whether requests may be sent to the server. Pure.
//!
//! The server is unready from the moment it goes down until the adapters that it had are back. Once a server process
//! was ready, a new adapter does not make it unready: an adapter that is not resident yet gets no weight, and all
//! others are served as before.

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

/// Returns whether the server is ready, and why.
pub fn readiness(state: &SidecarState, now: Timestamp) -> ReadinessStatus {
    match &state.health {
        ServerHealth::Down { problem: None } => return ReadinessStatus::default(),
        ServerHealth::Down { problem: Some(problem) } => return not_ready(&problem.reason, problem.message.clone()),
        ServerHealth::Suspect { reason } => {
            return not_ready(SUSPECT, format!("{reason}; checking whether the same server process still answers"));
        }
        ServerHealth::Up => {}
    }
    let Some(process) = &state.process else { return ReadinessStatus::default() };
    if let Some(id) = blocking_hub_load(state, now) {
        return not_ready(
            "HubLoadBlocksServer",
            format!(
                "vLLM downloads adapter `{id}` from the hub inside its engine and may not answer until that is done"
            ),
        );
    }
    if process.was_ready {
        return ready("the server can receive requests");
    }
    let needed = adapter_names(state, |adapter| {
        let spec = adapter.spec.as_ref();
        spec.is_some_and(|spec| spec.serving || spec.required)
            && adapter.wants_loading()
            && !is_verified_enough(state, adapter)
    });
    if !needed.is_empty() {
        let message = format!("adapters that are serving or required are not verified yet: {needed}");
        return not_ready(ADAPTERS_NOT_VERIFIED, message);
    }
    if now >= process.first_seen + state.policy.settle_timeout {
        return ready("the settle timeout is over");
    }
    if state.config.is_none() {
        return not_ready("NoAdaptersFile", "no valid adapters file has been read yet".to_owned());
    }
    let unsettled =
        adapter_names(state, |adapter| adapter.goal() == AdapterGoal::Resident && !is_settled(state, adapter));
    if unsettled.is_empty() {
        ready("every adapter has settled")
    } else {
        not_ready("Settling", format!("adapters that are not settled yet: {unsettled}"))
    }
}

/// A probe without an answer is inconclusive and blocks nothing. With probes disabled, registration counts as verified.
fn is_verified_enough(state: &SidecarState, adapter: &TrackedAdapter) -> bool {
    let verified = adapter.verified || !state.policy.probe_enabled;
    adapter.registered.is_some() && (verified || adapter.inconclusive_probes > 0 || adapter.source_changed())
}

/// Whether readiness no longer waits for an adapter that is neither serving nor required: it is verified, or it failed
/// and was never verified here before.
fn is_settled(state: &SidecarState, adapter: &TrackedAdapter) -> bool {
    let failed = adapter.attempts > 0 || adapter.fetch.attempts > 0 || adapter.crash_hold.is_some();
    let hopeless = adapter.needs_person || adapter.fetch.needs_person || adapter.source_refusal().is_some();
    is_verified_enough(state, adapter) || hopeless || (failed && !adapter.was_verified())
}

/// The adapter of a hub download that takes longer than a load from disk.
fn blocking_hub_load(state: &SidecarState, now: Timestamp) -> Option<&AdapterId> {
    let blocking = |call: &crate::state::InFlightCall| {
        call.kind == CallKind::Load && is_hub_name(&call.source) && now >= call.started_at + SLOW_CALL_THRESHOLD
    };
    let in_flight = state.in_flight().find(|(_, _, call)| blocking(call)).map(|(id, _, _)| id);
    // After a timeout of the load, the engine may still be downloading.
    in_flight.or_else(|| state.hung_hub_load.as_ref().filter(|id| state.adapters.contains_key(*id)))
}

/// Names at most five of the chosen adapters, and counts the rest.
fn adapter_names(state: &SidecarState, choose: impl Fn(&TrackedAdapter) -> bool) -> String {
    let chosen: Vec<_> =
        state.adapters.iter().filter(|(_, adapter)| choose(adapter)).map(|(id, _)| id.as_str()).collect();
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
