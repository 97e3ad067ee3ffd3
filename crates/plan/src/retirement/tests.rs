//! Retirement: the order of what is waited for, and every state that follows.

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

/// What a scene is made of.
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

/// Everything is well, and the weight was lost long ago.
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

fn advance_from(state: RetirementState, facts: &InputsFixture) -> RetirementUpdate {
    let content = current_hash();
    let scene = RetirementInputs {
        now: facts.now,
        cleanup: &facts.cleanup,
        paused: facts.paused,
        gitops_owner: facts.gitops_owner,
        unproven_reason: facts.unproven_reason,
        servers: facts.servers.as_deref(),
        other_pool_servers: facts.other_pool_servers.as_deref().ok_or(&NOT_ATTEMPTED),
        routers: facts.routers.as_deref(),
        content_hash: Some(&content),
        listing: facts.listing,
        needed: facts.needed,
        referenced_by: facts.referenced_by,
        file_text: Some(facts.file_text),
    };
    advance(&retired(state), scene)
}

fn next(state: RetirementState, facts: &InputsFixture) -> RetirementState {
    advance_from(state, facts).entry.state
}

use RetirementState as State;

#[test]
fn what_is_waited_for_comes_in_its_order_and_is_named() {
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
    assert_eq!((named.entry.state, named.entry.reason.as_str()), (State::StillInUse, "rewrite other names it"));
}

#[test]
fn use_seen_by_a_router_counts_and_silence_of_a_server_is_no_quiet() {
    let seen = InputsFixture { routers: Some(vec![router(Some(at(990)))]), ..all_clear() };
    assert_eq!(next(State::Waiting, &seen), State::StillInUse);
    let silent = ObservedServer { status: Err("no answer".to_owned()), ..server(AdapterState::Verified, None) };
    assert_eq!(next(State::Waiting, &InputsFixture { servers: Some(vec![silent]), ..all_clear() }), State::Waiting);
    assert_eq!(next(State::Waiting, &InputsFixture { servers: None, ..all_clear() }), State::Waiting);
    assert_eq!(next(State::Waiting, &InputsFixture { routers: None, ..all_clear() }), State::Waiting);
}

#[test]
fn what_servers_of_another_pool_read_in_the_same_file_is_taken_from_them_too() {
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
fn what_may_go_goes_as_the_policy_the_owner_and_the_file_say() {
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
    for (index, (facts, expected)) in cases.iter().enumerate() {
        assert_eq!(next(State::Waiting, facts), *expected, "case {index}");
    }
}

#[test]
fn it_is_gone_when_every_server_has_said_so_on_the_present_content() {
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
        let facts =
            InputsFixture { servers: Some(servers), listing: Some(AdapterListing::EnsureNotExist), ..all_clear() };
        assert_eq!(next(State::Unloading, &facts), expected, "{:?}", facts.servers);
    }
}

#[test]
fn an_entry_that_is_put_back_belongs_to_whoever_did_it() {
    for from in [State::Unloading, State::Gone, State::Relisted] {
        assert_eq!(next(from, &all_clear()), State::Relisted, "{from:?}");
    }
}

/// One thing after another becomes true, in each of the orders that there are: it begins to go with the last of them, not
/// before, and whatever came first.
#[test]
fn it_goes_with_the_last_condition_in_every_order_of_arrival() {
    let arrive: [fn(&mut InputsFixture); 7] = [
        |facts| facts.unproven_reason = None,
        |facts| facts.servers = all_clear().servers,
        |facts| facts.routers = all_clear().routers,
        |facts| facts.now = at(1000),
        |facts| facts.paused = false,
        |facts| facts.referenced_by = None,
        |facts| facts.listing = Some(AdapterListing::EnsureExist),
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
    for _ in 0..arrive.len() {
        let longer = |order: &Vec<usize>| {
            let order = order.clone();
            (0..arrive.len()).filter(move |index| !order.contains(index)).collect::<Vec<_>>()
        };
        orders = orders
            .iter()
            .flat_map(|order| longer(order).into_iter().map(|index| [order.as_slice(), &[index]].concat()))
            .collect();
    }
    assert_eq!(orders.len(), 5040);
    for order in orders {
        let (mut facts, mut state) = (nothing(), State::Waiting);
        for (count, index) in order.iter().enumerate() {
            arrive[*index](&mut facts);
            state = next(state, &facts);
            let last = count + 1 == arrive.len();
            assert_eq!(state == State::Unlisting, last, "{order:?} after {count}: {state:?}");
            assert!(last || matches!(state, State::Waiting | State::StillInUse), "{order:?} after {count}: {state:?}");
        }
    }
}

#[test]
fn what_comes_up_before_the_entry_has_moved_keeps_it() {
    let used = || Some(vec![server(AdapterState::Verified, Some(at(999)))]);
    for (what, facts, expected) in [
        ("nothing", all_clear(), State::Unlisting),
        ("somebody uses it", InputsFixture { servers: used(), ..all_clear() }, State::StillInUse),
        ("somebody names it", InputsFixture { referenced_by: Some("rewrite other"), ..all_clear() }, State::StillInUse),
        ("the Rollout is paused", InputsFixture { paused: true, ..all_clear() }, State::Waiting),
        (
            "a router is behind",
            InputsFixture { unproven_reason: Some("waits for routers"), ..all_clear() },
            State::Waiting,
        ),
        ("a GitOps owner", InputsFixture { gitops_owner: Some("Argo CD"), ..all_clear() }, State::Suggested),
        (
            "it has moved",
            InputsFixture { servers: used(), listing: Some(AdapterListing::EnsureNotExist), ..all_clear() },
            State::Unloading,
        ),
    ] {
        assert_eq!(next(State::Unlisting, &facts), expected, "{what}");
    }
}

#[test]
fn without_a_sidecar_what_vllm_lists_tells_that_it_is_gone() {
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
fn quiet_counts_only_when_uses_were_read_after_it() {
    let quiet_for = i64::try_from(Cleanup::default().quiet_for.get().as_secs()).unwrap();
    let read_at = |seconds: i64, used: Option<Timestamp>| {
        let mut server = server(AdapterState::Verified, used);
        Arc::make_mut(server.status.as_mut().unwrap()).usage_read_at = Some(at(seconds));
        server
    };
    let state = |servers: Vec<ObservedServer>| {
        let looked = advance_from(State::Waiting, &InputsFixture { servers: Some(servers), ..all_clear() });
        (looked.entry.state, looked.entry.reason)
    };
    assert_eq!(state(vec![read_at(quiet_for, None)]).0, State::Unlisting);
    let (before, why) = state(vec![read_at(quiet_for, None), read_at(quiet_for - 1, None)]);
    assert_eq!(before, State::Waiting);
    assert!(why.contains("and the uses of a were read at"), "{why}");
    let used = Some(at(100));
    assert_eq!(state(vec![read_at(99 + quiet_for, used)]).0, State::StillInUse);
    assert_eq!(state(vec![read_at(100 + quiet_for, used)]).0, State::Unlisting);
}
