//! Tests of a sidecar that restarts next to a running server.

use crate::{
    state::PersistedState,
    testbed::{StateTestbed, pilot_directives},
};
use rollora_api::{operator_directives::OperatorDirectives, sidecar_status::AdapterState};
use std::time::Duration;

/// Restarts the sidecar with its persisted state, through the serialized text.
fn restart_sidecar(
    testbed: &mut StateTestbed,
    exist: &[&str],
    directives: Option<OperatorDirectives>,
) -> PersistedState {
    let text = serde_json::to_string(&testbed.state.to_persisted()).unwrap();
    let persisted: PersistedState = serde_json::from_str(&text).unwrap();
    assert_eq!(persisted, testbed.state.to_persisted(), "the state must survive serialization");
    testbed.restart_sidecar(persisted.clone());
    testbed.set_desired(exist, &[], directives);
    persisted
}

#[test]
fn restarted_sidecar_is_ready_without_verifying_again() {
    let mut testbed = StateTestbed::with_verified(&["v1", "v2"]);
    restart_sidecar(&mut testbed, &["v1", "v2"], None);
    assert!(!testbed.readiness().0, "nothing is known before the first poll");
    testbed.poll();
    assert_eq!(testbed.readiness(), (true, "Ready".to_owned()));
    assert_eq!((testbed.adapter_state("v1"), testbed.decided_calls()), (AdapterState::Verified, Vec::new()));
}

#[test]
fn adapter_listed_with_another_root_is_not_verified() {
    let mut testbed = StateTestbed::with_verified(&["v1", "v2", "v3"]);
    testbed.table.insert("v1".to_owned(), "/elsewhere".to_owned());
    testbed.table.remove("v2");
    restart_sidecar(&mut testbed, &["v1", "v2", "v3"], None);
    testbed.poll();
    let states = ["v1", "v2", "v3"].map(|name| testbed.adapter_state(name));
    assert_eq!(states, [AdapterState::SourceChanged, AdapterState::Pending, AdapterState::Verified]);
}

#[test]
fn restored_state_does_not_count_for_another_server_process() {
    for (listed, state) in [(false, AdapterState::Pending), (true, AdapterState::Loaded)] {
        let mut testbed = StateTestbed::with_verified(&["v1"]);
        testbed.process_start = Some("2");
        if !listed {
            testbed.table.clear();
        }
        restart_sidecar(&mut testbed, &["v1"], None);
        testbed.poll();
        assert_eq!((testbed.readiness().0, testbed.adapter_state("v1")), (false, state));
    }
}

#[test]
fn crash_during_a_load_is_found_after_a_sidecar_restart() {
    let mut testbed = StateTestbed::with_listed(&["v1"]);
    testbed.begin_decided_calls();
    testbed.process_start = Some("2");
    restart_sidecar(&mut testbed, &["v1"], None);
    testbed.poll();
    assert_eq!(
        (testbed.adapter_state("v1"), testbed.error_reason("v1")),
        (AdapterState::ServerDied, "ServerDied".to_owned())
    );
    assert_eq!(testbed.decided_calls(), Vec::<String>::new());
}

#[test]
fn crash_hold_survives_a_restart_but_not_a_new_source() {
    let mut testbed = StateTestbed::with_listed(&["bad"]);
    testbed.set_desired(&["bad"], &[], Some(pilot_directives(&["bad"])));
    testbed.begin_decided_calls();
    testbed.process_start = None;
    testbed.poll();
    assert_eq!(testbed.adapter_state("bad"), AdapterState::ServerDied);
    let error = testbed.adapter_status("bad").last_error;
    testbed.process_start = Some("2");
    let persisted = restart_sidecar(&mut testbed, &["bad"], Some(pilot_directives(&["bad"])));
    testbed.poll();
    assert_eq!(
        (testbed.adapter_state("bad"), testbed.adapter_status("bad").last_error),
        (AdapterState::ServerDied, error)
    );
    testbed.advance(Duration::from_hours(1));
    assert_eq!(testbed.decided_calls(), Vec::<String>::new(), "a pilot waits for the operator");
    // The id with another path is another adapter.
    let mut persisted = persisted;
    for adapter in persisted.adapters.values_mut() {
        "/adapters/other".clone_into(&mut adapter.source);
    }
    testbed.restart_sidecar(persisted);
    testbed.set_desired(&["bad"], &[], Some(pilot_directives(&["bad"])));
    testbed.poll();
    assert_eq!(testbed.decided_calls(), ["load bad"]);
}

#[test]
fn quarantine_survives_sidecar_and_server_restarts() {
    let mut testbed = StateTestbed::with_listed(&["bad"]);
    for process in ["2", "3"] {
        testbed.begin_decided_calls();
        // The server ends, and so does the sidecar before its next poll.
        testbed.process_start = Some(process);
        restart_sidecar(&mut testbed, &["bad"], None);
        testbed.poll();
        testbed.advance(Duration::from_secs(30));
    }
    for process in ["3", "4"] {
        testbed.process_start = Some(process);
        restart_sidecar(&mut testbed, &["bad"], None);
        testbed.poll();
        testbed.advance(Duration::from_hours(24));
        assert_eq!(
            (testbed.adapter_state("bad"), testbed.decided_calls()),
            (AdapterState::Quarantined, Vec::new()),
            "process {process}"
        );
        assert!(testbed.adapter_status("bad").last_error.unwrap().message.contains("not be retried on this server"));
        assert!(testbed.readiness().0, "it must not block readiness");
    }
}

#[test]
fn state_of_another_endpoint_or_unlisted_ids_is_dropped() {
    let mut testbed = StateTestbed::with_verified(&["v1"]);
    let mut persisted = testbed.state.to_persisted();
    restart_sidecar(&mut testbed, &["v2"], None);
    assert_eq!(testbed.state.to_persisted().adapters.len(), 0);
    if let Some(server) = &mut persisted.server {
        "http://elsewhere".clone_into(&mut server.identity.endpoint);
    }
    testbed.restart_sidecar(persisted);
    assert_eq!(testbed.state.to_persisted(), PersistedState::default());
}
