//! When requests may be sent, and when not.

use crate::testbed::{StateTestbed, bad_adapter_error, engine_dead_error, ids, timeout_error};
use jiff::SignedDuration;
use rollora_api::operator_directives::OperatorDirectives;
use std::time::Duration;

fn serving_directives(names: &[&str]) -> OperatorDirectives {
    OperatorDirectives { serving: ids(names), ..OperatorDirectives::default() }
}

#[test]
fn a_server_settles_before_it_is_ready() {
    let mut bed = StateTestbed::new();
    assert_eq!(bed.readiness(), (false, "NoAdaptersFile".to_owned()));
    bed.set_desired(&["a"], &[], None);
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()));
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()), "loaded is not proven");
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    assert!(bed.readiness().0);
}

#[test]
fn settling_ends_some_time_after_the_servers_start() {
    for file in [false, true] {
        let mut bed = StateTestbed::new();
        if file {
            bed.set_desired(&["a"], &[], None);
        }
        bed.advance(Duration::from_secs(299));
        assert!(!bed.readiness().0);
        bed.advance(Duration::from_secs(1));
        assert!(bed.readiness().0);
    }
}

#[test]
fn what_serves_or_is_required_holds_it_for_as_long_as_it_takes() {
    let mut required = StateTestbed::with_listed(&["a!"]);
    required.advance(Duration::from_hours(24));
    assert_eq!(required.readiness(), (false, "AdaptersNotVerified".to_owned()));
    let mut in_service = StateTestbed::new();
    in_service.set_desired(&["a"], &[], Some(serving_directives(&["a"])));
    in_service.begin_decided_calls();
    in_service.finish_call("a", Err(bad_adapter_error("a")));
    in_service.advance(Duration::from_hours(24));
    assert_eq!(in_service.readiness(), (false, "AdaptersNotVerified".to_owned()));
    in_service.settle();
    assert!(in_service.readiness().0);
}

#[test]
fn where_nobody_probes_registration_is_enough() {
    for names in [["a"], ["a!"]] {
        let mut bed = StateTestbed::with_listed(&names);
        bed.state.policy.probe_enabled = false;
        assert!(!bed.readiness().0);
        bed.begin_decided_calls();
        bed.finish_call("a", Ok(()));
        assert!(bed.readiness().0, "{names:?}");
    }
}

#[test]
fn a_bad_adapter_that_nobody_depends_on_holds_nothing_up() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Err(bad_adapter_error("a")));
    assert!(bed.readiness().0);
}

#[test]
fn a_probe_on_a_server_that_is_busy_holds_nothing_up() {
    let mut bed = StateTestbed::with_listed(&["a!"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("a", Err(timeout_error()));
    assert!(bed.readiness().0);
}

#[test]
fn a_new_adapter_takes_nothing_back_from_a_server_that_was_ready() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&["a", "b!", "c"], &[], Some(serving_directives(&["c"])));
    assert!(bed.readiness().0);
}

#[test]
fn after_a_restart_what_was_there_has_to_be_back() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.restart_server("2");
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()));
    bed.begin_decided_calls();
    // It worked before: a failure that may pass is waited out.
    bed.finish_call("a", Err(timeout_error()));
    bed.poll();
    assert!(!bed.readiness().0);
    bed.advance(Duration::from_secs(2));
    bed.settle();
    assert!(bed.readiness().0);
}

#[test]
fn what_was_there_and_now_needs_a_person_is_not_waited_for() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.restart_server("2");
    bed.begin_decided_calls();
    bed.finish_call("a", Err(bad_adapter_error("a")));
    assert!(bed.readiness().0);
}

#[test]
fn away_and_suspect_are_not_ready_at_once() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.state.idle_connection_closed();
    assert_eq!(bed.readiness(), (false, "Suspect".to_owned()));
    bed.process_start = None;
    bed.poll();
    assert_eq!(bed.readiness(), (false, "Unreachable".to_owned()));
    let mut dead = StateTestbed::with_listed(&["a"]);
    dead.begin_decided_calls();
    dead.finish_call("a", Err(engine_dead_error()));
    assert_eq!(dead.readiness(), (false, "EngineDead".to_owned()));
}

#[test]
fn a_hub_download_that_takes_long_takes_the_server_out() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&["a", "org/b"], &[], None);
    bed.begin_decided_calls();
    assert!(bed.readiness().0);
    bed.now += SignedDuration::from_secs(10);
    assert_eq!(bed.readiness(), (false, "HubLoadBlocksServer".to_owned()));
    assert_eq!(bed.status().problem.unwrap().reason, "HubLoadBlocksServer");
    bed.finish_call("org/b", Ok(()));
    assert!(bed.readiness().0);
}

#[test]
fn a_hub_download_that_nobody_waits_for_any_more_keeps_the_server_out_until_its_engine_answers() {
    let out = (false, "HubLoadBlocksServer".to_owned());
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&["a", "org/b"], &[], None);
    bed.begin_decided_calls();
    bed.advance(Duration::from_mins(5));
    bed.finish_call("org/b", Err(timeout_error()));
    bed.poll();
    assert_eq!(bed.readiness(), out);
    bed.advance(Duration::from_secs(2));
    assert_eq!(bed.begin_decided_calls(), ["load org/b"]);
    assert_eq!(bed.readiness(), out, "a second try is no answer");
    let mut answered =
        StateTestbed { state: bed.state.clone(), table: bed.table.clone(), last_used: bed.last_used.clone(), ..bed };
    answered.finish_call("org/b", Err(bad_adapter_error("org/b")));
    assert!(answered.readiness().0, "it answers, if badly");
    bed.finish_call("org/b", Err(timeout_error()));
    bed.poll();
    bed.set_desired(&["a", "org/b", "c"], &[], None);
    bed.begin_decided_calls();
    bed.finish_call("c", Ok(()));
    assert!(bed.readiness().0, "the engine has loaded another");
    bed.finish_call("org/b", Err(timeout_error()));
    bed.restart_server("2");
    bed.settle();
    assert!(bed.readiness().0, "another process hangs in nothing");
}

#[test]
fn what_it_waits_for_is_named_and_long_lists_are_cut() {
    let bed = StateTestbed::with_listed(&["a", "b", "c", "d", "e", "f", "g"]);
    let message = bed.status().readiness.message;
    assert_eq!(message, "not dealt with yet: a, b, c, d, e and 2 more");
}
