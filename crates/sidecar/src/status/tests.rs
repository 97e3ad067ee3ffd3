//! What is told in each state.

use crate::testbed::{StateTestbed, bad_adapter_error, ids};
use rollora_api::{
    operator_directives::OperatorDirectives,
    sidecar_status::AdapterState::{
        AwaitingAdmission, Failed, Gone, InBothLists, Loaded, Loading, Pending, Rejected, Unlisted, UnloadHeld,
        Unloading, Verified,
    },
};

fn governing_directives() -> OperatorDirectives {
    OperatorDirectives { managed: vec!["v*".to_owned()], ..OperatorDirectives::default() }
}

#[test]
fn an_adapter_goes_from_pending_to_verified() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    let mut states = vec![bed.adapter_state("a")];
    for _ in 0..2 {
        bed.begin_decided_calls();
        states.push(bed.adapter_state("a"));
        bed.finish_call("a", Ok(()));
        states.push(bed.adapter_state("a"));
    }
    assert_eq!(states, [Pending, Loading, Loaded, Loaded, Verified]);
}

#[test]
fn a_failed_probe_is_a_failed_adapter() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("a", Err(bad_adapter_error("a")));
    assert_eq!((bed.adapter_state("a"), bed.status().is_resident(&crate::testbed::id("a"))), (Failed, false));
}

#[test]
fn lists_and_key_decide_what_a_registered_adapter_is_called() {
    let mut bed = StateTestbed::with_verified(&["v1"]);
    bed.set_desired(&["v1"], &["v1"], None);
    assert_eq!(bed.adapter_state("v1"), InBothLists);
    bed.set_desired(&[], &[], None);
    assert_eq!(bed.adapter_state("v1"), Unlisted);
    bed.set_desired(&[], &["v1"], Some(OperatorDirectives { serving: ids(&["v1"]), ..governing_directives() }));
    assert_eq!(bed.adapter_state("v1"), UnloadHeld);
    bed.set_desired(&["v1"], &[], Some(governing_directives()));
    assert_eq!(bed.adapter_state("v1"), Verified, "it was proven before it had to wait");
    bed.set_desired(&["v1"], &[], Some(OperatorDirectives { rejected: ids(&["v1"]), ..governing_directives() }));
    assert_eq!(bed.adapter_state("v1"), Unloading);
    bed.set_desired(&[], &["v1"], None);
    assert_eq!(bed.adapter_state("v1"), Unloading);
}

#[test]
fn lists_and_key_decide_what_an_absent_adapter_is_called() {
    let mut bed = StateTestbed::new();
    bed.set_desired(&["v1"], &[], Some(governing_directives()));
    assert_eq!(bed.adapter_state("v1"), AwaitingAdmission);
    bed.set_desired(&["v1"], &[], Some(OperatorDirectives { rejected: ids(&["v1"]), ..governing_directives() }));
    assert_eq!(bed.adapter_state("v1"), Rejected);
    bed.set_desired(&[], &["v1"], Some(OperatorDirectives { serving: ids(&["v1"]), ..OperatorDirectives::default() }));
    assert_eq!(bed.adapter_state("v1"), Pending, "it serves, so it is loaded again");
    bed.set_desired(&[], &["v1"], None);
    assert_eq!(bed.adapter_state("v1"), Gone);
}

#[test]
fn gone_is_only_said_of_a_server_that_answers() {
    let mut bed = StateTestbed::new();
    bed.set_desired(&[], &["a"], None);
    assert_eq!(bed.adapter_state("a"), Gone);
    bed.process_start = None;
    bed.poll();
    assert_eq!((bed.adapter_state("a"), bed.status().server), (Unloading, None));
}

#[test]
fn an_id_that_is_a_base_model_is_said_to_be_one() {
    for (exist, not_exist) in [(["base"].as_slice(), [].as_slice()), (&[], &["base"])] {
        let mut bed = StateTestbed::new();
        bed.set_desired(exist, not_exist, None);
        assert_eq!((bed.adapter_state("base"), bed.error_reason("base")), (Failed, "NameConflict".to_owned()));
    }
}

#[test]
fn the_server_is_described() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    let status = bed.status();
    let server = status.server.unwrap();
    assert_eq!((server.endpoint.as_str(), server.start.as_str()), ("http://server", "1"));
    assert_eq!((status.base_models, status.max_loras, status.problem), (vec!["base".to_owned()], Some(2), None));
    assert!(!status.config.operator_directives);
    bed.set_desired(&["a"], &[], Some(governing_directives()));
    assert!(bed.status().config.operator_directives);
}
