//! What a sidecar says of its server. Pure.

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

/// The whole status.
pub fn status(memory: &SidecarState, now: Timestamp) -> SidecarStatus {
    let away = matches!(memory.health, ServerHealth::Down { .. });
    SidecarStatus {
        server: memory.process.as_ref().filter(|_| !away).map(|known| known.identity.clone()),
        readiness: readiness(memory, now),
        config: ConfigStatus { error: memory.file_error.clone(), ..memory.config.clone().unwrap_or_default() },
        base_models: memory.base_models.clone(),
        adapters: memory
            .adapters
            .iter()
            .filter(|(_, adapter)| adapter.spec.is_some() || adapter.registered.is_some())
            .map(|(id, adapter)| adapter_status(memory, id, adapter))
            .collect(),
        problem: server_problem(memory),
        max_loras: memory.max_loras,
        // Told beside it: nobody who watches the status is woken by every reading.
        usage_read_at: None,
    }
}

fn adapter_status(memory: &SidecarState, id: &AdapterId, adapter: &TrackedAdapter) -> AdapterStatus {
    let state = adapter_state(memory, id, adapter);
    let fetching = adapter.source_to_fetch().map(|_| &adapter.fetch);
    AdapterStatus {
        id: id.clone(),
        state,
        source: adapter.spec.as_ref().map(|wish| wish.source.clone()).or_else(|| adapter.registered.clone()),
        root: adapter.registered.clone(),
        attempts: adapter.attempts.max(fetching.map_or(0, |fetch| fetch.attempts)),
        last_error: derived_error(memory, id, adapter, state)
            .or_else(|| fetching.and_then(|fetch| fetch.last_error.clone()))
            .or_else(|| adapter.last_error.clone())
            .map(Box::new),
        next_try: match adapter.crash_hold {
            Some(CrashHold::Until(until)) => Some(until),
            Some(CrashHold::AwaitOperator | CrashHold::Quarantine) => None,
            None => fetching.and_then(|fetch| fetch.next_try).or(adapter.next_try),
        },
        last_used: memory.last_used(id),
        fetch: fetch_status(adapter).map(Box::new),
    }
}

/// What was brought of it; nothing where nothing was asked for.
fn fetch_status(adapter: &TrackedAdapter) -> Option<FetchStatus> {
    let fetch = &adapter.fetch;
    let told = fetch.active.is_some() || fetch.fetched || fetch.progress.bytes > 0;
    let (bytes, total_bytes) = (fetch.progress.bytes, fetch.progress.total_bytes);
    told.then(|| FetchStatus { bytes, total_bytes, commit: fetch.commit.clone() })
}

fn adapter_state(memory: &SidecarState, id: &AdapterId, adapter: &TrackedAdapter) -> AdapterState {
    if adapter.registered.is_some() && adapter.may_be_unloaded() {
        // Whatever is wanted by now: who counts on it may meet a server without it.
        return AdapterState::Unloading;
    }
    let rejected = adapter.spec.as_ref().is_some_and(|wish| wish.permission == LoadPermission::Rejected);
    match adapter.goal() {
        AdapterGoal::Ignore if adapter.registered.is_none() => AdapterState::Gone,
        AdapterGoal::Ignore if adapter.spec.as_ref().is_some_and(|wish| wish.membership == ListMembership::Both) => {
            AdapterState::InBothLists
        }
        AdapterGoal::Ignore => AdapterState::Unlisted,
        AdapterGoal::Resident | AdapterGoal::Absent if memory.is_base_model(id) => AdapterState::Failed,
        AdapterGoal::AwaitAdmission if adapter.registered.is_none() => AdapterState::AwaitingAdmission,
        AdapterGoal::UnloadHeld { .. } if adapter.registered.is_some() => AdapterState::UnloadHeld,
        AdapterGoal::Resident | AdapterGoal::AwaitAdmission | AdapterGoal::UnloadHeld { reload: true } => {
            wanted_state(memory, adapter)
        }
        AdapterGoal::Absent if adapter.registered.is_some() => AdapterState::Unloading,
        AdapterGoal::UnloadHeld { reload: false } | AdapterGoal::Absent if rejected => AdapterState::Rejected,
        // What an unreachable server holds is not known: it is gone when a list of models says so.
        AdapterGoal::Absent if !memory.is_up() => AdapterState::Unloading,
        AdapterGoal::UnloadHeld { reload: false } | AdapterGoal::Absent => AdapterState::Gone,
    }
}

/// How far an adapter is that is wanted.
fn wanted_state(memory: &SidecarState, adapter: &TrackedAdapter) -> AdapterState {
    let loading = adapter.in_flight.as_ref().is_some_and(|call| call.kind == CallKind::Load);
    match (adapter.crash_hold, &adapter.registered) {
        (Some(CrashHold::Quarantine), _) => AdapterState::Quarantined,
        (Some(CrashHold::AwaitOperator | CrashHold::Until(_)), _) => AdapterState::ServerDied,
        (None, Some(_)) if adapter.source_changed() => AdapterState::SourceChanged,
        (None, Some(_)) if adapter.verified || !memory.policy.probe_enabled => AdapterState::Verified,
        (None, Some(_)) if adapter.attempts > 0 => AdapterState::Failed,
        (None, Some(_)) => AdapterState::Loaded,
        (None, None) if loading => AdapterState::Loading,
        (None, None) if adapter.source_refusal().is_some() => AdapterState::SourceRefused,
        (None, None) if adapter.fetch.active.is_some() => AdapterState::Fetching,
        (None, None) if adapter.attempts > 0 || adapter.fetch.attempts > 0 => AdapterState::Failed,
        (None, None) => AdapterState::Pending,
    }
}

/// Words for states that no answer of vLLM led to.
fn derived_error(
    memory: &SidecarState,
    id: &AdapterId,
    adapter: &TrackedAdapter,
    state: AdapterState,
) -> Option<ReportedError> {
    if memory.is_base_model(id) && matches!(adapter.goal(), AdapterGoal::Resident | AdapterGoal::Absent) {
        return Some(ReportedError {
            reason: "NameConflict".to_owned(),
            message: format!(
                "`{id}` is a base model of this server and is never touched: take it out of the adapters file"
            ),
        });
    }
    if let Some(refused) =
        adapter.source_refusal().filter(|_| adapter.wants_loading() && state != AdapterState::SourceChanged)
    {
        let left = if adapter.registered.is_some() { "; what is loaded already is left as it is" } else { "" };
        return Some(ReportedError { reason: "SourceNotAllowed".to_owned(), message: format!("{refused}{left}") });
    }
    let (Some(root), Some(wish)) = (&adapter.registered, &adapter.spec) else { return None };
    (state == AdapterState::SourceChanged).then(|| ReportedError {
        reason: "SourceChanged".to_owned(),
        message: format!(
            "`{id}` is loaded from `{root}` and the file says `{}`: give the new weights a new id, vLLM keeps cached \
             answers by name",
            wish.source
        ),
    })
}

fn server_problem(memory: &SidecarState) -> Option<ReportedError> {
    if let ServerHealth::Down { problem } = &memory.health {
        return problem.clone();
    }
    memory.problem.clone().or_else(|| {
        let (id, _, call) =
            memory.in_flight().find(|(_, _, call)| call.kind == CallKind::Load && is_hub_name(&call.source))?;
        Some(ReportedError {
            reason: "HubLoadBlocksServer".to_owned(),
            message: format!(
                "vLLM downloads adapter `{id}` (`{}`) itself, and its engine answers nobody while the hub is slow: \
                 give it a local path",
                call.source
            ),
        })
    })
}

#[cfg(test)]
mod tests;
