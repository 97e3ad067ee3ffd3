//! Tests of which calls are made, in which order, and concurrently with which others.

use super::*;
use crate::testbed::{StateTestbed, connection_lost_error, ids, pilot_directives, timeout_error};
use rollora_api::operator_directives::OperatorDirectives;

fn no_calls() -> Vec<String> {
    Vec::new()
}

#[test]
fn four_loads_and_one_probe_run_concurrently() {
    let mut testbed = StateTestbed::with_listed(&["a", "b", "c", "d", "e"]);
    assert_eq!(testbed.begin_decided_calls(), ["load a", "load b", "load c", "load d"]);
    testbed.finish_call("a", Ok(()));
    testbed.finish_call("b", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe a", "load e"]);
    testbed.finish_call("a", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe b"]);
}

#[test]
fn hanging_load_takes_no_slot_and_few_may_hang() {
    let mut testbed = StateTestbed::with_listed(&["a", "b", "c", "d", "e"]);
    testbed.state.policy.max_parallel = 1;
    assert_eq!(testbed.begin_decided_calls(), ["load a"]);
    testbed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(testbed.begin_decided_calls(), ["load b"]);
    testbed.finish_call("b", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe b", "load c"]);
    testbed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(testbed.begin_decided_calls(), no_calls(), "two loads hang, which is the limit");
    testbed.finish_call("a", Err(timeout_error()));
    assert_eq!(testbed.begin_decided_calls(), ["load d"]);
}

#[test]
fn probe_without_answer_goes_after_untried_probes() {
    let mut testbed = StateTestbed::with_listed(&["a", "b", "c"]);
    testbed.begin_decided_calls();
    for name in ["a", "b", "c"] {
        testbed.finish_call(name, Ok(()));
    }
    assert_eq!(testbed.begin_decided_calls(), ["probe a"]);
    testbed.finish_call("a", Err(timeout_error()));
    assert_eq!(testbed.begin_decided_calls(), ["probe b"]);
    testbed.advance(Duration::from_secs(5));
    assert_eq!(testbed.begin_decided_calls(), no_calls(), "one at a time");
    testbed.finish_call("b", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe c"]);
    testbed.finish_call("c", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe a"]);
}

#[test]
fn failed_load_goes_after_untried_of_same_priority() {
    let mut testbed = StateTestbed::with_listed(&["needed!", "a", "b"]);
    testbed.state.policy.max_parallel = 1;
    for name in ["needed", "a"] {
        assert_eq!(testbed.begin_decided_calls(), [format!("load {name}")]);
        testbed.finish_call(name, Err(crate::testbed::bad_adapter_error(name)));
    }
    testbed.advance(Duration::from_secs(1));
    assert_eq!(testbed.begin_decided_calls(), ["load needed"]);
    testbed.finish_call("needed", Err(crate::testbed::bad_adapter_error("needed")));
    assert_eq!(testbed.begin_decided_calls(), ["load b"]);
}

#[test]
fn hub_loads_are_serial_and_paths_run_concurrently() {
    let mut testbed = StateTestbed::with_listed(&["org/a", "org/b", "c"]);
    assert_eq!(testbed.begin_decided_calls(), ["load org/a", "load c"]);
    testbed.finish_call("org/a", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe org/a", "load org/b"]);
}

#[test]
fn pilot_goes_first_and_delays_unverified_adapters() {
    let mut testbed = StateTestbed::with_verified(&["old"]);
    testbed.restart_server("2");
    testbed.set_desired(&["old", "new", "v2"], &[], Some(pilot_directives(&["v2"])));
    assert_eq!(testbed.begin_decided_calls(), ["load v2", "load old"], "an adapter verified here runs concurrently");
    testbed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(testbed.decided_calls(), ["load new"], "a hanging pilot no longer delays others");
    testbed.finish_call("v2", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe v2"]);
    testbed.finish_call("v2", Ok(()));
    assert_eq!(testbed.decided_calls(), ["load new"]);
}

#[test]
fn adapter_in_flight_at_a_crash_is_retried_alone() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(connection_lost_error()));
    testbed.restart_server("2");
    testbed.advance(Duration::from_secs(30));
    testbed.set_desired(&["b!", "a"], &[], None);
    assert_eq!(testbed.begin_decided_calls(), ["load b"]);
    testbed.finish_call("b", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe b"]);
    testbed.finish_call("b", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["load a"]);
    testbed.set_desired(&["b!", "a", "c"], &[], None);
    assert_eq!(testbed.decided_calls(), no_calls());
}

#[test]
fn loads_go_before_unloads() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&["b"], &["a"], None);
    assert_eq!(testbed.begin_decided_calls(), ["load b"]);
    assert_eq!(testbed.decided_calls(), no_calls());
    testbed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(testbed.decided_calls(), ["unload a"], "a hanging load no longer delays unloads");
    testbed.finish_call("b", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe b", "unload a"]);
}

#[test]
fn no_call_is_made_while_server_is_down_or_suspect() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.state.idle_connection_closed();
    assert_eq!(testbed.decided_calls(), no_calls());
    testbed.process_start = None;
    testbed.poll();
    assert_eq!(testbed.decided_calls(), no_calls());
}

#[test]
fn base_model_is_never_loaded_or_unloaded() {
    let mut testbed = StateTestbed::with_listed(&["base"]);
    assert_eq!(testbed.decided_calls(), no_calls());
    testbed.set_desired(&[], &["base"], None);
    testbed.advance(Duration::from_hours(1));
    assert_eq!(testbed.decided_calls(), no_calls());
}

#[test]
fn registration_is_enough_with_probes_disabled() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.state.policy.probe_enabled = false;
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    assert_eq!((testbed.decided_calls(), testbed.status().is_verified(&crate::testbed::id("a"))), (no_calls(), true));
}

#[test]
fn governed_id_is_loaded_only_after_admission() {
    let mut testbed = StateTestbed::new();
    let directives = |admitted: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        admitted: ids(admitted),
        ..OperatorDirectives::default()
    };
    testbed.set_desired(&["v1", "v2", "free"], &[], Some(directives(&["v1"])));
    assert_eq!(testbed.decided_calls(), ["load v1", "load free"]);
    testbed.settle();
    testbed.set_desired(&["v1", "v2", "free"], &[], Some(directives(&["v1", "v2"])));
    assert_eq!(testbed.decided_calls(), ["load v2"]);
}

#[test]
fn file_alone_decides_without_directives() {
    let mut testbed = StateTestbed::new();
    let directives =
        OperatorDirectives { managed: vec!["v*".to_owned()], rejected: ids(&["v2"]), ..OperatorDirectives::default() };
    testbed.set_desired(&["v1", "v2"], &[], Some(directives.clone()));
    assert_eq!(testbed.decided_calls(), no_calls());
    testbed.set_desired(&["v1", "v2"], &[], None);
    assert_eq!(testbed.decided_calls(), ["load v1", "load v2"], "the directives were removed");
    testbed.settle();
    testbed.set_desired(&["v1", "v2"], &[], Some(OperatorDirectives { serving: ids(&["v1", "v2"]), ..directives }));
    assert_eq!(testbed.decided_calls(), no_calls(), "both are serving");
    testbed.set_desired(&[], &["v1"], None);
    assert_eq!(testbed.decided_calls(), ["unload v1"], "without directives it is not serving");
}

#[test]
fn registered_id_without_admission_is_left_alone() {
    let mut testbed = StateTestbed::new();
    testbed.table.insert("v1".to_owned(), "/adapters/v1".to_owned());
    testbed.poll();
    testbed.set_desired(
        &["v1"],
        &[],
        Some(OperatorDirectives { managed: vec!["v*".to_owned()], ..OperatorDirectives::default() }),
    );
    testbed.advance(Duration::from_hours(1));
    assert_eq!(testbed.decided_calls(), no_calls());
}

#[test]
fn unload_starts_exactly_after_the_unload_grace() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&[], &["a"], None);
    testbed.last_used.insert(crate::testbed::id("a"), testbed.now);
    testbed.poll();
    testbed.advance(Duration::from_millis(29_999));
    assert_eq!(testbed.decided_calls(), no_calls());
    testbed.advance(Duration::from_millis(1));
    assert_eq!(testbed.decided_calls(), ["unload a"]);
}

