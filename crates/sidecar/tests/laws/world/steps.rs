//! What may happen to a sidecar and its server, and how often each of it does.

use super::{BAD_FILES, IDS, POD, id};
use proptest::prelude::*;
use rollora_api::operator_directives::{OperatorDirectives, Pilot};
use rollora_sidecar::Policy;
use std::time::Duration;

/// In which lists an id stands, with which source.
pub(crate) type Entries = Vec<(Listing, bool)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listing {
    Nowhere,
    Exist,
    NotExist,
    Both,
}

#[derive(Debug, Clone)]
pub(crate) enum Step {
    Desire(Entries, Option<OperatorDirectives>),
    Wait(u64),
    /// One of the calls under way ends.
    End(prop::sample::Index, Fate),
    /// The look under way sees what is there now, and is delivered later.
    LookSees,
    LookEnds(Fate),
    ServerEnds,
    ServerStarts,
    ConnectionCloses,
    Use(usize),
    StrangerLoads(usize),
    StrangerUnloads(usize),
    /// Content of the file that nobody can use.
    BadFile(usize),
    /// The sidecar ends without a word and starts again with what it kept.
    SidecarRestarts(Keeps),
    /// A call that an earlier run of the sidecar began takes effect after all.
    OrphanActs(prop::sample::Index),
}

/// What a sidecar that starts again finds of what the one before it kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    Everything,
    /// It ended before it could write the last change.
    AllButTheLast,
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Answered,
    /// No answer in time; whether it took effect.
    Late(bool),
    /// The connection broke; whether it took effect.
    Lost(bool),
    Failed(Failure),
}

/// What it is answered that is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A 5xx; whether it was done all the same.
    Server(bool),
    Unauthorized,
    UpdatingOff,
    ShuttingDown,
    EngineDead,
    Unexpected,
}

/// How the sidecar is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) policy: Policy,
    /// The server shows no metrics: neither who it is nor what was used.
    pub(crate) metrics_closed: bool,
}

impl Manner {
    pub(crate) fn usual() -> Self {
        Self { policy: Policy::default(), metrics_closed: false }
    }
}

pub(crate) fn manner() -> impl Strategy<Value = Manner> {
    (prop::bool::weighted(0.8), 1..=4_usize, 0..=40_u64, prop::bool::weighted(0.1)).prop_map(
        |(probe, max_parallel, grace, metrics_closed)| {
            let unload_grace = Duration::from_secs(grace);
            Manner { policy: Policy { probe, max_parallel, unload_grace, ..Policy::default() }, metrics_closed }
        },
    )
}

pub(crate) fn entries() -> impl Strategy<Value = Entries> {
    let listing = prop_oneof![
        1 => Just(Listing::Nowhere),
        3 => Just(Listing::Exist),
        2 => Just(Listing::NotExist),
        1 => Just(Listing::Both)
    ];
    prop::collection::vec((listing, prop::bool::weighted(0.2)), IDS.len())
}

pub(crate) fn key() -> impl Strategy<Value = Option<OperatorDirectives>> {
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

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let failure = prop_oneof![
        4 => prop::bool::ANY.prop_map(Failure::Server),
        1 => Just(Failure::Unauthorized),
        1 => Just(Failure::UpdatingOff),
        1 => Just(Failure::ShuttingDown),
        1 => Just(Failure::EngineDead),
        1 => Just(Failure::Unexpected),
    ];
    let fate = prop_oneof![
        12 => Just(Fate::Answered),
        2 => prop::bool::ANY.prop_map(Fate::Late),
        2 => prop::bool::ANY.prop_map(Fate::Lost),
        3 => failure.prop_map(Fate::Failed)
    ];
    let keeps = prop_oneof![Just(Keeps::Everything), Just(Keeps::AllButTheLast), Just(Keeps::Nothing)];
    prop_oneof![
        2 => (entries(), key()).prop_map(|(entries, key)| Step::Desire(entries, key)),
        4 => prop_oneof![1..2_000_u64, 1..60_000_u64].prop_map(Step::Wait),
        8 => (any::<prop::sample::Index>(), fate.clone()).prop_map(|(index, fate)| Step::End(index, fate)),
        2 => Just(Step::LookSees),
        8 => fate.prop_map(Step::LookEnds),
        1 => Just(Step::ServerEnds),
        2 => Just(Step::ServerStarts),
        1 => Just(Step::ConnectionCloses),
        2 => (0..IDS.len()).prop_map(Step::Use),
        1 => (0..IDS.len()).prop_map(Step::StrangerLoads),
        1 => (0..IDS.len()).prop_map(Step::StrangerUnloads),
        1 => (0..BAD_FILES.len()).prop_map(Step::BadFile),
        1 => keeps.prop_map(Step::SidecarRestarts),
        1 => any::<prop::sample::Index>().prop_map(Step::OrphanActs),
    ]
}
