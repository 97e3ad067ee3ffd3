//! Whether requests may be sent to the server. Pure.
//!
//! Not ready from the moment the server goes away until what it had is back. Once a process of the server was ready, a
//! new adapter takes nothing back: what is not resident yet gets no weight, and everything else is served as before.

use crate::{
    decide::PATIENCE,
    memory::{Adapter, CallKind, Memory, Server},
    source::is_hub_name,
    wish::Goal,
};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ADAPTERS_NOT_VERIFIED, ReadinessStatus, SUSPECT},
};

/// Whether the server is ready, and why.
pub fn readiness(memory: &Memory, now: Timestamp) -> ReadinessStatus {
    match &memory.server {
        Server::Away { problem: None } => return ReadinessStatus::default(),
        Server::Away { problem: Some(problem) } => return not(&problem.reason, problem.message.clone()),
        Server::Suspect { reason } => {
            return not(SUSPECT, format!("{reason}; it is being asked whether it still is the same server"));
        }
        Server::Up => {}
    }
    let Some(known) = &memory.known else { return ReadinessStatus::default() };
    if let Some(id) = blocked_by_hub(memory, now) {
        return not(
            "HubLoadBlocksServer",
            format!("vLLM downloads adapter `{id}` from the hub inside its engine and may answer nothing meanwhile"),
        );
    }
    if known.was_ready {
        return ready("every request can be sent here");
    }
    let needed = names(memory, |adapter| {
        let wish = adapter.wish.as_ref();
        wish.is_some_and(|wish| wish.serving || wish.required)
            && adapter.wants_loading()
            && !proven_enough(memory, adapter)
    });
    if !needed.is_empty() {
        return not(ADAPTERS_NOT_VERIFIED, format!("not verified yet, and serving or required: {needed}"));
    }
    if now >= known.since + memory.policy.settle_timeout {
        return ready("the time to settle is over");
    }
    if memory.config.is_none() {
        return not("NoAdaptersFile", "no good adapters file has been read yet".to_owned());
    }
    let unsettled = names(memory, |adapter| adapter.goal() == Goal::Resident && !settled(memory, adapter));
    if unsettled.is_empty() {
        ready("every adapter has been dealt with")
    } else {
        not("Settling", format!("not dealt with yet: {unsettled}"))
    }
}

/// A probe that got no answer is undecided: it holds nothing up. Where nobody probes, registration counts as proof.
fn proven_enough(memory: &Memory, adapter: &Adapter) -> bool {
    let verified = adapter.verified || !memory.policy.probe;
    adapter.registered.is_some() && (verified || adapter.undecided > 0 || adapter.source_changed())
}

/// Whether an adapter that nobody depends on yet needs no more waiting for: it is there, or it failed and was never
/// there before.
fn settled(memory: &Memory, adapter: &Adapter) -> bool {
    let failed = adapter.attempts > 0 || adapter.fetch.attempts > 0 || adapter.hold.is_some();
    let in_vain = adapter.needs_person || adapter.fetch.needs_person || adapter.refused().is_some();
    proven_enough(memory, adapter) || in_vain || (failed && !adapter.is_proven())
}

/// A hub download that takes longer than a load from a disk does.
fn blocked_by_hub(memory: &Memory, now: Timestamp) -> Option<&AdapterId> {
    let blocking = |call: &crate::memory::InFlight| {
        call.kind == CallKind::Load && is_hub_name(&call.source) && now >= call.since + PATIENCE
    };
    let under_way = memory.in_flight().find(|(_, _, call)| blocking(call)).map(|(id, _, _)| id);
    // Nobody waits for the answer any more, and the engine does as before.
    under_way.or_else(|| memory.hung_on.as_ref().filter(|id| memory.adapters.contains_key(*id)))
}

/// The names of the adapters that are chosen: at most five.
fn names(memory: &Memory, choose: impl Fn(&Adapter) -> bool) -> String {
    let chosen: Vec<_> =
        memory.adapters.iter().filter(|(_, adapter)| choose(adapter)).map(|(id, _)| id.as_str()).collect();
    let (shown, more) = chosen.split_at(chosen.len().min(5));
    let shown = shown.join(", ");
    if more.is_empty() { shown } else { format!("{shown} and {} more", more.len()) }
}

fn ready(message: &str) -> ReadinessStatus {
    ReadinessStatus { ready: true, reason: "Ready".to_owned(), message: message.to_owned() }
}

fn not(reason: &str, message: String) -> ReadinessStatus {
    ReadinessStatus { ready: false, reason: reason.to_owned(), message }
}

#[cfg(test)]
mod tests;
