//! Decides which calls to make now. Pure: takes the state and the time, returns calls.
//!
//! Invariants of every call:
//! - No load of an id that is rejected, not admitted, in both lists, in neither, the name of a base model, or already
//!   registered.
//! - No unload of an id that serves, is in use, is in both lists or in neither, or is the name of a base model.
//! - No call to a server that is down or suspect, and no call about an adapter with an unconfirmed call.
//! - Loads go before unloads.
//! - If hub names are fetched, vLLM never gets one. A source that is not allowed is neither fetched nor loaded.

use crate::{
    source::is_hub_name,
    spec::{AdapterGoal, AdapterSpec, LoadPermission},
    state::{CallKind, ServerHealth, SidecarState, TrackedAdapter},
};
use jiff::Timestamp;
use rollora_adapter_source::SourceRef;
use rollora_api::names::AdapterId;
use std::time::Duration;

/// After this time a call no longer delays others: a call that hangs must not block working adapters.
pub(crate) const SLOW_CALL_THRESHOLD: Duration = Duration::from_secs(10);

/// The number of concurrent fetches, except for slow ones.
const MAX_FETCHES: usize = 2;
/// A fetch that takes longer than this does not count against [`MAX_FETCHES`]. At most `2 * MAX_FETCHES` fetches run in
/// total.
const SLOW_FETCH_THRESHOLD: Duration = Duration::from_mins(1);

/// One call about an adapter that will be made to vLLM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterCall {
    /// Loads an adapter that is not registered.
    Load {
        /// The id of the adapter.
        id: AdapterId,
        /// The path or hub name that vLLM gets.
        source: String,
        /// Whether vLLM will download it, which blocks its engine.
        from_hub: bool,
    },
    /// Verifies a registered adapter with a completion of one token.
    Probe {
        /// The id of the adapter.
        id: AdapterId,
    },
    /// Unloads an adapter, unless it turns out just before the call that it is desired again or was used again.
    Unload {
        /// The id of the adapter.
        id: AdapterId,
        /// The last use that the server reported; `None` if it reports none.
        last_used: Option<Timestamp>,
    },
}

impl AdapterCall {
    /// Returns the id of the adapter.
    pub fn id(&self) -> &AdapterId {
        match self {
            Self::Load { id, .. } | Self::Probe { id } | Self::Unload { id, .. } => id,
        }
    }

    /// Returns the kind of the call.
    pub fn kind(&self) -> CallKind {
        match self {
            Self::Load { .. } => CallKind::Load,
            Self::Probe { .. } => CallKind::Probe,
            Self::Unload { .. } => CallKind::Unload,
        }
    }
}

/// Returns the calls to make now, in order.
pub fn decide(state: &SidecarState, now: Timestamp) -> Vec<AdapterCall> {
    if !state.is_up() || state.config.is_none() {
        return Vec::new();
    }
    let mut active = ActiveCalls::from_state(state, now);
    let mut actions = Vec::new();
    for (id, adapter, spec) in due_loads_and_probes(state, now) {
        let from_hub = is_hub_name(&spec.resolved.root);
        let kind = if adapter.registered.is_some() { CallKind::Probe } else { CallKind::Load };
        if !active.allows(kind, adapter, from_hub, state.policy.max_parallel) {
            continue;
        }
        active.add(kind, adapter, from_hub, true);
        let id = id.clone();
        actions.push(match kind {
            CallKind::Load => AdapterCall::Load { id, source: spec.resolved.root.clone(), from_hub },
            CallKind::Probe | CallKind::Unload => AdapterCall::Probe { id },
        });
    }
    if !active.has_recent_load() {
        actions.extend(due_unloads(state, now));
    }
    actions
}

/// One adapter to fetch from a hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// The id of the adapter.
    pub id: AdapterId,
    /// The hub repository and revision.
    pub source: SourceRef,
}

/// Returns the adapters to fetch now. Independent of the server process: a download may run while vLLM starts.
pub fn due_fetches(state: &SidecarState, now: Timestamp) -> Vec<FetchRequest> {
    // Before the first model list it is unknown which adapters the server already holds without a fetch.
    if state.config.is_none() || state.health == (ServerHealth::Down { problem: None }) {
        return Vec::new();
    }
    let running: Vec<_> = state.adapters.values().filter_map(|adapter| adapter.fetch.active).collect();
    let recent = running.iter().filter(|fetch| now < fetch.started_at + SLOW_FETCH_THRESHOLD).count();
    let free_slots = MAX_FETCHES.saturating_sub(recent).min((2 * MAX_FETCHES).saturating_sub(running.len()));
    let mut due: Vec<_> = state
        .adapters
        .iter()
        .filter(|(id, adapter)| adapter.may_fetch(now) && !state.is_base_model(id))
        .filter_map(|(id, adapter)| Some((adapter.spec.as_ref()?, id, adapter.source_to_fetch()?)))
        .collect();
    due.sort_by_key(|(spec, _, _)| spec.priority());
    due.into_iter()
        .take(free_slots)
        .map(|(_, id, source)| FetchRequest { id: id.clone(), source: source.clone() })
        .collect()
}

