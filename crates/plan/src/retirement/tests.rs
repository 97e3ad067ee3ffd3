//! Retirement: the order of what is waited for, and every state that follows.

use super::*;
use rollora_api::{
    router_report::RulesReport,
    sidecar_status::{AdapterStatus, ConfigStatus, ServerIdentity},
};
use std::sync::Arc;

const TEXT: &str = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      source: a\n";

fn id() -> AdapterId {
    AdapterId::new("v1").unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_000_000 + seconds).unwrap()
}

fn present() -> ContentHash {
    ContentHash("present".to_owned())
}

fn server(state: AdapterState, last_used: Option<Timestamp>) -> Server {
    let adapter = AdapterStatus { last_used, ..AdapterStatus::new(id(), state) };
    let status = SidecarStatus {
        server: Some(ServerIdentity { endpoint: "a".to_owned(), start: "1".to_owned() }),
        config: ConfigStatus { hash: Some(present()), ..ConfigStatus::default() },
        adapters: vec![adapter],
        ..SidecarStatus::default()
    };
    Server::ready("a", status)
}

fn router(last_used: Option<Timestamp>) -> Router {
    let last_used = last_used.map(|used| ("v1".to_owned(), used)).into_iter().collect();
    Router { name: "r".to_owned(), report: Ok(RulesReport { last_used, ..RulesReport::default() }.into()) }
}

fn retired(state: RetirementState) -> RetiredAdapter {
    RetiredAdapter { id: id(), since: at(0), state, was_stable: false, reason: String::new() }
}

/// What a scene is made of.
struct Facts {
    now: Timestamp,
    cleanup: Cleanup,
    paused: bool,
    gitops_owner: Option<&'static str>,
    unproven: Option<&'static str>,
    servers: Option<Vec<Server>>,
    sharers: Option<Vec<Server>>,
    routers: Option<Vec<Router>>,
    listing: Option<Listing>,
    wanted: bool,
    named_by: Option<&'static str>,
    text: &'static str,
}

/// Everything is well, and the weight was lost long ago.
fn well() -> Facts {
    Facts {
        now: at(1000),
        cleanup: Cleanup::default(),
        paused: false,
        gitops_owner: None,
        unproven: None,
        servers: Some(vec![server(AdapterState::Verified, None)]),
        sharers: Some(Vec::new()),
        routers: Some(vec![router(None)]),
        listing: Some(Listing::Exist),
        wanted: false,
        named_by: None,
        text: TEXT,
    }
}

const AWAY: Unseen = Unseen::NotAsked;

fn look(state: RetirementState, facts: &Facts) -> Looked {
    let content = present();
    let scene = Scene {
        now: facts.now,
        cleanup: &facts.cleanup,
        paused: facts.paused,
        gitops_owner: facts.gitops_owner,
        unproven: facts.unproven,
        servers: facts.servers.as_deref(),
        sharers: facts.sharers.as_deref().ok_or(&AWAY),
        routers: facts.routers.as_deref(),
        content: Some(&content),
        listing: facts.listing,
        wanted: facts.wanted,
        named_by: facts.named_by,
        text: Some(facts.text),
    };
    advance(&retired(state), scene)
}

fn next(state: RetirementState, facts: &Facts) -> RetirementState {
    look(state, facts).entry.state
}

use RetirementState as State;

#[test]
fn what_is_waited_for_comes_in_its_order_and_is_named() {
    let unproven = Facts { unproven: Some("router-1 lags"), named_by: Some("rewrite other"), ..well() };
    assert_eq!(look(State::Waiting, &unproven).entry.reason, "router-1 lags");
    let used = vec![server(AdapterState::Verified, Some(at(950)))];
    let busy = look(State::Waiting, &Facts { servers: Some(used), named_by: Some("rewrite other"), ..well() });
    assert!(busy.entry.reason.contains("was used at") && busy.entry.reason.contains("(a)"), "{}", busy.entry.reason);
    assert_eq!(busy.again, Again::At(at(950 + 120)));
    let early = look(State::Waiting, &Facts { now: at(130), named_by: Some("rewrite other"), ..well() });
    assert!(early.entry.reason.contains("delay"), "{}", early.entry.reason);
    assert_eq!(early.again, Again::At(at(300)));
    let named = look(State::Waiting, &Facts { named_by: Some("rewrite other"), ..well() });
    assert_eq!((named.entry.state, named.entry.reason.as_str()), (State::StillInUse, "rewrite other names it"));
}

#[test]
fn use_seen_by_a_router_counts_and_silence_of_a_server_is_no_quiet() {
    let seen = Facts { routers: Some(vec![router(Some(at(990)))]), ..well() };
    assert_eq!(next(State::Waiting, &seen), State::StillInUse);
    let silent = Server { status: Err("no answer".to_owned()), ..server(AdapterState::Verified, None) };
    assert_eq!(next(State::Waiting, &Facts { servers: Some(vec![silent]), ..well() }), State::Waiting);
    assert_eq!(next(State::Waiting, &Facts { servers: None, ..well() }), State::Waiting);
    assert_eq!(next(State::Waiting, &Facts { routers: None, ..well() }), State::Waiting);
}

