//! Tests of the pilot: which server is chosen, what is waited for, and what is rejected.

use super::*;
use rollora_api::sidecar_status::{ConfigStatus, ReportedError, ServerIdentity};
use std::sync::Arc;

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn current_hash() -> ContentHash {
    ContentHash("present".to_owned())
}

fn server(name: &str, adapters: &[(&str, AdapterState)]) -> ObservedServer {
    let adapter = |(id, state): &(&str, AdapterState)| AdapterStatus::new(AdapterId::new(*id).unwrap(), *state);
    let status = SidecarStatus {
        server: Some(ServerIdentity { endpoint: name.to_owned(), start: "1".to_owned() }),
        config: ConfigStatus { hash: Some(current_hash()), ..ConfigStatus::default() },
        adapters: adapters.iter().map(adapter).collect(),
        ..SidecarStatus::default()
    };
    ObservedServer::ready(name, status)
}

fn with_error(mut server: ObservedServer, reason: &str, attempts: u32) -> ObservedServer {
    if let Ok(status) = server.status.as_mut().map(Arc::make_mut) {
        let error = ReportedError { reason: reason.to_owned(), message: format!("vLLM said {reason}") };
        status.adapters[0].attempts = attempts;
        status.adapters[0].last_error = Some(Box::new(error));
    }
    server
}

fn unready(server: ObservedServer) -> ObservedServer {
    ObservedServer { ready: false, ..server }
}

fn stale(mut server: ObservedServer) -> ObservedServer {
    if let Ok(status) = server.status.as_mut().map(Arc::make_mut) {
        status.config.hash = Some(ContentHash("earlier".to_owned()));
    }
    server
}

fn tried_on(pod: &str, servers: &[ObservedServer]) -> PilotDecision {
    let pilot = Pilot { id: id("v2"), pod: pod.to_owned() };
    evaluate(&id("v2"), Some(&pilot), &[id("v1")], servers, Some(&current_hash()))
}

fn chosen(servers: &[ObservedServer]) -> PilotDecision {
    evaluate(&id("v2"), None, &[id("v1")], servers, Some(&current_hash()))
}

#[test]
fn pilot_is_the_server_with_fewest_serving_adapters() {
    let serves = [("v1", AdapterState::Verified)];
    let cases = [
        (vec![server("b", &[]), server("a", &[])], "a"),
        (vec![server("a", &serves), server("b", &[])], "b"),
        (vec![unready(server("a", &[])), server("b", &serves), server("c", &serves)], "b"),
        (vec![ObservedServer { status: Err("no answer".to_owned()), ..server("a", &[]) }, server("b", &serves)], "b"),
    ];
    for (servers, expected) in cases {
        assert_eq!(chosen(&servers), PilotDecision::Choose(expected.to_owned()), "{servers:?}");
    }
}

#[test]
fn only_ready_server_is_spared_if_another_is_alive() {
    let spare = vec![server("a", &[]), unready(server("b", &[]))];
    assert_eq!(chosen(&spare), PilotDecision::Choose("b".to_owned()));
    let mut dead = spare;
    dead[1].status = Err("no answer".to_owned());
    assert_eq!(chosen(&dead), PilotDecision::Choose("a".to_owned()));
}

#[test]
fn no_pilot_without_a_ready_server() {
    for servers in [vec![], vec![unready(server("a", &[]))]] {
        assert!(matches!(chosen(&servers), PilotDecision::NoReadyServer), "{servers:?}");
    }
}

#[test]
fn server_that_tried_the_adapter_is_chosen_even_if_down() {
    for state in [AdapterState::Loading, AdapterState::Failed, AdapterState::ServerDied, AdapterState::Quarantined] {
        let servers = [server("a", &[]), unready(server("b", &[("v2", state)]))];
        assert_eq!(chosen(&servers), PilotDecision::Choose("b".to_owned()), "{state:?}");
    }
}

#[test]
fn new_pilot_is_chosen_when_its_pod_is_gone() {
    assert_eq!(tried_on("gone", &[server("a", &[])]), PilotDecision::Choose("a".to_owned()));
}

