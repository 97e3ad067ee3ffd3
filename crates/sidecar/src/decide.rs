//! What to ask of the server now. Pure: what is known goes in, calls come out.
//!
//! Laws that hold for every call:
//! - No load of an id that is rejected, not admitted, in both lists, in neither, or a base model's name; none under an
//!   id that is registered.
//! - No unload of an id that serves, is in both lists or in neither, or is a base model; none while it is in use.
//! - Nothing is asked of a server that is away or suspect, and nothing about an adapter that is in doubt.
//! - Loads go before unloads.
//! - Where hub names are fetched, vLLM is never given one; what may not be used is neither fetched nor loaded.

use crate::{
    source::is_hub_name,
    spec::{AdapterGoal, AdapterSpec, LoadPermission},
    state::{CallKind, ServerHealth, SidecarState, TrackedAdapter},
};
use jiff::Timestamp;
use rollora_adapter_source::SourceRef;
use rollora_api::names::AdapterId;
use std::time::Duration;

/// Calls that others wait for are waited for this long: a call that hangs must not hold up what is fine.
pub(crate) const SLOW_CALL_THRESHOLD: Duration = Duration::from_secs(10);

/// Fetches at the same time.
const MAX_FETCHES: usize = 2;
/// A fetch that takes longer keeps no place from others; as many may take long as may go on.
const SLOW_FETCH_THRESHOLD: Duration = Duration::from_mins(1);

/// One call to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdapterCall {
    /// Load an adapter.
    Load {
        /// The adapter.
        id: AdapterId,
        /// The path or hub name that vLLM gets.
        source: String,
        /// Whether vLLM will download it, which blocks its engine.
        from_hub: bool,
    },
    /// Complete one token with it.
    Probe {
        /// The adapter.
        id: AdapterId,
    },
    /// Unload it, if just before the call it still is unwanted and was not used again.
    Unload {
        /// The adapter.
        id: AdapterId,
        /// Its last use as the server tells it.
        last_used: Option<Timestamp>,
    },
}

impl AdapterCall {
    /// The adapter.
    pub fn id(&self) -> &AdapterId {
        match self {
            Self::Load { id, .. } | Self::Probe { id } | Self::Unload { id, .. } => id,
        }
    }

    /// What is asked.
    pub fn kind(&self) -> CallKind {
        match self {
            Self::Load { .. } => CallKind::Load,
            Self::Probe { .. } => CallKind::Probe,
            Self::Unload { .. } => CallKind::Unload,
        }
    }
}

/// The calls to make now.
pub fn decide(memory: &SidecarState, now: Timestamp) -> Vec<AdapterCall> {
    if !memory.is_up() || memory.config.is_none() {
        return Vec::new();
    }
    let mut traffic = ActiveCalls::from_state(memory, now);
    let mut actions = Vec::new();
    for (id, adapter, wish) in due_loads_and_probes(memory, now) {
        let from_hub = is_hub_name(&wish.resolved.root);
        let kind = if adapter.registered.is_some() { CallKind::Probe } else { CallKind::Load };
        if !traffic.allows(kind, adapter, from_hub, memory.policy.max_parallel) {
            continue;
        }
        traffic.add(kind, adapter, from_hub, true);
        let id = id.clone();
        actions.push(match kind {
            CallKind::Load => AdapterCall::Load { id, source: wish.resolved.root.clone(), from_hub },
            CallKind::Probe | CallKind::Unload => AdapterCall::Probe { id },
        });
    }
    if !traffic.has_recent_load() {
        actions.extend(due_unloads(memory, now));
    }
    actions
}

/// One adapter to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// The adapter.
    pub id: AdapterId,
    /// From where.
    pub source: SourceRef,
}

/// What to fetch now, whatever process of the server there is: a download may as well go on while vLLM starts.
pub fn due_fetches(memory: &SidecarState, now: Timestamp) -> Vec<FetchRequest> {
    // What a server holds that nobody has asked yet may need no fetch.
    if memory.config.is_none() || memory.health == (ServerHealth::Down { problem: None }) {
        return Vec::new();
    }
    let under_way: Vec<_> = memory.adapters.values().filter_map(|adapter| adapter.fetch.active).collect();
    let young = under_way.iter().filter(|fetch| now < fetch.started_at + SLOW_FETCH_THRESHOLD).count();
    let room = MAX_FETCHES.saturating_sub(young).min((2 * MAX_FETCHES).saturating_sub(under_way.len()));
    let mut due: Vec<_> = memory
        .adapters
        .iter()
        .filter(|(id, adapter)| adapter.may_fetch(now) && !memory.is_base_model(id))
        .filter_map(|(id, adapter)| Some((adapter.spec.as_ref()?, id, adapter.source_to_fetch()?)))
        .collect();
    due.sort_by_key(|(wish, _, _)| wish.priority());
    due.into_iter().take(room).map(|(_, id, source)| FetchRequest { id: id.clone(), source: source.clone() }).collect()
}

