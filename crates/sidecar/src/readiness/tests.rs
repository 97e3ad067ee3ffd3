//! Tests of when a server is ready.

use crate::testbed::{StateTestbed, bad_adapter_error, engine_dead_error, ids, timeout_error};
use jiff::SignedDuration;
use rollora_api::operator_directives::OperatorDirectives;
use std::time::Duration;

fn serving_directives(names: &[&str]) -> OperatorDirectives {
    OperatorDirectives { serving: ids(names), ..OperatorDirectives::default() }
}

#[test]
fn server_settles_before_it_is_ready() {
    let mut testbed = StateTestbed::new();
    assert_eq!(testbed.readiness(), (false, "NoAdaptersFile".to_owned()));
    testbed.set_desired(&["a"], &[], None);
    assert_eq!(testbed.readiness(), (false, "Settling".to_owned()));
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    assert_eq!(testbed.readiness(), (false, "Settling".to_owned()), "loaded is not verified");
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    assert!(testbed.readiness().0);
}

#[test]
fn settling_ends_after_the_settle_timeout() {
    for file in [false, true] {
        let mut testbed = StateTestbed::new();
        if file {
            testbed.set_desired(&["a"], &[], None);
        }
        testbed.advance(Duration::from_secs(299));
        assert!(!testbed.readiness().0);
        testbed.advance(Duration::from_secs(1));
        assert!(testbed.readiness().0);
    }
}

#[test]
fn serving_or_required_adapter_blocks_readiness_until_verified() {
    let mut required = StateTestbed::with_listed(&["a!"]);
    required.advance(Duration::from_hours(24));
    assert_eq!(required.readiness(), (false, "AdaptersNotVerified".to_owned()));
    let mut serving = StateTestbed::new();
    serving.set_desired(&["a"], &[], Some(serving_directives(&["a"])));
    serving.begin_decided_calls();
    serving.finish_call("a", Err(bad_adapter_error("a")));
    serving.advance(Duration::from_hours(24));
    assert_eq!(serving.readiness(), (false, "AdaptersNotVerified".to_owned()));
    serving.settle();
    assert!(serving.readiness().0);
}

#[test]
fn registration_is_enough_with_probes_disabled() {
    for names in [["a"], ["a!"]] {
        let mut testbed = StateTestbed::with_listed(&names);
        testbed.state.policy.probe_enabled = false;
        assert!(!testbed.readiness().0);
        testbed.begin_decided_calls();
        testbed.finish_call("a", Ok(()));
        assert!(testbed.readiness().0, "{names:?}");
    }
}

#[test]
fn failed_optional_adapter_does_not_block_readiness() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(bad_adapter_error("a")));
    assert!(testbed.readiness().0);
}

#[test]
fn probe_timeout_on_a_busy_server_does_not_block_readiness() {
    let mut testbed = StateTestbed::with_listed(&["a!"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(timeout_error()));
    assert!(testbed.readiness().0);
}

#[test]
fn new_adapter_does_not_make_a_ready_server_unready() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&["a", "b!", "c"], &[], Some(serving_directives(&["c"])));
    assert!(testbed.readiness().0);
}

#[test]
fn restarted_server_is_ready_once_its_adapters_are_back() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.restart_server("2");
    assert_eq!(testbed.readiness(), (false, "Settling".to_owned()));
    testbed.begin_decided_calls();
    // It worked before, so readiness waits for a transient failure to pass.
    testbed.finish_call("a", Err(timeout_error()));
    testbed.poll();
    assert!(!testbed.readiness().0);
    testbed.advance(Duration::from_secs(2));
    testbed.settle();
    assert!(testbed.readiness().0);
}

#[test]
fn readiness_does_not_wait_for_an_adapter_that_needs_a_person() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.restart_server("2");
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(bad_adapter_error("a")));
    assert!(testbed.readiness().0);
}

#[test]
fn server_is_unready_immediately_when_down_or_suspect() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.state.idle_connection_closed();
    assert_eq!(testbed.readiness(), (false, "Suspect".to_owned()));
    testbed.process_start = None;
    testbed.poll();
    assert_eq!(testbed.readiness(), (false, "Unreachable".to_owned()));
    let mut engine_dead = StateTestbed::with_listed(&["a"]);
    engine_dead.begin_decided_calls();
    engine_dead.finish_call("a", Err(engine_dead_error()));
    assert_eq!(engine_dead.readiness(), (false, "EngineDead".to_owned()));
}

#[test]
fn long_hub_download_makes_the_server_unready() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&["a", "org/b"], &[], None);
    testbed.begin_decided_calls();
    assert!(testbed.readiness().0);
    testbed.now += SignedDuration::from_secs(10);
    assert_eq!(testbed.readiness(), (false, "HubLoadBlocksServer".to_owned()));
    assert_eq!(testbed.status().problem.unwrap().reason, "HubLoadBlocksServer");
    testbed.finish_call("org/b", Ok(()));
    assert!(testbed.readiness().0);
}

#[test]
fn timed_out_hub_download_keeps_server_unready_until_an_answer() {
    let unready = (false, "HubLoadBlocksServer".to_owned());
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&["a", "org/b"], &[], None);
    testbed.begin_decided_calls();
    testbed.advance(Duration::from_mins(5));
    testbed.finish_call("org/b", Err(timeout_error()));
    testbed.poll();
    assert_eq!(testbed.readiness(), unready);
    testbed.advance(Duration::from_secs(2));
    assert_eq!(testbed.begin_decided_calls(), ["load org/b"]);
    assert_eq!(testbed.readiness(), unready, "a second attempt proves nothing");
    let mut answered = StateTestbed {
        state: testbed.state.clone(),
        table: testbed.table.clone(),
        last_used: testbed.last_used.clone(),
        ..testbed
    };
    answered.finish_call("org/b", Err(bad_adapter_error("org/b")));
    assert!(answered.readiness().0, "an error is an answer too");
    testbed.finish_call("org/b", Err(timeout_error()));
    testbed.poll();
    testbed.set_desired(&["a", "org/b", "c"], &[], None);
    testbed.begin_decided_calls();
    testbed.finish_call("c", Ok(()));
    assert!(testbed.readiness().0, "the engine has loaded another adapter");
    testbed.finish_call("org/b", Err(timeout_error()));
    testbed.restart_server("2");
    testbed.settle();
    assert!(testbed.readiness().0, "a new process has no hanging download");
}

#[test]
fn message_names_unsettled_adapters_and_cuts_long_lists() {
    let testbed = StateTestbed::with_listed(&["a", "b", "c", "d", "e", "f", "g"]);
    let message = testbed.status().readiness.message;
    assert_eq!(message, "adapters that are not settled yet: a, b, c, d, e and 2 more");
}
