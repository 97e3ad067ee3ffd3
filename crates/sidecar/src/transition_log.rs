//! What a person reads in the log: one line for each transition, nothing while all is well.

use crate::state::CallKind;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};
use tracing::{debug, info, warn};

/// Says what has changed from `old` to `new`.
pub(crate) fn log_transitions(old: &SidecarStatus, new: &SidecarStatus) {
    if old.server != new.server {
        if let Some(server) = &new.server {
            info!(endpoint = %server.endpoint, started = %server.start, "vLLM answers");
        } else {
            warn!(reason = %new.readiness.reason, "vLLM is away: {}", new.readiness.message);
        }
    } else if let (None, Some(problem)) = (&new.server, &new.problem)
        && old.problem.as_ref().is_none_or(|before| before.reason != problem.reason)
    {
        warn!(reason = %problem.reason, "vLLM is waited for, and asked several times a second: {}", problem.message);
    }
    if old.readiness.ready != new.readiness.ready {
        let (reason, message) = (&new.readiness.reason, &new.readiness.message);
        if new.readiness.ready {
            info!(%reason, "ready: {message}");
        } else {
            warn!(%reason, "not ready: {message}");
        }
    }
    if let Some(problem) = new.problem.as_ref().filter(|_| old.problem != new.problem && new.server.is_some()) {
        warn!(reason = %problem.reason, "{}", problem.message);
    }
    for adapter in &new.adapters {
        // Both are sorted by id; going through all of them for each would take a millisecond at a thousand adapters.
        let before = old.adapters.binary_search_by(|before| before.id.cmp(&adapter.id)).ok();
        let before = before.and_then(|index| old.adapters.get(index));
        let same_state = before.is_some_and(|before| before.state == adapter.state);
        let same_words = before.is_some_and(|before| before.last_error == adapter.last_error);
        // A next attempt that fails in the same words is no news: the status counts them.
        if !(same_words && (same_state || adapter.state == AdapterState::Failed)) {
            log_adapter_transition(before.map(|before| before.state), adapter);
        }
    }
}

/// Says which calls are not waited for any longer.
pub(crate) fn log_abandoned_calls<'a>(calls: impl Iterator<Item = (&'a AdapterId, CallKind)>) {
    for (id, kind) in calls {
        warn!(adapter = %id, call = kind.name(), "not waited for any longer: vLLM may still finish it, and the next start looks first");
    }
}

fn log_adapter_transition(before: Option<AdapterState>, adapter: &AdapterStatus) {
    let (id, source) = (&adapter.id, adapter.source.as_deref().unwrap_or("unknown"));
    let words = adapter.last_error.as_ref().map_or("", |problem| problem.message.as_str());
    match adapter.state {
        AdapterState::Failed => {
            let next = adapter.next_try.map(|next| next.to_string());
            let next = next.as_deref().unwrap_or("when something changes");
            warn!(adapter = %id, source, attempts = adapter.attempts, next_try = next, "failed: {words}");
        }
        AdapterState::ServerDied | AdapterState::Quarantined | AdapterState::SourceChanged => {
            warn!(adapter = %id, source, "{words}");
        }
        AdapterState::InBothLists => {
            warn!(adapter = %id, "in both lists: it is left as it is until one of the two entries is removed");
        }
        AdapterState::SourceRefused => warn!(adapter = %id, source, "neither fetched nor loaded: {words}"),
        AdapterState::Fetching => info!(adapter = %id, source, "fetched before it is loaded"),
        AdapterState::Loading => info!(adapter = %id, source, "vLLM is asked to load it"),
        AdapterState::Verified => info!(adapter = %id, source, "verified: it answers"),
        AdapterState::Gone if before.is_some() => info!(adapter = %id, "unloaded"),
        AdapterState::Unloading => info!(adapter = %id, "unwanted: unloaded when it is idle"),
        AdapterState::UnloadHeld => info!(adapter = %id, "unwanted, kept while it serves"),
        AdapterState::Rejected => info!(adapter = %id, "rejected by the operator: not loaded"),
        AdapterState::AwaitingAdmission => info!(adapter = %id, "waits until the operator admits it"),
        AdapterState::Gone | AdapterState::Pending | AdapterState::Loaded | AdapterState::Unlisted => {
            debug!(adapter = %id, source, state = ?adapter.state, "changed");
        }
    }
}
