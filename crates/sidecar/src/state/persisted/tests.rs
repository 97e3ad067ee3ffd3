//! What a sidecar remembers when it starts again beside its server.

use crate::{
    state::PersistedState,
    testbed::{StateTestbed, pilot_directives},
};
use rollora_api::{operator_directives::OperatorDirectives, sidecar_status::AdapterState};
use std::time::Duration;

/// The sidecar starts again: what it kept goes through its text.
fn restart_sidecar(bed: &mut StateTestbed, exist: &[&str], key: Option<OperatorDirectives>) -> PersistedState {
    let text = serde_json::to_string(&bed.state.to_persisted()).unwrap();
    let kept: PersistedState = serde_json::from_str(&text).unwrap();
    assert_eq!(kept, bed.state.to_persisted(), "what is written is read back");
    bed.restart_sidecar(kept.clone());
    bed.set_desired(exist, &[], key);
    kept
}

#[test]
fn a_sidecar_that_starts_again_beside_the_same_server_is_ready_at_once_and_proves_nothing_twice() {
    let mut bed = StateTestbed::with_verified(&["v1", "v2"]);
    restart_sidecar(&mut bed, &["v1", "v2"], None);
    assert!(!bed.readiness().0, "nothing is known before it has looked");
    bed.poll();
    assert_eq!(bed.readiness(), (true, "Ready".to_owned()));
    assert_eq!((bed.adapter_state("v1"), bed.decided_calls()), (AdapterState::Verified, Vec::new()));
}

#[test]
fn what_is_listed_otherwise_than_it_was_is_not_verified() {
    let mut bed = StateTestbed::with_verified(&["v1", "v2", "v3"]);
    bed.table.insert("v1".to_owned(), "/elsewhere".to_owned());
    bed.table.remove("v2");
    restart_sidecar(&mut bed, &["v1", "v2", "v3"], None);
    bed.poll();
    let states = ["v1", "v2", "v3"].map(|name| bed.adapter_state(name));
    assert_eq!(states, [AdapterState::SourceChanged, AdapterState::Pending, AdapterState::Verified]);
}

#[test]
fn beside_another_process_of_the_server_nothing_counts_as_verified_or_ready() {
    for (listed, state) in [(false, AdapterState::Pending), (true, AdapterState::Loaded)] {
        let mut bed = StateTestbed::with_verified(&["v1"]);
        bed.process_start = Some("2");
        if !listed {
            bed.table.clear();
        }
        restart_sidecar(&mut bed, &["v1"], None);
        bed.poll();
        assert_eq!((bed.readiness().0, bed.adapter_state("v1")), (false, state));
    }
}

#[test]
fn a_server_that_ended_over_a_load_while_the_sidecar_was_away_has_died_of_it() {
    let mut bed = StateTestbed::with_listed(&["v1"]);
    bed.begin_decided_calls();
    bed.process_start = Some("2");
    restart_sidecar(&mut bed, &["v1"], None);
    bed.poll();
    assert_eq!((bed.adapter_state("v1"), bed.error_reason("v1")), (AdapterState::ServerDied, "ServerDied".to_owned()));
    assert_eq!(bed.decided_calls(), Vec::<String>::new());
}

#[test]
fn what_a_server_died_of_is_kept_and_a_new_source_starts_afresh() {
    let mut bed = StateTestbed::with_listed(&["bad"]);
    bed.set_desired(&["bad"], &[], Some(pilot_directives(&["bad"])));
    bed.begin_decided_calls();
    bed.process_start = None;
    bed.poll();
    assert_eq!(bed.adapter_state("bad"), AdapterState::ServerDied);
    let words = bed.adapter_status("bad").last_error;
    bed.process_start = Some("2");
    let kept = restart_sidecar(&mut bed, &["bad"], Some(pilot_directives(&["bad"])));
    bed.poll();
    assert_eq!((bed.adapter_state("bad"), bed.adapter_status("bad").last_error), (AdapterState::ServerDied, words));
    bed.advance(Duration::from_hours(1));
    assert_eq!(bed.decided_calls(), Vec::<String>::new(), "a pilot waits for the operator");
    // The same id from another path is another adapter.
    let mut kept = kept;
    for adapter in kept.adapters.values_mut() {
        "/adapters/other".clone_into(&mut adapter.source);
    }
    bed.restart_sidecar(kept);
    bed.set_desired(&["bad"], &[], Some(pilot_directives(&["bad"])));
    bed.poll();
    assert_eq!(bed.decided_calls(), ["load bad"]);
}

#[test]
fn quarantine_outlives_both_the_sidecar_and_the_server() {
    let mut bed = StateTestbed::with_listed(&["bad"]);
    for process in ["2", "3"] {
        bed.begin_decided_calls();
        // The server ends, and the sidecar beside it before it could look.
        bed.process_start = Some(process);
        restart_sidecar(&mut bed, &["bad"], None);
        bed.poll();
        bed.advance(Duration::from_secs(30));
    }
    for process in ["3", "4"] {
        bed.process_start = Some(process);
        restart_sidecar(&mut bed, &["bad"], None);
        bed.poll();
        bed.advance(Duration::from_hours(24));
        assert_eq!(
            (bed.adapter_state("bad"), bed.decided_calls()),
            (AdapterState::Quarantined, Vec::new()),
            "process {process}"
        );
        assert!(bed.adapter_status("bad").last_error.unwrap().message.contains("not tried again on this server"));
        assert!(bed.readiness().0, "it holds nothing up");
    }
}

#[test]
fn what_was_kept_of_another_endpoint_or_of_ids_that_nobody_lists_is_forgotten() {
    let mut bed = StateTestbed::with_verified(&["v1"]);
    let mut kept = bed.state.to_persisted();
    restart_sidecar(&mut bed, &["v2"], None);
    assert_eq!(bed.state.to_persisted().adapters.len(), 0);
    if let Some(server) = &mut kept.server {
        "http://elsewhere".clone_into(&mut server.identity.endpoint);
    }
    bed.restart_sidecar(kept);
    assert_eq!(bed.state.to_persisted(), PersistedState::default());
}