#[test]
fn skipped_unload_is_retried_after_a_metrics_poll() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&[], &["a"], None);
    testbed.begin_decided_calls();
    testbed.state.finish_call(
        &crate::testbed::id("a"),
        testbed.state.epoch(),
        crate::state::CallOutcome::Skipped,
        0.0,
        testbed.now,
    );
    assert_eq!(testbed.decided_calls(), no_calls());
    assert!(testbed.state.due_poll(testbed.now).is_some_and(|request| request.metrics));
    testbed.advance(Duration::from_millis(250));
    assert_eq!(testbed.decided_calls(), ["unload a"]);
}

#[test]
fn rejected_id_is_unloaded_when_idle_unless_serving() {
    let directives = |serving: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        rejected: ids(&["v2"]),
        serving: ids(serving),
        ..OperatorDirectives::default()
    };
    let mut testbed = StateTestbed::with_verified(&["v2"]);
    testbed.set_desired(&["v2"], &[], Some(directives(&["v2"])));
    assert_eq!(testbed.decided_calls(), no_calls());
    testbed.set_desired(&["v2"], &[], Some(directives(&[])));
    assert_eq!(testbed.decided_calls(), ["unload v2"]);
}

#[test]
fn probe_in_flight_does_not_block_loads() {
    let mut testbed = StateTestbed::with_listed(&["a", "b"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    assert_eq!(testbed.begin_decided_calls(), ["probe a"]);
    testbed.finish_call("b", Err(timeout_error()));
    testbed.poll();
    testbed.advance(Duration::from_secs(2));
    assert_eq!(testbed.decided_calls(), ["load b"]);
}
