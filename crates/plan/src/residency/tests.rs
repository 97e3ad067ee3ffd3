//! Tests of the residency gate, and of the servers that are known to lack an adapter.

use super::*;
use rollora_api::sidecar_status::{AdapterStatus, ConfigStatus, ServerIdentity};
use std::sync::Arc;

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn current_hash() -> ContentHash {
    ContentHash("present".to_owned())
}

fn server(state: Option<AdapterState>) -> ObservedServer {
    let adapter = |state| AdapterStatus::new(id("v2"), state);
    let status = SidecarStatus {
        server: Some(ServerIdentity { endpoint: "a".to_owned(), start: "1".to_owned() }),
        config: ConfigStatus { hash: Some(current_hash()), ..ConfigStatus::default() },
        adapters: state.map(adapter).into_iter().collect(),
        ..SidecarStatus::default()
    };
    ObservedServer::ready("a", status)
}

fn with_status(mut server: ObservedServer, change: impl FnOnce(&mut SidecarStatus)) -> ObservedServer {
    if let Ok(status) = server.status.as_mut().map(Arc::make_mut) {
        change(status);
    }
    server
}

fn now() -> Timestamp {
    Timestamp::from_second(1_000_000).unwrap()
}

fn ago(seconds: i64) -> Timestamp {
    now() - jiff::SignedDuration::from_secs(seconds)
}

fn is_open(proof: ResidencyProof, servers: &[ObservedServer]) -> bool {
    ResidencyGate::evaluate(&id("v2"), proof, servers, Some(&current_hash()), now()).is_open()
}

#[test]
fn gate_opens_only_if_every_ready_server_has_verified() {
    let verified = || server(Some(AdapterState::Verified));
    let unready = |server| ObservedServer { ready: false, ..server };
    let silent = ObservedServer { status: Err("no answer".to_owned()), ..verified() };
    let behind = with_status(verified(), |status| status.config.hash = None);
    let down = with_status(verified(), |status| status.server = None);
    let held_back = || with_status(server(None), |status| status.readiness.reason = ADAPTERS_NOT_VERIFIED.to_owned());
    let held_back_by_old_content = || with_status(held_back(), |status| status.config.hash = None);
    let suspect = || with_status(server(None), |status| status.readiness.reason = SUSPECT.to_owned());
    let terminating = |server| ObservedServer { terminating: true, ..server };
    let unready_for = |seconds, server| ObservedServer { ready: false, unready_since: Some(ago(seconds)), ..server };
    let cases = [
        ("no server", vec![], false),
        ("one that has it", vec![verified()], true),
        ("no Ready server", vec![unready(verified())], false),
        ("one of two", vec![verified(), server(None)], false),
        ("the other is not Ready, and may become Ready without it", vec![verified(), unready(server(None))], false),
        ("the other is not Ready, and waits for what serves", vec![verified(), unready(held_back())], true),
        ("the other waits for what served before", vec![verified(), unready(held_back_by_old_content())], false),
        ("the other is not Ready, and has it", vec![verified(), unready(verified())], true),
        ("the other is being deleted", vec![verified(), terminating(unready(server(None)))], true),
        ("the other's sidecar has just failed", vec![verified(), unready_for(14, silent.clone())], false),
        ("the other's sidecar failed a while ago", vec![verified(), unready_for(15, silent.clone())], true),
        ("the other's vLLM has just failed", vec![verified(), unready_for(0, down.clone())], false),
        ("the other's vLLM failed a while ago", vec![verified(), unready_for(60, down.clone())], true),
        ("the other's vLLM is down since an unknown time", vec![verified(), unready(down.clone())], true),
        ("the other has just become suspect", vec![verified(), unready_for(14, suspect())], false),
        ("the other has been suspect for a while", vec![verified(), unready_for(15, suspect())], true),
        ("one cannot be queried", vec![verified(), silent], false),
        ("one has old content", vec![behind], false),
        ("vLLM is down", vec![down], false),
    ];
    for (what, servers, expected) in cases {
        assert_eq!(is_open(ResidencyProof::Verified, &servers), expected, "{what}");
    }
}

#[test]
fn only_the_state_verified_opens_the_gate() {
    use AdapterState as State;
    for state in [
        State::Pending,
        State::AwaitingAdmission,
        State::Loading,
        State::Loaded,
        State::Failed,
        State::ServerDied,
        State::Quarantined,
        State::Rejected,
        State::SourceChanged,
        State::Unloading,
        State::UnloadHeld,
        State::Gone,
        State::Unlisted,
        State::InBothLists,
    ] {
        assert!(!is_open(ResidencyProof::Verified, &[server(Some(state))]), "{state:?}");
    }
}

#[test]
fn registered_suffices_with_residency_registered() {
    assert!(is_open(ResidencyProof::Registered, &[server(Some(AdapterState::Loaded))]));
    assert!(!is_open(ResidencyProof::Registered, &[server(Some(AdapterState::Unloading))]));
}

#[test]
fn unreachable_server_proves_neither_loss_nor_service() {
    let silent = ObservedServer { status: Err("no answer".to_owned()), ..server(None) };
    assert!(servers_lacking(&id("v2"), std::slice::from_ref(&silent)).is_empty());
    assert!(!could_serve(&id("v2"), &[silent]));
    assert_eq!(servers_lacking(&id("v2"), &[server(None)]).len(), 1);
    assert!(servers_lacking(&id("v2"), &[ObservedServer { ready: false, ..server(None) }]).is_empty());
    assert!(could_serve(&id("v2"), &[server(Some(AdapterState::UnloadHeld))]));
}

#[test]
fn base_model_serves_its_own_name() {
    let base = with_status(server(None), |status| status.base_models = vec!["base".to_owned()]);
    assert!(could_serve(&id("base"), &[base]));
}

#[test]
fn missing_servers_are_named_with_the_reason() {
    let gate = ResidencyGate::evaluate(
        &id("v2"),
        ResidencyProof::Verified,
        &[server(Some(AdapterState::Loading))],
        Some(&current_hash()),
        now(),
    );
    assert_eq!(gate.missing, ["a: is loading it"]);
    let hidden = with_status(server(None), |status| status.config.hash = Some(ContentHash("another".to_owned())));
    let gate = ResidencyGate::evaluate(&id("v2"), ResidencyProof::Verified, &[hidden], Some(&current_hash()), now());
    assert!(gate.missing[0].ends_with("mount the whole ConfigMap, without items"), "{:?}", gate.missing);
}
