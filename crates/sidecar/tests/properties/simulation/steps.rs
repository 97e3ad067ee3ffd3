//! The steps of a simulation, and strategies that generate them.

use super::{BAD_FILES, IDS, POD, id};
use proptest::prelude::*;
use rollora_api::operator_directives::{OperatorDirectives, Pilot};
use rollora_sidecar::SidecarPolicy;
use std::time::Duration;

/// Per id: the lists that name it, and whether its source is the other one.
pub(crate) type Entries = Vec<(EntryMembership, bool)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryMembership {
    Neither,
    EnsureExist,
    EnsureNotExist,
    Both,
}

#[derive(Debug, Clone)]
pub(crate) enum SimulationStep {
    SetDesired(Entries, Option<OperatorDirectives>),
    Wait(u64),
    /// Finishes one of the calls in flight.
    FinishCall(prop::sample::Index, CallDelivery),
    /// The poll in flight observes the server now; its result is delivered later.
    ObservePoll,
    FinishPoll(CallDelivery),
    StopServer,
    StartServer,
    CloseConnection,
    UseAdapter(usize),
    ExternalLoad(usize),
    ExternalUnload(usize),
    /// Writes invalid content of the file.
    WriteBadFile(usize),
    /// Kills the sidecar and starts it again with this copy of its state.
    RestartSidecar(PersistedCopy),
    /// A call of an earlier run of the sidecar takes effect.
    ApplyOrphanedCall(prop::sample::Index),
}

/// Which version of the persisted state a restarted sidecar finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PersistedCopy {
    Latest,
    /// The sidecar ended before it wrote the last change.
    Previous,
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallDelivery {
    Answered,
    /// Timeout; the flag says whether the call took effect.
    TimedOut(bool),
    /// Broken connection; the flag says whether the call took effect.
    ConnectionLost(bool),
    Failed(ServerFailure),
}

/// An error answer of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerFailure {
    /// Status 500; the flag says whether the call took effect.
    ServerError(bool),
    Unauthorized,
    RuntimeUpdatingOff,
    ShuttingDown,
    EngineDead,
    Unexpected,
}

/// Configuration of the sidecar and of its server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SimulationConfig {
    pub(crate) policy: SidecarPolicy,
    /// The server exposes no metrics, neither its identity nor usage.
    pub(crate) metrics_closed: bool,
}

impl SimulationConfig {
    pub(crate) fn with_default_policy() -> Self {
        Self { policy: SidecarPolicy::default(), metrics_closed: false }
    }
}

pub(crate) fn config_strategy() -> impl Strategy<Value = SimulationConfig> {
    (prop::bool::weighted(0.8), 1..=4_usize, 0..=40_u64, prop::bool::weighted(0.1)).prop_map(
        |(probe, max_parallel, grace, metrics_closed)| {
            let unload_grace = Duration::from_secs(grace);
            SimulationConfig {
                policy: SidecarPolicy { probe_enabled: probe, max_parallel, unload_grace, ..SidecarPolicy::default() },
                metrics_closed,
            }
        },
    )
}

pub(crate) fn entries_strategy() -> impl Strategy<Value = Entries> {
    let membership = prop_oneof![
        1 => Just(EntryMembership::Neither),
        3 => Just(EntryMembership::EnsureExist),
        2 => Just(EntryMembership::EnsureNotExist),
        1 => Just(EntryMembership::Both)
    ];
    prop::collection::vec((membership, prop::bool::weighted(0.2)), IDS.len())
}

pub(crate) fn directives_strategy() -> impl Strategy<Value = Option<OperatorDirectives>> {
    let some_ids = || {
        prop::sample::subsequence(IDS.to_vec(), 0..=IDS.len())
            .prop_map(|ids| ids.into_iter().map(id).collect::<Vec<_>>())
    };
    let pilots = prop::collection::vec((0..IDS.len(), prop::bool::ANY), 0..=1);
    let directives = (some_ids(), some_ids(), pilots, some_ids(), prop::sample::subsequence(IDS.to_vec(), 0..=1))
        .prop_map(|(managed, admitted, pilots, serving, rejected)| OperatorDirectives {
            managed: managed.into_iter().map(String::from).collect(),
            admitted,
            pilots: pilots
                .into_iter()
                .map(|(index, is_this_pod)| Pilot {
                    id: id(IDS[index]),
                    pod: if is_this_pod { POD } else { "other" }.to_owned(),
                })
                .collect(),
            serving,
            rejected: rejected.into_iter().map(id).collect(),
        });
    prop::option::of(directives)
}

pub(crate) fn step_strategy() -> impl Strategy<Value = SimulationStep> {
    let failure = prop_oneof![
        4 => prop::bool::ANY.prop_map(ServerFailure::ServerError),
        1 => Just(ServerFailure::Unauthorized),
        1 => Just(ServerFailure::RuntimeUpdatingOff),
        1 => Just(ServerFailure::ShuttingDown),
        1 => Just(ServerFailure::EngineDead),
        1 => Just(ServerFailure::Unexpected),
    ];
    let delivery = prop_oneof![
        12 => Just(CallDelivery::Answered),
        2 => prop::bool::ANY.prop_map(CallDelivery::TimedOut),
        2 => prop::bool::ANY.prop_map(CallDelivery::ConnectionLost),
        3 => failure.prop_map(CallDelivery::Failed)
    ];
    let copy = prop_oneof![Just(PersistedCopy::Latest), Just(PersistedCopy::Previous), Just(PersistedCopy::Missing)];
    prop_oneof![
        2 => (entries_strategy(), directives_strategy())
            .prop_map(|(entries, directives)| SimulationStep::SetDesired(entries, directives)),
        4 => prop_oneof![1..2_000_u64, 1..60_000_u64].prop_map(SimulationStep::Wait),
        8 => (any::<prop::sample::Index>(), delivery.clone())
            .prop_map(|(index, delivery)| SimulationStep::FinishCall(index, delivery)),
        2 => Just(SimulationStep::ObservePoll),
        8 => delivery.prop_map(SimulationStep::FinishPoll),
        1 => Just(SimulationStep::StopServer),
        2 => Just(SimulationStep::StartServer),
        1 => Just(SimulationStep::CloseConnection),
        2 => (0..IDS.len()).prop_map(SimulationStep::UseAdapter),
        1 => (0..IDS.len()).prop_map(SimulationStep::ExternalLoad),
        1 => (0..IDS.len()).prop_map(SimulationStep::ExternalUnload),
        1 => (0..BAD_FILES.len()).prop_map(SimulationStep::WriteBadFile),
        1 => copy.prop_map(SimulationStep::RestartSidecar),
        1 => any::<prop::sample::Index>().prop_map(SimulationStep::ApplyOrphanedCall),
    ]
}