#[test]
fn adapter_is_admitted_only_on_fresh_verification() {
    let verified = || server("a", &[("v2", AdapterState::Verified)]);
    assert_eq!(tried_on("a", &[verified()]), PilotDecision::Admit("a".to_owned()));
    assert!(matches!(tried_on("a", &[stale(verified())]), PilotDecision::Trying(_)));
}

#[test]
fn only_adapter_errors_reject_an_adapter() {
    use AdapterState::{Failed, Fetching, Loading, Quarantined, ServerDied, SourceChanged, SourceRefused};
    let on_a = |state, reason, attempts| with_error(server("a", &[("v2", state)]), reason, attempts);
    let with_retry = |mut server: ObservedServer| {
        if let Ok(status) = server.status.as_mut().map(Arc::make_mut) {
            status.adapters[0].next_try = Some(jiff::Timestamp::UNIX_EPOCH);
        }
        server
    };
    let with_server_problem = |mut server: ObservedServer| {
        if let Ok(status) = server.status.as_mut().map(Arc::make_mut) {
            status.problem =
                Some(ReportedError { reason: "Unauthorized".to_owned(), message: "the key is wrong".to_owned() });
        }
        server
    };
    let cases = [
        (on_a(Failed, "RankTooHigh", 1), true),
        (on_a(Failed, "BadAdapter", 1), true),
        (on_a(Failed, "NameConflict", 0), true),
        (on_a(Failed, "AdapterNotFound", 2), false),
        (on_a(Failed, "AdapterNotFound", 3), true),
        (on_a(Failed, "Timeout", 4), false),
        (on_a(Failed, "Timeout", 5), true),
        (with_server_problem(on_a(Failed, "BadAdapter", 9)), false),
        (on_a(ServerDied, "ServerDied", 1), true),
        (with_retry(on_a(ServerDied, "ServerDied", 1)), false),
        (on_a(Quarantined, "ServerDied", 1), true),
        (on_a(SourceChanged, "SourceChanged", 0), true),
        (on_a(Loading, "Timeout", 9), false),
        (on_a(Fetching, "HubUnreachable", 9), false),
        (on_a(Failed, "HubUnreachable", 9), false),
        (on_a(Failed, "HubRateLimited", 9), false),
        (on_a(Failed, "Disk", 9), false),
        (on_a(Failed, "Corrupt", 5), true),
        (on_a(Failed, "HubNotFound", 2), false),
        (on_a(Failed, "HubNotFound", 3), true),
        (on_a(Failed, "HubUnauthorized", 3), true),
        (on_a(Failed, "TooLarge", 3), true),
        (on_a(SourceRefused, "SourceNotAllowed", 0), true),
        (stale(on_a(ServerDied, "ServerDied", 1)), false),
    ];
    for (server, rejected) in cases {
        let decision = tried_on("a", std::slice::from_ref(&server));
        assert_eq!(matches!(decision, PilotDecision::Reject(_)), rejected, "{decision:?} for {server:?}");
    }
}

#[test]
fn only_a_second_death_of_another_server_quarantines() {
    let once = [server("b", &[("v2", AdapterState::ServerDied)])];
    let twice = [server("b", &[("v2", AdapterState::Quarantined)])];
    assert_eq!(quarantine_reason(&id("v2"), &once, Some(&current_hash())), None);
    assert!(
        quarantine_reason(&id("v2"), &twice, Some(&current_hash()))
            .is_some_and(|why| why.contains("the server b died"))
    );
    assert_eq!(quarantine_reason(&id("v2"), &twice.map(stale), Some(&current_hash())), None);
}

#[test]
fn download_that_blocks_the_engine_is_shown_as_loading() {
    let mut loading = server("a", &[("v2", AdapterState::Loading)]);
    if let Ok(status) = loading.status.as_mut().map(Arc::make_mut) {
        let message = "the engine does not respond during the download".to_owned();
        status.problem = Some(ReportedError { reason: "HubLoadBlocksServer".to_owned(), message });
    }
    assert_eq!(tried_on("a", &[loading]), PilotDecision::Trying("a is loading it".to_owned()));
}
