//! Explores all inputs of the machine in every state: each transition that it makes is in the table (the machine
//! asserts that itself), and each transition of the table is made.

use super::{super::*, *};
use rollora_api::{
    router_report::RulesReport,
    sidecar_status::{AdapterStatus, ConfigStatus, ServerIdentity},
};
use std::collections::BTreeSet;

fn id() -> AdapterId {
    AdapterId::new("v1").unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn server(state: AdapterState, used: Option<Timestamp>, hash: &str) -> ObservedServer {
    let status = SidecarStatus {
        server: Some(ServerIdentity { endpoint: "a".to_owned(), start: "1".to_owned() }),
        config: ConfigStatus { hash: Some(ContentHash(hash.to_owned())), ..ConfigStatus::default() },
        adapters: vec![AdapterStatus { last_used: used, ..AdapterStatus::new(id(), state) }],
        ..SidecarStatus::default()
    };
    ObservedServer::ready("a", status)
}

/// Returns all kinds of server lists: unobserved, empty, with the id, with the id recently used, without it, without it
/// on older content, and one that does not respond.
fn server_lists() -> Vec<Option<Vec<ObservedServer>>> {
    let silent = ObservedServer { status: Err("no answer".to_owned()), ..server(AdapterState::Gone, None, "now") };
    vec![
        None,
        Some(Vec::new()),
        Some(vec![server(AdapterState::Verified, None, "now")]),
        Some(vec![server(AdapterState::Verified, Some(at(900)), "now")]),
        Some(vec![server(AdapterState::Gone, None, "now")]),
        Some(vec![server(AdapterState::Gone, None, "earlier")]),
        Some(vec![silent]),
    ]
}

const STATES: [RetirementState; 9] = [
    RetirementState::Waiting,
    RetirementState::StillInUse,
    RetirementState::Suggested,
    RetirementState::Kept,
    RetirementState::Unlisting,
    RetirementState::Unloading,
    RetirementState::Gone,
    RetirementState::Relisted,
    RetirementState::Returning,
];

const LISTED: &str = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      source: a\n";

/// Calls `each` with all combinations of inputs that make a difference to the machine.
fn for_each_inputs(mut each: impl FnMut(RetirementInputs<'_>)) {
    let content = ContentHash("now".to_owned());
    let policies = [CleanupPolicy::Unload, CleanupPolicy::Suggest, CleanupPolicy::Keep];
    let cleanups = policies.map(|policy| Cleanup { policy, ..Cleanup::default() });
    let reports = RulesReport::default();
    let routers = [ObservedRouter { name: "r".to_owned(), report: Ok(reports.into()) }];
    let listings = [
        None,
        Some(AdapterListing::EnsureExist),
        Some(AdapterListing::EnsureNotExist),
        Some(AdapterListing::Both),
        Some(AdapterListing::Absent),
    ];
    // One bit for each boolean input.
    for (bits, servers) in (0..128_u32).flat_map(|bits| server_lists().into_iter().map(move |servers| (bits, servers)))
    {
        let is = |bit: u32| bits & (1 << bit) != 0;
        for (cleanup, listing) in cleanups.iter().flat_map(|cleanup| listings.map(|listing| (cleanup, listing))) {
            each(RetirementInputs {
                now: if is(0) { at(1000) } else { at(100) },
                cleanup,
                paused: is(1),
                gitops_owner: is(2).then_some("Flux"),
                unproven_reason: is(3).then_some("router-1 lags"),
                servers: servers.as_deref(),
                other_pool_servers: Ok(&[]),
                routers: (!is(4)).then_some(&routers),
                content_hash: Some(&content),
                listing,
                needed: is(5),
                referenced_by: is(6).then_some("rewrite other"),
                file_text: Some(if is(2) { "not: [yaml" } else { LISTED }),
            });
        }
    }
}

/// Asserts what must hold for all inputs and all previous states.
fn assert_invariants(before: RetirementState, inputs: RetirementInputs<'_>, after: &RetiredAdapter) {
    let context = || format!("{before:?} in {inputs:?} becomes {after:?}");
    let begins = matches!(after.state, RetirementState::Unlisting | RetirementState::Unloading);
    let begun = matches!(before, RetirementState::Unlisting | RetirementState::Unloading | RetirementState::Gone);
    let left_alone = before == RetirementState::Relisted;
    if begins && !begun && !left_alone {
        let used = inputs
            .servers
            .into_iter()
            .flatten()
            .filter_map(|server| server.status.as_ref().ok()?.adapter(&id())?.last_used);
        let quiet =
            used.chain([after.since]).all(|used| inputs.now >= text::after(used, inputs.cleanup.quiet_for.get()));
        let all_responded = inputs.servers.is_some_and(|servers| servers.iter().all(|server| server.status.is_ok()));
        let routers = inputs.unproven_reason.is_none() && inputs.routers.is_some();
        let over = inputs.now >= text::after(after.since, inputs.cleanup.delay.get());
        let free = !inputs.paused && inputs.referenced_by.is_none();
        assert!(quiet && all_responded && routers && over && free, "{}", context());
    }
    if after.state == RetirementState::Unlisting && before != RetirementState::Unlisting {
        let may = inputs.cleanup.policy == CleanupPolicy::Unload && inputs.gitops_owner.is_none();
        assert!(may && inputs.listing == Some(AdapterListing::EnsureExist), "{}", context());
    }
    assert!(!after.reason.is_empty(), "a state without a reason: {}", context());
}

/// Returns every transition that the machine makes by itself.
fn explore() -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    for_each_inputs(|inputs| {
        for before in STATES {
            let entry =
                RetiredAdapter { id: id(), since: at(0), state: before, was_stable: false, reason: String::new() };
            let update = advance(&entry, inputs);
            assert_invariants(before, inputs, &update.entry);
            if before != update.entry.state {
                made.insert(format!("{before:?} to {:?}", update.entry.state));
            }
        }
    });
    made
}

#[test]
fn explored_transitions_equal_the_table() {
    // Transitions from and to use are made outside of the machine, in `retire`.
    let by_itself = |(froms, tos, _): &(&[OptionalState], &[OptionalState], &str)| {
        let pairs = froms.iter().flat_map(|from| tos.iter().map(move |to| (*from, *to)));
        pairs.filter_map(|(from, to)| Some((from?, to?))).filter(|(from, to)| from != to).collect::<Vec<_>>()
    };
    let outside =
        |to: &RetirementState, cause: &str| *to == RetirementState::Returning || cause == "it lost its weight again";
    let expected = TRANSITIONS.iter().flat_map(|row| by_itself(row).into_iter().filter(|(_, to)| !outside(to, row.2)));
    let expected: BTreeSet<String> = expected.map(|(from, to)| format!("{from:?} to {to:?}")).collect();
    let made = explore();
    let unused: Vec<_> = expected.difference(&made).collect();
    assert!(unused.is_empty(), "transitions that are never made: {unused:#?}");
    let surplus: Vec<_> = made.difference(&expected).collect();
    assert!(surplus.is_empty(), "transitions that are not in the table: {surplus:#?}");
}
