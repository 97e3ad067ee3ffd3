//! Builds the status of a sidecar from its state. Pure.

use crate::{
    readiness::readiness,
    source::is_hub_name,
    spec::{AdapterGoal, ListMembership, LoadPermission},
    state::{CallKind, CrashHold, ServerHealth, SidecarState, TrackedAdapter},
};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{AdapterState, AdapterStatus, ConfigStatus, FetchStatus, ReportedError, SidecarStatus},
};

/// Returns the status, without `usage_read_at`.
pub fn status(state: &SidecarState, now: Timestamp) -> SidecarStatus {
    let is_down = matches!(state.health, ServerHealth::Down { .. });
    SidecarStatus {
        server: state.process.as_ref().filter(|_| !is_down).map(|process| process.identity.clone()),
        readiness: readiness(state, now),
        config: ConfigStatus { error: state.file_error.clone(), ..state.config.clone().unwrap_or_default() },
        base_models: state.base_models.clone(),
        adapters: state
            .adapters
            .iter()
            .filter(|(_, adapter)| adapter.spec.is_some() || adapter.registered.is_some())
            .map(|(id, adapter)| adapter_status(state, id, adapter))
            .collect(),
        problem: server_problem(state),
        max_loras: state.max_loras,
        // Published with the heartbeat, so that a usage poll does not wake watchers of the status.
        usage_read_at: None,
    }
}

fn adapter_status(state: &SidecarState, id: &AdapterId, adapter: &TrackedAdapter) -> AdapterStatus {
    let current_state = adapter_state(state, id, adapter);
    let fetching = adapter.source_to_fetch().map(|_| &adapter.fetch);
    AdapterStatus {
        id: id.clone(),
        state: current_state,
        source: adapter.spec.as_ref().map(|spec| spec.source.clone()).or_else(|| adapter.registered.clone()),
        root: adapter.registered.clone(),
        attempts: adapter.attempts.max(fetching.map_or(0, |fetch| fetch.attempts)),
        last_error: derived_error(state, id, adapter, current_state)
            .or_else(|| fetching.and_then(|fetch| fetch.last_error.clone()))
            .or_else(|| adapter.last_error.clone())
            .map(Box::new),
        next_try: match adapter.crash_hold {
            Some(CrashHold::Until(until)) => Some(until),
            Some(CrashHold::AwaitOperator | CrashHold::Quarantine) => None,
            None => fetching.and_then(|fetch| fetch.next_try).or(adapter.next_try),
        },
        last_used: state.last_used(id),
        fetch: fetch_status(adapter).map(Box::new),
    }
}

/// The progress of fetches; `None` if none was started.
fn fetch_status(adapter: &TrackedAdapter) -> Option<FetchStatus> {
    let fetch = &adapter.fetch;
    let started = fetch.active.is_some() || fetch.fetched || fetch.progress.bytes > 0;
    let (bytes, total_bytes) = (fetch.progress.bytes, fetch.progress.total_bytes);
    started.then(|| FetchStatus { bytes, total_bytes, commit: fetch.commit.clone() })
}

fn adapter_state(state: &SidecarState, id: &AdapterId, adapter: &TrackedAdapter) -> AdapterState {
    if adapter.registered.is_some() && adapter.may_be_unloaded() {
        // Even if it is wanted again: a request that relies on it may reach the server without it.
        return AdapterState::Unloading;
    }
    let rejected = adapter.spec.as_ref().is_some_and(|spec| spec.permission == LoadPermission::Rejected);
    match adapter.goal() {
        AdapterGoal::Ignore if adapter.registered.is_none() => AdapterState::Gone,
        AdapterGoal::Ignore if adapter.spec.as_ref().is_some_and(|spec| spec.membership == ListMembership::Both) => {
            AdapterState::InBothLists
        }
        AdapterGoal::Ignore => AdapterState::Unlisted,
        AdapterGoal::Resident | AdapterGoal::Absent if state.is_base_model(id) => AdapterState::Failed,
        AdapterGoal::AwaitAdmission if adapter.registered.is_none() => AdapterState::AwaitingAdmission,
        AdapterGoal::UnloadHeld { .. } if adapter.registered.is_some() => AdapterState::UnloadHeld,
        AdapterGoal::Resident | AdapterGoal::AwaitAdmission | AdapterGoal::UnloadHeld { reload: true } => {
            wanted_state(state, adapter)
        }
        AdapterGoal::Absent if adapter.registered.is_some() => AdapterState::Unloading,
        AdapterGoal::UnloadHeld { reload: false } | AdapterGoal::Absent if rejected => AdapterState::Rejected,
        // The registrations of an unreachable server are unknown: only a model list proves that an adapter is gone.
        AdapterGoal::Absent if !state.is_up() => AdapterState::Unloading,
        AdapterGoal::UnloadHeld { reload: false } | AdapterGoal::Absent => AdapterState::Gone,
    }
}