#[test]
fn what_servers_of_another_pool_read_in_the_same_file_is_taken_from_them_too() {
    let sharing = |state, used| Facts { sharers: Some(vec![server(state, used)]), ..well() };
    assert_eq!(next(State::Waiting, &sharing(AdapterState::Verified, Some(at(950)))), State::StillInUse);
    assert_eq!(next(State::Waiting, &sharing(AdapterState::Verified, None)), State::Unlisting);
    assert_eq!(next(State::Waiting, &Facts { sharers: None, ..well() }), State::Waiting);

    let unlisted = |state| Facts {
        servers: Some(vec![server(AdapterState::Gone, None)]),
        listing: Some(Listing::NotExist),
        ..sharing(state, None)
    };
    assert_eq!(next(State::Unloading, &unlisted(AdapterState::Verified)), State::Unloading);
    assert_eq!(next(State::Unloading, &unlisted(AdapterState::Gone)), State::Gone);
}

#[test]
fn what_may_go_goes_as_the_policy_the_owner_and_the_file_say() {
    let policy = |policy| Facts { cleanup: Cleanup { policy, ..Cleanup::default() }, ..well() };
    let listing = |listing| Facts { listing, ..well() };
    let cases = [
        (well(), State::Unlisting),
        (policy(CleanupPolicy::Keep), State::Kept),
        (policy(CleanupPolicy::Suggest), State::Suggested),
        (Facts { gitops_owner: Some("Flux"), ..well() }, State::Suggested),
        (Facts { paused: true, ..well() }, State::Waiting),
        (Facts { text: "not: [yaml", ..well() }, State::Suggested),
        (listing(Some(Listing::NotExist)), State::Unloading),
        (listing(Some(Listing::Absent)), State::Kept),
        (listing(Some(Listing::Both)), State::Suggested),
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
    let held = Server { ready: false, ..server(AdapterState::UnloadHeld, None) };
    let silent = Server { status: Err("no answer".to_owned()), ..gone() };
    let cases = [
        (vec![gone()], State::Gone),
        (vec![gone(), server(AdapterState::Unloading, None)], State::Unloading),
        (vec![gone(), behind], State::Unloading),
        (vec![gone(), held], State::Unloading),
        (vec![silent], State::Unloading),
    ];
    for (servers, expected) in cases {
        let facts = Facts { servers: Some(servers), listing: Some(Listing::NotExist), ..well() };
        assert_eq!(next(State::Unloading, &facts), expected, "{:?}", facts.servers);
    }
}

#[test]
fn an_entry_that_is_put_back_belongs_to_whoever_did_it() {
    for from in [State::Unloading, State::Gone, State::Relisted] {
        assert_eq!(next(from, &well()), State::Relisted, "{from:?}");
    }
}

/// One thing after another becomes true, in each of the orders that there are: it begins to go with the last of them, not
/// before, and whatever came first.
#[test]
fn it_goes_with_the_last_condition_in_every_order_of_arrival() {
    let arrive: [fn(&mut Facts); 7] = [
        |facts| facts.unproven = None,
        |facts| facts.servers = well().servers,
        |facts| facts.routers = well().routers,
        |facts| facts.now = at(1000),
        |facts| facts.paused = false,
        |facts| facts.named_by = None,
        |facts| facts.listing = Some(Listing::Exist),
    ];
    let nothing = || Facts {
        now: at(10),
        paused: true,
        unproven: Some("router-1 lags"),
        servers: Some(vec![server(AdapterState::Verified, Some(at(990)))]),
        routers: None,
        listing: None,
        named_by: Some("rewrite other"),
        ..well()
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
        ("nothing", well(), State::Unlisting),
        ("somebody uses it", Facts { servers: used(), ..well() }, State::StillInUse),
        ("somebody names it", Facts { named_by: Some("rewrite other"), ..well() }, State::StillInUse),
        ("the Rollout is paused", Facts { paused: true, ..well() }, State::Waiting),
        ("a router is behind", Facts { unproven: Some("waits for routers"), ..well() }, State::Waiting),
        ("a GitOps owner", Facts { gitops_owner: Some("Argo CD"), ..well() }, State::Suggested),
        ("it has moved", Facts { servers: used(), listing: Some(Listing::NotExist), ..well() }, State::Unloading),
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
        Facts { servers: Some(vec![server]), listing: Some(Listing::NotExist), ..well() }
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
    let state = |servers: Vec<Server>| {
        let looked = look(State::Waiting, &Facts { servers: Some(servers), ..well() });
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