/// Adapters to load or to prove now, in order.
fn due_loads_and_probes(memory: &SidecarState, now: Timestamp) -> Vec<(&AdapterId, &TrackedAdapter, &AdapterSpec)> {
    let mut wanted: Vec<_> = memory
        .adapters
        .iter()
        .filter(|(id, adapter)| {
            adapter.wants_loading() && adapter.may_call(now) && !adapter.is_crash_held(now) && !memory.is_base_model(id)
        })
        .filter(|(_, adapter)| match adapter.registered {
            None => adapter.source_refusal().is_none() && adapter.source_to_fetch().is_none(),
            Some(_) => memory.policy.probe_enabled && !adapter.verified && !adapter.source_changed(),
        })
        .filter_map(|(id, adapter)| Some((id, adapter, adapter.spec.as_ref()?)))
        .collect();
    // A probe that got no answer took the place of others for long enough: it waits behind them. What failed waits
    // behind what is as important and was not tried yet.
    wanted.sort_by_key(|(_, adapter, wish)| {
        (adapter.inconclusive_probes > 0, wish.priority_class(), adapter.attempts > 0, wish.file_order)
    });
    wanted
}

/// Adapters to unload now.
fn due_unloads(memory: &SidecarState, now: Timestamp) -> impl Iterator<Item = AdapterCall> {
    memory
        .adapters
        .iter()
        .filter(move |(id, adapter)| {
            adapter.goal() == AdapterGoal::Absent
                && adapter.registered.is_some()
                && adapter.may_call(now)
                && !memory.is_base_model(id)
                && !memory.is_in_use(id, adapter, now)
        })
        .map(|(id, _)| AdapterCall::Unload { id: id.clone(), last_used: memory.server_last_used(id) })
}

/// The calls under way, as far as others have to mind them.
struct ActiveCalls {
    calls: Vec<ActiveCall>,
}

struct ActiveCall {
    kind: CallKind,
    from_hub: bool,
    /// An adapter on trial: a server that dies now should point at it alone.
    on_trial: bool,
    /// Not older than [`PATIENCE`].
    recent: bool,
}

impl ActiveCalls {
    fn from_state(memory: &SidecarState, now: Timestamp) -> Self {
        let mut traffic = Self { calls: Vec::new() };
        for (_, adapter, call) in memory.in_flight() {
            traffic.add(call.kind, adapter, is_hub_name(&call.source), now < call.started_at + SLOW_CALL_THRESHOLD);
        }
        traffic
    }

    fn add(&mut self, kind: CallKind, adapter: &TrackedAdapter, from_hub: bool, young: bool) {
        self.calls.push(ActiveCall { kind, from_hub, on_trial: is_on_trial(adapter), recent: young });
    }

    /// Whether one more call may begin beside these.
    fn allows(&self, kind: CallKind, adapter: &TrackedAdapter, from_hub: bool, max_parallel: usize) -> bool {
        let count = |kind| self.calls.iter().filter(|call| call.kind == kind).count();
        let room = match kind {
            CallKind::Probe => count(CallKind::Probe) == 0,
            CallKind::Load => {
                let young = self.calls.iter().filter(|call| call.kind == CallKind::Load && call.recent).count();
                // A load that hangs keeps no place from others; as many may hang as may go on.
                young < max_parallel
                    && count(CallKind::Load) < 2 * max_parallel
                    && !(from_hub && self.calls.iter().any(|call| call.kind == CallKind::Load && call.from_hub))
            }
            CallKind::Unload => true,
        };
        room && self.calls.iter().filter(|call| call.recent && call.kind != CallKind::Unload).all(|other| {
            // One on trial shares the server with what was proven here only; one that was there when the server died,
            // with nothing at all.
            let apart = other.on_trial && !adapter.was_verified();
            let alone = adapter.server_crashes > 0;
            !(apart || alone)
        })
    }

    fn has_recent_load(&self) -> bool {
        self.calls.iter().any(|call| call.kind == CallKind::Load && call.recent)
    }
}

/// Whether a death of the server should be put down to this adapter: the first use of a pilot, or the next try of one
/// that was there when it happened.
fn is_on_trial(adapter: &TrackedAdapter) -> bool {
    let pilot = adapter.spec.as_ref().is_some_and(|wish| wish.permission == LoadPermission::Pilot);
    adapter.server_crashes > 0 || (pilot && !adapter.verified && !adapter.was_verified())
}

#[cfg(test)]
mod tests;
