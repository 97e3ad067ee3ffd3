//! What may happen to a sidecar and its server, and how often each of it does.

use super::{BAD_FILES, IDS, POD, id};
use proptest::prelude::*;
use rollora_api::operator_directives::{OperatorDirectives, Pilot};
use rollora_sidecar::SidecarPolicy;
use std::time::Duration;

/// In which lists an id stands, with which source.
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
    /// One of the calls under way ends.
    FinishCall(prop::sample::Index, CallDelivery),
    /// The look under way sees what is there now, and is delivered later.
    ObservePoll,
    FinishPoll(CallDelivery),
    StopServer,
    StartServer,
    CloseConnection,
    UseAdapter(usize),
    ExternalLoad(usize),
    ExternalUnload(usize),
    /// Content of the file that nobody can use.
    WriteBadFile(usize),
    /// The sidecar ends without a word and starts again with what it kept.
    RestartSidecar(PersistedCopy),
    /// A call that an earlier run of the sidecar began takes effect after all.
    ApplyOrphanedCall(prop::sample::Index),
}

/// What a sidecar that starts again finds of what the one before it kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PersistedCopy {
    Latest,
    /// It ended before it could write the last change.
    Previous,
    Missing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallDelivery {
    Answered,
    /// No answer in time; whether it took effect.
    TimedOut(bool),
    /// The connection broke; whether it took effect.
    ConnectionLost(bool),
    Failed(ServerFailure),
}

/// What it is answered that is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerFailure {
    /// A 5xx; whether it was done all the same.
    ServerError(bool),
    Unauthorized,
    RuntimeUpdatingOff,
    ShuttingDown,
    EngineDead,
    Unexpected,
}

/// How the sidecar is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SimulationConfig {
    pub(crate) policy: SidecarPolicy,
    /// The server shows no metrics: neither who it is nor what was used.
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
    let listing = prop_oneof![
        1 => Just(EntryMembership::Neither),
        3 => Just(EntryMembership::EnsureExist),
        2 => Just(EntryMembership::EnsureNotExist),
        1 => Just(EntryMembership::Both)
    ];
    prop::collection::vec((listing, prop::bool::weighted(0.2)), IDS.len())
}

pub(crate) fn directives_strategy() -> impl Strategy<Value = Option<OperatorDirectives>> {
    let some = || {
        prop::sample::subsequence(IDS.to_vec(), 0..=IDS.len())
            .prop_map(|ids| ids.into_iter().map(id).collect::<Vec<_>>())
    };
    let pilots = prop::collection::vec((0..IDS.len(), prop::bool::ANY), 0..=1);
    let key = (some(), some(), pilots, some(), prop::sample::subsequence(IDS.to_vec(), 0..=1)).prop_map(
        |(managed, admitted, pilots, serving, rejected)| OperatorDirectives {
            managed: managed.into_iter().map(String::from).collect(),
            admitted,
            pilots: pilots
                .into_iter()
                .map(|(index, here)| Pilot { id: id(IDS[index]), pod: if here { POD } else { "other" }.to_owned() })
                .collect(),
            serving,
            rejected: rejected.into_iter().map(id).collect(),
        },
    );
    prop::option::of(key)
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
    let fate = prop_oneof![
        12 => Just(CallDelivery::Answered),
        2 => prop::bool::ANY.prop_map(CallDelivery::TimedOut),
        2 => prop::bool::ANY.prop_map(CallDelivery::ConnectionLost),
        3 => failure.prop_map(CallDelivery::Failed)
    ];
    let keeps = prop_oneof![Just(PersistedCopy::Latest), Just(PersistedCopy::Previous), Just(PersistedCopy::Missing)];
    prop_oneof![
        2 => (entries_strategy(), directives_strategy()).prop_map(|(entries, key)| SimulationStep::SetDesired(entries, key)),
        4 => prop_oneof![1..2_000_u64, 1..60_000_u64].prop_map(SimulationStep::Wait),
        8 => (any::<prop::sample::Index>(), fate.clone()).prop_map(|(index, fate)| SimulationStep::FinishCall(index, fate)),
        2 => Just(SimulationStep::ObservePoll),
        8 => fate.prop_map(SimulationStep::FinishPoll),
        1 => Just(SimulationStep::StopServer),
        2 => Just(SimulationStep::StartServer),
        1 => Just(SimulationStep::CloseConnection),
        2 => (0..IDS.len()).prop_map(SimulationStep::UseAdapter),
        1 => (0..IDS.len()).prop_map(SimulationStep::ExternalLoad),
        1 => (0..IDS.len()).prop_map(SimulationStep::ExternalUnload),
        1 => (0..BAD_FILES.len()).prop_map(SimulationStep::WriteBadFile),
        1 => keeps.prop_map(SimulationStep::RestartSidecar),
        1 => any::<prop::sample::Index>().prop_map(SimulationStep::ApplyOrphanedCall),
    ]
}
