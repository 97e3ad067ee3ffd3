//! What a sidecar says of its server. Pure.

use crate::{
    memory::{Adapter, CallKind, Hold, Memory, Server},
    readiness::readiness,
    source::is_hub_name,
    wish::{Goal, Listed, Standing},
};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{AdapterState, AdapterStatus, ConfigStatus, FetchStatus, ReportedError, SidecarStatus},
};

/// The whole status.
pub fn status(memory: &Memory, now: Timestamp) -> SidecarStatus {
    let away = matches!(memory.server, Server::Away { .. });
    SidecarStatus {
        server: memory.known.as_ref().filter(|_| !away).map(|known| known.identity.clone()),
        readiness: readiness(memory, now),
        config: ConfigStatus { error: memory.file_error.clone(), ..memory.config.clone().unwrap_or_default() },
        base_models: memory.base_models.clone(),
        adapters: memory
            .adapters
            .iter()
            .filter(|(_, adapter)| adapter.wish.is_some() || adapter.registered.is_some())
            .map(|(id, adapter)| adapter_status(memory, id, adapter))
            .collect(),
        problem: problem(memory),
        max_loras: memory.max_loras,
        // Told beside it: nobody who watches the status is woken by every reading.
        usage_read_at: None,
    }
}

fn adapter_status(memory: &Memory, id: &AdapterId, adapter: &Adapter) -> AdapterStatus {
    let state = state(memory, id, adapter);
    let fetching = adapter.to_fetch().map(|_| &adapter.fetch);
    AdapterStatus {
        id: id.clone(),
        state,
        source: adapter.wish.as_ref().map(|wish| wish.source.clone()).or_else(|| adapter.registered.clone()),
        root: adapter.registered.clone(),
        attempts: adapter.attempts.max(fetching.map_or(0, |fetch| fetch.attempts)),
        last_error: special_error(memory, id, adapter, state)
            .or_else(|| fetching.and_then(|fetch| fetch.last_error.clone()))
            .or_else(|| adapter.last_error.clone())
            .map(Box::new),
        next_try: match adapter.hold {
            Some(Hold::Until(until)) => Some(until),
            Some(Hold::Operator | Hold::Quarantine) => None,
            None => fetching.and_then(|fetch| fetch.next_try).or(adapter.next_try),
        },
        last_used: memory.last_used(id),
        fetch: fetch_status(adapter).map(Box::new),
    }
}

/// What was brought of it; nothing where nothing was asked for.
fn fetch_status(adapter: &Adapter) -> Option<FetchStatus> {
    let fetch = &adapter.fetch;
    let told = fetch.under_way.is_some() || fetch.have || fetch.progress.bytes > 0;
    let (bytes, total_bytes) = (fetch.progress.bytes, fetch.progress.total_bytes);
    told.then(|| FetchStatus { bytes, total_bytes, commit: fetch.commit.clone() })
}

fn state(memory: &Memory, id: &AdapterId, adapter: &Adapter) -> AdapterState {
    if adapter.registered.is_some() && adapter.may_be_unloaded() {
        // Whatever is wanted by now: who counts on it may meet a server without it.
        return AdapterState::Unloading;
    }
    let rejected = adapter.wish.as_ref().is_some_and(|wish| wish.standing == Standing::Rejected);
    match adapter.goal() {
        Goal::Leave if adapter.registered.is_none() => AdapterState::Gone,
        Goal::Leave if adapter.wish.as_ref().is_some_and(|wish| wish.listed == Listed::Both) => {
            AdapterState::InBothLists
        }
        Goal::Leave => AdapterState::Unlisted,
        Goal::Resident | Goal::Absent if memory.is_base_model(id) => AdapterState::Failed,
        Goal::Wait if adapter.registered.is_none() => AdapterState::AwaitingAdmission,
        Goal::Held { .. } if adapter.registered.is_some() => AdapterState::UnloadHeld,
        Goal::Resident | Goal::Wait | Goal::Held { reload: true } => present_state(memory, adapter),
        Goal::Absent if adapter.registered.is_some() => AdapterState::Unloading,
        Goal::Held { reload: false } | Goal::Absent if rejected => AdapterState::Rejected,
        // What an unreachable server holds is not known: it is gone when a list of models says so.
        Goal::Absent if !memory.is_up() => AdapterState::Unloading,
        Goal::Held { reload: false } | Goal::Absent => AdapterState::Gone,
    }
}

/// How far an adapter is that is wanted.
fn present_state(memory: &Memory, adapter: &Adapter) -> AdapterState {
    let loading = adapter.in_flight.as_ref().is_some_and(|call| call.kind == CallKind::Load);
    match (adapter.hold, &adapter.registered) {
        (Some(Hold::Quarantine), _) => AdapterState::Quarantined,
        (Some(Hold::Operator | Hold::Until(_)), _) => AdapterState::ServerDied,
        (None, Some(_)) if adapter.source_changed() => AdapterState::SourceChanged,
        (None, Some(_)) if adapter.verified || !memory.policy.probe => AdapterState::Verified,
        (None, Some(_)) if adapter.attempts > 0 => AdapterState::Failed,
        (None, Some(_)) => AdapterState::Loaded,
        (None, None) if loading => AdapterState::Loading,
        (None, None) if adapter.refused().is_some() => AdapterState::SourceRefused,
        (None, None) if adapter.fetch.under_way.is_some() => AdapterState::Fetching,
        (None, None) if adapter.attempts > 0 || adapter.fetch.attempts > 0 => AdapterState::Failed,
        (None, None) => AdapterState::Pending,
    }
}

/// Words for states that no answer of vLLM led to.
fn special_error(memory: &Memory, id: &AdapterId, adapter: &Adapter, state: AdapterState) -> Option<ReportedError> {
    if memory.is_base_model(id) && matches!(adapter.goal(), Goal::Resident | Goal::Absent) {
        return Some(ReportedError {
            reason: "NameConflict".to_owned(),
            message: format!(
                "`{id}` is a base model of this server and is never touched: take it out of the adapters file"
            ),
        });
    }
    if let Some(refused) = adapter.refused().filter(|_| adapter.wants_loading() && state != AdapterState::SourceChanged)
    {
        let left = if adapter.registered.is_some() { "; what is loaded already is left as it is" } else { "" };
        return Some(ReportedError { reason: "SourceNotAllowed".to_owned(), message: format!("{refused}{left}") });
    }
    let (Some(root), Some(wish)) = (&adapter.registered, &adapter.wish) else { return None };
    (state == AdapterState::SourceChanged).then(|| ReportedError {
        reason: "SourceChanged".to_owned(),
        message: format!(
            "`{id}` is loaded from `{root}` and the file says `{}`: give the new weights a new id, vLLM keeps cached \
             answers by name",
            wish.source
        ),
    })
}

fn problem(memory: &Memory) -> Option<ReportedError> {
    if let Server::Away { problem } = &memory.server {
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
