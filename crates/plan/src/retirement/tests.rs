//! Tests of the retirement machine: the order of blockers, and the state after each.

use super::*;
use rollora_api::{
    router_report::RulesReport,
    sidecar_status::{AdapterStatus, ConfigStatus, ServerIdentity},
};
use std::sync::Arc;

const FILE_TEXT: &str = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      source: a\n";

fn id() -> AdapterId {
    AdapterId::new("v1").unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn current_hash() -> ContentHash {
    ContentHash("present".to_owned())
}

fn server(state: AdapterState, last_used: Option<Timestamp>) -> ObservedServer {
    let adapter = AdapterStatus { last_used, ..AdapterStatus::new(id(), state) };
    let status = SidecarStatus {
        server: Some(ServerIdentity { endpoint: "a".to_owned(), start: "1".to_owned() }),
        config: ConfigStatus { hash: Some(current_hash()), ..ConfigStatus::default() },
        adapters: vec![adapter],
        ..SidecarStatus::default()
    };
    ObservedServer::ready("a", status)
}

fn router(last_used: Option<Timestamp>) -> ObservedRouter {
    let last_used = last_used.map(|used| ("v1".to_owned(), used)).into_iter().collect();
    ObservedRouter { name: "r".to_owned(), report: Ok(RulesReport { last_used, ..RulesReport::default() }.into()) }
}

fn retired(state: RetirementState) -> RetiredAdapter {
    RetiredAdapter { id: id(), since: at(0), state, was_stable: false, reason: String::new() }
}

/// Owned values for [`RetirementInputs`].
struct InputsFixture {
    now: Timestamp,
    cleanup: Cleanup,
    paused: bool,
    gitops_owner: Option<&'static str>,
    unproven_reason: Option<&'static str>,
    servers: Option<Vec<ObservedServer>>,
    other_pool_servers: Option<Vec<ObservedServer>>,
    routers: Option<Vec<ObservedRouter>>,
    listing: Option<AdapterListing>,
    needed: bool,
    referenced_by: Option<&'static str>,
    file_text: &'static str,
}

/// Inputs without any blocker; the weight was lost long ago.
fn all_clear() -> InputsFixture {
    InputsFixture {
        now: at(1000),
        cleanup: Cleanup::default(),
        paused: false,
        gitops_owner: None,
        unproven_reason: None,
        servers: Some(vec![server(AdapterState::Verified, None)]),
        other_pool_servers: Some(Vec::new()),
        routers: Some(vec![router(None)]),
        listing: Some(AdapterListing::EnsureExist),
        needed: false,
        referenced_by: None,
        file_text: FILE_TEXT,
    }
}

const NOT_ATTEMPTED: ObserveError = ObserveError::NotAttempted;

fn advance_from(state: RetirementState, fixture: &InputsFixture) -> RetirementUpdate {
    let content = current_hash();
    let inputs = RetirementInputs {
        now: fixture.now,
        cleanup: &fixture.cleanup,
        paused: fixture.paused,
        gitops_owner: fixture.gitops_owner,
        unproven_reason: fixture.unproven_reason,
        servers: fixture.servers.as_deref(),
        other_pool_servers: fixture.other_pool_servers.as_deref().ok_or(&NOT_ATTEMPTED),
        routers: fixture.routers.as_deref(),
        content_hash: Some(&content),
        listing: fixture.listing,
        needed: fixture.needed,
        referenced_by: fixture.referenced_by,
        file_text: Some(fixture.file_text),
    };
    advance(&retired(state), inputs)
}

fn next(state: RetirementState, fixture: &InputsFixture) -> RetirementState {
    advance_from(state, fixture).entry.state
}

use RetirementState as State;

#[test]
fn blockers_are_reported_in_order() {
    let unproven =
        InputsFixture { unproven_reason: Some("router-1 lags"), referenced_by: Some("rewrite other"), ..all_clear() };
    assert_eq!(advance_from(State::Waiting, &unproven).entry.reason, "router-1 lags");
    let used = vec![server(AdapterState::Verified, Some(at(950)))];
    let busy = advance_from(
        State::Waiting,
        &InputsFixture { servers: Some(used), referenced_by: Some("rewrite other"), ..all_clear() },
    );
    assert!(busy.entry.reason.contains("was used at") && busy.entry.reason.contains("(a)"), "{}", busy.entry.reason);
    assert_eq!(busy.requeue, RequeueWhen::At(at(950 + 120)));
    let early = advance_from(
        State::Waiting,
        &InputsFixture { now: at(130), referenced_by: Some("rewrite other"), ..all_clear() },
    );
    assert!(early.entry.reason.contains("delay"), "{}", early.entry.reason);
    assert_eq!(early.requeue, RequeueWhen::At(at(300)));
    let named = advance_from(State::Waiting, &InputsFixture { referenced_by: Some("rewrite other"), ..all_clear() });
    assert_eq!((named.entry.state, named.entry.reason.as_str()), (State::StillInUse, "rewrite other references it"));
}

#[test]
fn router_usage_counts_and_unreachable_servers_block() {
    let used_by_router = InputsFixture { routers: Some(vec![router(Some(at(990)))]), ..all_clear() };
    assert_eq!(next(State::Waiting, &used_by_router), State::StillInUse);
    let silent = ObservedServer { status: Err("no answer".to_owned()), ..server(AdapterState::Verified, None) };
    assert_eq!(next(State::Waiting, &InputsFixture { servers: Some(vec![silent]), ..all_clear() }), State::Waiting);
    assert_eq!(next(State::Waiting, &InputsFixture { servers: None, ..all_clear() }), State::Waiting);
    assert_eq!(next(State::Waiting, &InputsFixture { routers: None, ..all_clear() }), State::Waiting);
}

#[test]
fn servers_of_other_pools_block_and_must_unload() {
    let sharing = |state, used| InputsFixture { other_pool_servers: Some(vec![server(state, used)]), ..all_clear() };
    assert_eq!(next(State::Waiting, &sharing(AdapterState::Verified, Some(at(950)))), State::StillInUse);
    assert_eq!(next(State::Waiting, &sharing(AdapterState::Verified, None)), State::Unlisting);
    assert_eq!(next(State::Waiting, &InputsFixture { other_pool_servers: None, ..all_clear() }), State::Waiting);

    let unlisted = |state| InputsFixture {
        servers: Some(vec![server(AdapterState::Gone, None)]),
        listing: Some(AdapterListing::EnsureNotExist),
        ..sharing(state, None)
    };
    assert_eq!(next(State::Unloading, &unlisted(AdapterState::Verified)), State::Unloading);
    assert_eq!(next(State::Unloading, &unlisted(AdapterState::Gone)), State::Gone);
}

#[test]
fn cleanup_follows_policy_owner_and_file() {
    let policy = |policy| InputsFixture { cleanup: Cleanup { policy, ..Cleanup::default() }, ..all_clear() };
    let listing = |listing| InputsFixture { listing, ..all_clear() };
    let cases = [
        (all_clear(), State::Unlisting),
        (policy(CleanupPolicy::Keep), State::Kept),
        (policy(CleanupPolicy::Suggest), State::Suggested),
        (InputsFixture { gitops_owner: Some("Flux"), ..all_clear() }, State::Suggested),
        (InputsFixture { paused: true, ..all_clear() }, State::Waiting),
        (InputsFixture { file_text: "not: [yaml", ..all_clear() }, State::Suggested),
        (listing(Some(AdapterListing::EnsureNotExist)), State::Unloading),
        (listing(Some(AdapterListing::Absent)), State::Kept),
        (listing(Some(AdapterListing::Both)), State::Suggested),
        (listing(None), State::Waiting),
    ];
    for (index, (fixture, expected)) in cases.iter().enumerate() {
        assert_eq!(next(State::Waiting, fixture), *expected, "case {index}");
    }
}

#[test]
fn gone_needs_every_server_to_confirm_current_content() {
    let gone = || server(AdapterState::Gone, None);
    let mut behind = gone();
    if let Ok(status) = behind.status.as_mut().map(Arc::make_mut) {
        status.config.hash = None;
    }
    let held = ObservedServer { ready: false, ..server(AdapterState::UnloadHeld, None) };
    let silent = ObservedServer { status: Err("no answer".to_owned()), ..gone() };
    let cases = [
        (vec![gone()], State::Gone),
        (vec![gone(), server(AdapterState::Unloading, None)], State::Unloading),
        (vec![gone(), behind], State::Unloading),
        (vec![gone(), held], State::Unloading),
        (vec![silent], State::Unloading),
    ];
    for (servers, expected) in cases {
        let fixture =
            InputsFixture { servers: Some(servers), listing: Some(AdapterListing::EnsureNotExist), ..all_clear() };
        assert_eq!(next(State::Unloading, &fixture), expected, "{:?}", fixture.servers);
    }
}

#[test]
fn relisted_entry_is_left_alone() {
    for from in [State::Unloading, State::Gone, State::Relisted] {
        assert_eq!(next(from, &all_clear()), State::Relisted, "{from:?}");
    }
}

/// Makes the conditions true one by one, in every possible order: unlisting must begin with the last of them, and not
/// before.
#[test]
fn unlisting_begins_with_the_last_condition_in_any_order() {
    let changes: [fn(&mut InputsFixture); 7] = [
        |fixture| fixture.unproven_reason = None,
        |fixture| fixture.servers = all_clear().servers,
        |fixture| fixture.routers = all_clear().routers,
        |fixture| fixture.now = at(1000),
        |fixture| fixture.paused = false,
        |fixture| fixture.referenced_by = None,
        |fixture| fixture.listing = Some(AdapterListing::EnsureExist),
    ];
    let nothing = || InputsFixture {
        now: at(10),
        paused: true,
        unproven_reason: Some("router-1 lags"),
        servers: Some(vec![server(AdapterState::Verified, Some(at(990)))]),
        routers: None,
        listing: None,
        referenced_by: Some("rewrite other"),
        ..all_clear()
    };
    let mut orders = vec![Vec::new()];
    for _ in 0..changes.len() {
        let longer = |order: &Vec<usize>| {
            let order = order.clone();
            (0..changes.len()).filter(move |index| !order.contains(index)).collect::<Vec<_>>()
        };
        orders = orders
            .iter()
            .flat_map(|order| longer(order).into_iter().map(|index| [order.as_slice(), &[index]].concat()))
            .collect();
    }
    assert_eq!(orders.len(), 5040);
    for order in orders {
        let (mut fixture, mut state) = (nothing(), State::Waiting);
        for (count, index) in order.iter().enumerate() {
            changes[*index](&mut fixture);
            state = next(state, &fixture);
            let last = count + 1 == changes.len();
            assert_eq!(state == State::Unlisting, last, "{order:?} after {count}: {state:?}");
            assert!(last || matches!(state, State::Waiting | State::StillInUse), "{order:?} after {count}: {state:?}");
        }
    }
}

#[test]
fn new_blocker_stops_unlisting_before_the_edit() {
    let used = || Some(vec![server(AdapterState::Verified, Some(at(999)))]);
    for (what, fixture, expected) in [
        ("no blocker", all_clear(), State::Unlisting),
        ("it is used", InputsFixture { servers: used(), ..all_clear() }, State::StillInUse),
        ("it is referenced", InputsFixture { referenced_by: Some("rewrite other"), ..all_clear() }, State::StillInUse),
        ("the Rollout is paused", InputsFixture { paused: true, ..all_clear() }, State::Waiting),
        (
            "a router is behind",
            InputsFixture { unproven_reason: Some("waits for routers"), ..all_clear() },
            State::Waiting,
        ),
        ("a GitOps owner", InputsFixture { gitops_owner: Some("Argo CD"), ..all_clear() }, State::Suggested),
        (
            "its entry has moved",
            InputsFixture { servers: used(), listing: Some(AdapterListing::EnsureNotExist), ..all_clear() },
            State::Unloading,
        ),
    ] {
        assert_eq!(next(State::Unlisting, &fixture), expected, "{what}");
    }
}

#[test]
fn without_sidecar_the_vllm_list_confirms_an_unload() {
    let listing = |state| {
        let mut server = server(state, None);
        let status = Arc::make_mut(server.status.as_mut().unwrap());
        status.readiness.reason = NO_SIDECAR.to_owned();
        status.config = ConfigStatus::default();
        InputsFixture { servers: Some(vec![server]), listing: Some(AdapterListing::EnsureNotExist), ..all_clear() }
    };
    assert_eq!(next(State::Unloading, &listing(AdapterState::Loaded)), State::Unloading);
    assert_eq!(next(State::Unloading, &listing(AdapterState::Gone)), State::Gone);
}

#[test]
fn unused_period_counts_only_with_newer_usage_data() {
    let quiet_for = i64::try_from(Cleanup::default().quiet_for.get().as_secs()).unwrap();
    let read_at = |seconds: i64, used: Option<Timestamp>| {
        let mut server = server(AdapterState::Verified, used);
        Arc::make_mut(server.status.as_mut().unwrap()).usage_read_at = Some(at(seconds));
        server
    };
    let state = |servers: Vec<ObservedServer>| {
        let update = advance_from(State::Waiting, &InputsFixture { servers: Some(servers), ..all_clear() });
        (update.entry.state, update.entry.reason)
    };
    assert_eq!(state(vec![read_at(quiet_for, None)]).0, State::Unlisting);
    let (before, why) = state(vec![read_at(quiet_for, None), read_at(quiet_for - 1, None)]);
    assert_eq!(before, State::Waiting);
    assert!(why.contains("and its use on a is known only until"), "{why}");
    let used = Some(at(100));
    assert_eq!(state(vec![read_at(99 + quiet_for, used)]).0, State::StillInUse);
    assert_eq!(state(vec![read_at(100 + quiet_for, used)]).0, State::Unlisting);
}
