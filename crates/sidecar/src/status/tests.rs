//! Tests of the status in each state.

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
fn adapter_goes_from_pending_to_verified() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    let mut states = vec![testbed.adapter_state("a")];
    for _ in 0..2 {
        testbed.begin_decided_calls();
        states.push(testbed.adapter_state("a"));
        testbed.finish_call("a", Ok(()));
        states.push(testbed.adapter_state("a"));
    }
    assert_eq!(states, [Pending, Loading, Loaded, Loaded, Verified]);
}

#[test]
fn failed_probe_makes_the_adapter_failed() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(bad_adapter_error("a")));
    assert_eq!((testbed.adapter_state("a"), testbed.status().is_resident(&crate::testbed::id("a"))), (Failed, false));
}

#[test]
fn file_and_directives_decide_state_of_registered_adapter() {
    let mut testbed = StateTestbed::with_verified(&["v1"]);
    testbed.set_desired(&["v1"], &["v1"], None);
    assert_eq!(testbed.adapter_state("v1"), InBothLists);
    testbed.set_desired(&[], &[], None);
    assert_eq!(testbed.adapter_state("v1"), Unlisted);
    testbed.set_desired(&[], &["v1"], Some(OperatorDirectives { serving: ids(&["v1"]), ..governing_directives() }));
    assert_eq!(testbed.adapter_state("v1"), UnloadHeld);
    testbed.set_desired(&["v1"], &[], Some(governing_directives()));
    assert_eq!(testbed.adapter_state("v1"), Verified, "it was verified before it needed admission");
    testbed.set_desired(&["v1"], &[], Some(OperatorDirectives { rejected: ids(&["v1"]), ..governing_directives() }));
    assert_eq!(testbed.adapter_state("v1"), Unloading);
    testbed.set_desired(&[], &["v1"], None);
    assert_eq!(testbed.adapter_state("v1"), Unloading);
}

#[test]
fn file_and_directives_decide_state_of_absent_adapter() {
    let mut testbed = StateTestbed::new();
    testbed.set_desired(&["v1"], &[], Some(governing_directives()));
    assert_eq!(testbed.adapter_state("v1"), AwaitingAdmission);
    testbed.set_desired(&["v1"], &[], Some(OperatorDirectives { rejected: ids(&["v1"]), ..governing_directives() }));
    assert_eq!(testbed.adapter_state("v1"), Rejected);
    testbed.set_desired(
        &[],
        &["v1"],
        Some(OperatorDirectives { serving: ids(&["v1"]), ..OperatorDirectives::default() }),
    );
    assert_eq!(testbed.adapter_state("v1"), Pending, "a serving id is loaded again");
    testbed.set_desired(&[], &["v1"], None);
    assert_eq!(testbed.adapter_state("v1"), Gone);
}

#[test]
fn gone_is_reported_only_while_the_server_answers() {
    let mut testbed = StateTestbed::new();
    testbed.set_desired(&[], &["a"], None);
    assert_eq!(testbed.adapter_state("a"), Gone);
    testbed.process_start = None;
    testbed.poll();
    assert_eq!((testbed.adapter_state("a"), testbed.status().server), (Unloading, None));
}

#[test]
fn id_of_a_base_model_is_a_name_conflict() {
    for (exist, not_exist) in [(["base"].as_slice(), [].as_slice()), (&[], &["base"])] {
        let mut testbed = StateTestbed::new();
        testbed.set_desired(exist, not_exist, None);
        assert_eq!((testbed.adapter_state("base"), testbed.error_reason("base")), (Failed, "NameConflict".to_owned()));
    }
}

#[test]
fn status_describes_the_server() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    let status = testbed.status();
    let server = status.server.unwrap();
    assert_eq!((server.endpoint.as_str(), server.start.as_str()), ("http://server", "1"));
    assert_eq!((status.base_models, status.max_loras, status.problem), (vec!["base".to_owned()], Some(2), None));
    assert!(!status.config.operator_directives);
    testbed.set_desired(&["a"], &[], Some(governing_directives()));
    assert!(testbed.status().config.operator_directives);
}
