//! Logs one line per transition of the status, and nothing while nothing changes.

use crate::state::CallKind;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};
use tracing::{debug, info, warn};

/// Logs what has changed from `old` to `new`.
pub(crate) fn log_transitions(old: &SidecarStatus, new: &SidecarStatus) {
    if old.server != new.server {
        if let Some(server) = &new.server {
            info!(endpoint = %server.endpoint, started = %server.start, "vLLM is up");
        } else {
            warn!(reason = %new.readiness.reason, "vLLM is down: {}", new.readiness.message);
        }
    } else if let (None, Some(problem)) = (&new.server, &new.problem)
        && old.problem.as_ref().is_none_or(|before| before.reason != problem.reason)
    {
        warn!(reason = %problem.reason, "waiting for vLLM, polling several times a second: {}", problem.message);
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
        // Both lists are sorted by id; a linear search for each would take a millisecond with a thousand adapters.
        let before = old.adapters.binary_search_by(|before| before.id.cmp(&adapter.id)).ok();
        let before = before.and_then(|index| old.adapters.get(index));
        let same_state = before.is_some_and(|before| before.state == adapter.state);
        let same_error = before.is_some_and(|before| before.last_error == adapter.last_error);
        // Another attempt that fails with the same error is not logged: the status counts attempts.
        if !(same_error && (same_state || adapter.state == AdapterState::Failed)) {
            log_adapter_transition(before.map(|before| before.state), adapter);
        }
    }
}

/// Logs the calls in flight that a stop does not wait for any longer.
pub(crate) fn log_abandoned_calls<'a>(calls: impl Iterator<Item = (&'a AdapterId, CallKind)>) {
    for (id, kind) in calls {
        warn!(
            adapter = %id,
            call = kind.name(),
            "call abandoned at shutdown: vLLM may still finish it, the next start reads the model list first"
        );
    }
}

fn log_adapter_transition(before: Option<AdapterState>, adapter: &AdapterStatus) {
    let (id, source) = (&adapter.id, adapter.source.as_deref().unwrap_or("unknown"));
    let message = adapter.last_error.as_ref().map_or("", |problem| problem.message.as_str());
    match adapter.state {
        AdapterState::Failed => {
            let next = adapter.next_try.map(|next| next.to_string());
            let next = next.as_deref().unwrap_or("when something changes");
            warn!(adapter = %id, source, attempts = adapter.attempts, next_try = next, "failed: {message}");
        }
        AdapterState::ServerDied | AdapterState::Quarantined | AdapterState::SourceChanged => {
            warn!(adapter = %id, source, "{message}");
        }
        AdapterState::InBothLists => {
            warn!(adapter = %id, "in both ensureExist and ensureNotExist: left as it is until one entry is removed");
        }
        AdapterState::SourceRefused => warn!(adapter = %id, source, "neither fetched nor loaded: {message}"),
        AdapterState::Fetching => info!(adapter = %id, source, "fetching from the hub"),
        AdapterState::Loading => info!(adapter = %id, source, "loading"),
        AdapterState::Verified => info!(adapter = %id, source, "verified: vLLM completed a token with it"),
        AdapterState::Gone if before.is_some() => info!(adapter = %id, "unloaded"),
        AdapterState::Unloading => info!(adapter = %id, "not desired: will be unloaded when idle"),
        AdapterState::UnloadHeld => info!(adapter = %id, "not desired, but kept loaded while it serves"),
        AdapterState::Rejected => info!(adapter = %id, "rejected by the operator: not loaded"),
        AdapterState::AwaitingAdmission => info!(adapter = %id, "waiting for admission by the operator"),
        AdapterState::Gone | AdapterState::Pending | AdapterState::Loaded | AdapterState::Unlisted => {
            debug!(adapter = %id, source, state = ?adapter.state, "changed");
        }
    }
}