/// The state of an adapter that must be loaded or that awaits admission.
fn wanted_state(state: &SidecarState, adapter: &TrackedAdapter) -> AdapterState {
    let loading = adapter.in_flight.as_ref().is_some_and(|call| call.kind == CallKind::Load);
    match (adapter.crash_hold, &adapter.registered) {
        (Some(CrashHold::Quarantine), _) => AdapterState::Quarantined,
        (Some(CrashHold::AwaitOperator | CrashHold::Until(_)), _) => AdapterState::ServerDied,
        (None, Some(_)) if adapter.source_changed() => AdapterState::SourceChanged,
        (None, Some(_)) if adapter.verified || !state.policy.probe_enabled => AdapterState::Verified,
        (None, Some(_)) if adapter.attempts > 0 => AdapterState::Failed,
        (None, Some(_)) => AdapterState::Loaded,
        (None, None) if loading => AdapterState::Loading,
        (None, None) if adapter.source_refusal().is_some() => AdapterState::SourceRefused,
        (None, None) if adapter.fetch.active.is_some() => AdapterState::Fetching,
        (None, None) if adapter.attempts > 0 || adapter.fetch.attempts > 0 => AdapterState::Failed,
        (None, None) => AdapterState::Pending,
    }
}

/// The error of a state that follows from the configuration and not from an answer of vLLM.
fn derived_error(
    state: &SidecarState,
    id: &AdapterId,
    adapter: &TrackedAdapter,
    current_state: AdapterState,
) -> Option<ReportedError> {
    if state.is_base_model(id) && matches!(adapter.goal(), AdapterGoal::Resident | AdapterGoal::Absent) {
        return Some(ReportedError {
            reason: "NameConflict".to_owned(),
            message: format!(
                "`{id}` is a base model of this server and is never loaded or unloaded: remove it from the file"
            ),
        });
    }
    if let Some(refusal) =
        adapter.source_refusal().filter(|_| adapter.wants_loading() && current_state != AdapterState::SourceChanged)
    {
        let suffix = if adapter.registered.is_some() { "; it is already loaded and left as it is" } else { "" };
        return Some(ReportedError { reason: "SourceNotAllowed".to_owned(), message: format!("{refusal}{suffix}") });
    }
    let (Some(root), Some(spec)) = (&adapter.registered, &adapter.spec) else { return None };
    (current_state == AdapterState::SourceChanged).then(|| ReportedError {
        reason: "SourceChanged".to_owned(),
        message: format!(
            "adapter `{id}` is loaded from `{root}`, but the file has `{}`: give the new weights a new id, because \
             vLLM caches by name",
            spec.source
        ),
    })
}

fn server_problem(state: &SidecarState) -> Option<ReportedError> {
    if let ServerHealth::Down { problem } = &state.health {
        return problem.clone();
    }
    state.problem.clone().or_else(|| {
        let (id, _, call) =
            state.in_flight().find(|(_, _, call)| call.kind == CallKind::Load && is_hub_name(&call.source))?;
        Some(ReportedError {
            reason: "HubLoadBlocksServer".to_owned(),
            message: format!(
                "vLLM downloads adapter `{id}` (`{}`) itself, and its engine answers no request while the hub is slow: \
                 use a local path",
                call.source
            ),
        })
    })
}

#[cfg(test)]
mod tests;