/// Returns the adapters to load or probe now, in order of priority.
fn due_loads_and_probes(state: &SidecarState, now: Timestamp) -> Vec<(&AdapterId, &TrackedAdapter, &AdapterSpec)> {
    let mut due: Vec<_> = state
        .adapters
        .iter()
        .filter(|(id, adapter)| {
            adapter.wants_loading() && adapter.may_call(now) && !adapter.is_crash_held(now) && !state.is_base_model(id)
        })
        .filter(|(_, adapter)| match adapter.registered {
            None => adapter.source_refusal().is_none() && adapter.source_to_fetch().is_none(),
            Some(_) => state.policy.probe_enabled && !adapter.verified && !adapter.source_changed(),
        })
        .filter_map(|(id, adapter)| Some((id, adapter, adapter.spec.as_ref()?)))
        .collect();
    // A probe without an answer has delayed other probes long enough, so it goes last. A failed adapter goes after
    // those of its priority class that were not tried yet.
    due.sort_by_key(|(_, adapter, spec)| {
        (adapter.inconclusive_probes > 0, spec.priority_class(), adapter.attempts > 0, spec.file_order)
    });
    due
}

fn due_unloads(state: &SidecarState, now: Timestamp) -> impl Iterator<Item = AdapterCall> {
    state
        .adapters
        .iter()
        .filter(move |(id, adapter)| {
            adapter.goal() == AdapterGoal::Absent
                && adapter.registered.is_some()
                && adapter.may_call(now)
                && !state.is_base_model(id)
                && !state.is_in_use(id, adapter, now)
        })
        .map(|(id, _)| AdapterCall::Unload { id: id.clone(), last_used: state.server_last_used(id) })
}

/// The calls in flight that limit which calls may start.
struct ActiveCalls {
    calls: Vec<ActiveCall>,
}

struct ActiveCall {
    kind: CallKind,
    from_hub: bool,
    /// Whether the adapter is on trial: if the server crashes now, only this adapter should be suspected.
    on_trial: bool,
    /// Whether the call is not older than [`SLOW_CALL_THRESHOLD`].
    recent: bool,
}

impl ActiveCalls {
    fn from_state(state: &SidecarState, now: Timestamp) -> Self {
        let mut active = Self { calls: Vec::new() };
        for (_, adapter, call) in state.in_flight() {
            active.add(call.kind, adapter, is_hub_name(&call.source), now < call.started_at + SLOW_CALL_THRESHOLD);
        }
        active
    }

    fn add(&mut self, kind: CallKind, adapter: &TrackedAdapter, from_hub: bool, recent: bool) {
        self.calls.push(ActiveCall { kind, from_hub, on_trial: is_on_trial(adapter), recent });
    }

    /// Returns whether one more call may start while these are in flight.
    fn allows(&self, kind: CallKind, adapter: &TrackedAdapter, from_hub: bool, max_parallel: usize) -> bool {
        let count = |kind| self.calls.iter().filter(|call| call.kind == kind).count();
        let has_slot = match kind {
            CallKind::Probe => count(CallKind::Probe) == 0,
            CallKind::Load => {
                let recent = self.calls.iter().filter(|call| call.kind == CallKind::Load && call.recent).count();
                // A load that hangs takes no slot from others, but at most twice the limit run in total.
                recent < max_parallel
                    && count(CallKind::Load) < 2 * max_parallel
                    && !(from_hub && self.calls.iter().any(|call| call.kind == CallKind::Load && call.from_hub))
            }
            CallKind::Unload => true,
        };
        has_slot
            && self.calls.iter().filter(|call| call.recent && call.kind != CallKind::Unload).all(|other| {
                // An adapter on trial runs only along with adapters that were verified here; one that was in flight at
                // a crash runs alone.
                let isolated = other.on_trial && !adapter.was_verified();
                let alone = adapter.server_crashes > 0;
                !(isolated || alone)
            })
    }

    fn has_recent_load(&self) -> bool {
        self.calls.iter().any(|call| call.kind == CallKind::Load && call.recent)
    }
}

/// Returns whether a crash of the server should be attributed to this adapter: it is a pilot before its first use, or
/// it was in flight at an earlier crash and is tried again.
fn is_on_trial(adapter: &TrackedAdapter) -> bool {
    let pilot = adapter.spec.as_ref().is_some_and(|spec| spec.permission == LoadPermission::Pilot);
    adapter.server_crashes > 0 || (pilot && !adapter.verified && !adapter.was_verified())
}

#[cfg(test)]
mod tests;
