//! Which calls are made, in which order, beside which others.

use super::*;
use crate::testbed::{StateTestbed, connection_lost_error, ids, pilot_directives, timeout_error};
use rollora_api::operator_directives::OperatorDirectives;

fn no_calls() -> Vec<String> {
    Vec::new()
}

#[test]
fn four_loads_go_at_once_and_one_probe() {
    let mut bed = StateTestbed::with_listed(&["a", "b", "c", "d", "e"]);
    assert_eq!(bed.begin_decided_calls(), ["load a", "load b", "load c", "load d"]);
    bed.finish_call("a", Ok(()));
    bed.finish_call("b", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe a", "load e"]);
    bed.finish_call("a", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe b"]);
}

#[test]
fn a_load_that_hangs_takes_no_place_from_another_and_not_many_hang_at_once() {
    let mut bed = StateTestbed::with_listed(&["a", "b", "c", "d", "e"]);
    bed.state.policy.max_parallel = 1;
    assert_eq!(bed.begin_decided_calls(), ["load a"]);
    bed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(bed.begin_decided_calls(), ["load b"]);
    bed.finish_call("b", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe b", "load c"]);
    bed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(bed.begin_decided_calls(), no_calls(), "two hang, and one at a time is allowed");
    bed.finish_call("a", Err(timeout_error()));
    assert_eq!(bed.begin_decided_calls(), ["load d"]);
}

#[test]
fn a_probe_that_got_no_answer_waits_behind_those_that_were_not_tried() {
    let mut bed = StateTestbed::with_listed(&["a", "b", "c"]);
    bed.begin_decided_calls();
    for name in ["a", "b", "c"] {
        bed.finish_call(name, Ok(()));
    }
    assert_eq!(bed.begin_decided_calls(), ["probe a"]);
    bed.finish_call("a", Err(timeout_error()));
    assert_eq!(bed.begin_decided_calls(), ["probe b"]);
    bed.advance(Duration::from_secs(5));
    assert_eq!(bed.begin_decided_calls(), no_calls(), "one at a time");
    bed.finish_call("b", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe c"]);
    bed.finish_call("c", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe a"]);
}

#[test]
fn what_failed_waits_behind_what_was_not_tried_and_is_as_important() {
    let mut bed = StateTestbed::with_listed(&["needed!", "a", "b"]);
    bed.state.policy.max_parallel = 1;
    for name in ["needed", "a"] {
        assert_eq!(bed.begin_decided_calls(), [format!("load {name}")]);
        bed.finish_call(name, Err(crate::testbed::bad_adapter_error(name)));
    }
    bed.advance(Duration::from_secs(1));
    assert_eq!(bed.begin_decided_calls(), ["load needed"]);
    bed.finish_call("needed", Err(crate::testbed::bad_adapter_error("needed")));
    assert_eq!(bed.begin_decided_calls(), ["load b"]);
}

#[test]
fn hub_names_go_one_at_a_time_and_paths_beside_them() {
    let mut bed = StateTestbed::with_listed(&["org/a", "org/b", "c"]);
    assert_eq!(bed.begin_decided_calls(), ["load org/a", "load c"]);
    bed.finish_call("org/a", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe org/a", "load org/b"]);
}

#[test]
fn a_pilot_goes_first_and_others_that_are_new_wait_for_it_a_while() {
    let mut bed = StateTestbed::with_verified(&["old"]);
    bed.restart_server("2");
    bed.set_desired(&["old", "new", "v2"], &[], Some(pilot_directives(&["v2"])));
    assert_eq!(bed.begin_decided_calls(), ["load v2", "load old"], "what was proven here goes beside it");
    bed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(bed.decided_calls(), ["load new"], "a pilot that hangs holds nobody up for long");
    bed.finish_call("v2", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe v2"]);
    bed.finish_call("v2", Ok(()));
    assert_eq!(bed.decided_calls(), ["load new"]);
}

#[test]
fn one_over_which_the_server_died_is_tried_alone() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Err(connection_lost_error()));
    bed.restart_server("2");
    bed.advance(Duration::from_secs(30));
    bed.set_desired(&["b!", "a"], &[], None);
    assert_eq!(bed.begin_decided_calls(), ["load b"]);
    bed.finish_call("b", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe b"]);
    bed.finish_call("b", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["load a"]);
    bed.set_desired(&["b!", "a", "c"], &[], None);
    assert_eq!(bed.decided_calls(), no_calls());
}

#[test]
fn loads_go_before_unloads() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&["b"], &["a"], None);
    assert_eq!(bed.begin_decided_calls(), ["load b"]);
    assert_eq!(bed.decided_calls(), no_calls());
    bed.advance(SLOW_CALL_THRESHOLD);
    assert_eq!(bed.decided_calls(), ["unload a"], "a load that hangs holds no unload up for long");
    bed.finish_call("b", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe b", "unload a"]);
}

#[test]
fn nothing_is_asked_of_a_server_that_is_away_or_suspect() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.state.idle_connection_closed();
    assert_eq!(bed.decided_calls(), no_calls());
    bed.process_start = None;
    bed.poll();
    assert_eq!(bed.decided_calls(), no_calls());
}

#[test]
fn a_base_model_is_never_touched() {
    let mut bed = StateTestbed::with_listed(&["base"]);
    assert_eq!(bed.decided_calls(), no_calls());
    bed.set_desired(&[], &["base"], None);
    bed.advance(Duration::from_hours(1));
    assert_eq!(bed.decided_calls(), no_calls());
}

#[test]
fn without_probes_registration_is_enough() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.state.policy.probe_enabled = false;
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    assert_eq!((bed.decided_calls(), bed.status().is_verified(&crate::testbed::id("a"))), (no_calls(), true));
}

#[test]
fn governed_ids_wait_for_their_admission() {
    let mut bed = StateTestbed::new();
    let key = |admitted: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        admitted: ids(admitted),
        ..OperatorDirectives::default()
    };
    bed.set_desired(&["v1", "v2", "free"], &[], Some(key(&["v1"])));
    assert_eq!(bed.decided_calls(), ["load v1", "load free"]);
    bed.settle();
    bed.set_desired(&["v1", "v2", "free"], &[], Some(key(&["v1", "v2"])));
    assert_eq!(bed.decided_calls(), ["load v2"]);
}

#[test]
fn without_the_operators_key_the_file_alone_decides() {
    let mut bed = StateTestbed::new();
    let key =
        OperatorDirectives { managed: vec!["v*".to_owned()], rejected: ids(&["v2"]), ..OperatorDirectives::default() };
    bed.set_desired(&["v1", "v2"], &[], Some(key.clone()));
    assert_eq!(bed.decided_calls(), no_calls());
    bed.set_desired(&["v1", "v2"], &[], None);
    assert_eq!(bed.decided_calls(), ["load v1", "load v2"], "the key was taken away");
    bed.settle();
    bed.set_desired(&["v1", "v2"], &[], Some(OperatorDirectives { serving: ids(&["v1", "v2"]), ..key }));
    assert_eq!(bed.decided_calls(), no_calls(), "both serve");
    bed.set_desired(&[], &["v1"], None);
    assert_eq!(bed.decided_calls(), ["unload v1"], "and nobody says any more that it serves");
}

#[test]
fn one_that_is_registered_and_not_admitted_is_neither_tried_nor_unloaded() {
    let mut bed = StateTestbed::new();
    bed.table.insert("v1".to_owned(), "/adapters/v1".to_owned());
    bed.poll();
    bed.set_desired(
        &["v1"],
        &[],
        Some(OperatorDirectives { managed: vec!["v*".to_owned()], ..OperatorDirectives::default() }),
    );
    bed.advance(Duration::from_hours(1));
    assert_eq!(bed.decided_calls(), no_calls());
}

#[test]
fn an_adapter_goes_when_its_last_use_is_as_long_ago_as_the_grace() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&[], &["a"], None);
    bed.last_used.insert(crate::testbed::id("a"), bed.now);
    bed.poll();
    bed.advance(Duration::from_millis(29_999));
    assert_eq!(bed.decided_calls(), no_calls());
    bed.advance(Duration::from_millis(1));
    assert_eq!(bed.decided_calls(), ["unload a"]);
}

#[test]
fn one_that_was_skipped_in_the_last_moment_is_looked_at_again() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&[], &["a"], None);
    bed.begin_decided_calls();
    bed.state.finish_call(
        &crate::testbed::id("a"),
        bed.state.epoch(),
        crate::state::CallOutcome::Skipped,
        0.0,
        bed.now,
    );
    assert_eq!(bed.decided_calls(), no_calls());
    assert!(bed.state.due_poll(bed.now).is_some_and(|look| look.metrics));
    bed.advance(Duration::from_millis(250));
    assert_eq!(bed.decided_calls(), ["unload a"]);
}

#[test]
fn a_rejected_one_is_unloaded_when_idle_unless_it_serves() {
    let key = |serving: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        rejected: ids(&["v2"]),
        serving: ids(serving),
        ..OperatorDirectives::default()
    };
    let mut bed = StateTestbed::with_verified(&["v2"]);
    bed.set_desired(&["v2"], &[], Some(key(&["v2"])));
    assert_eq!(bed.decided_calls(), no_calls());
    bed.set_desired(&["v2"], &[], Some(key(&[])));
    assert_eq!(bed.decided_calls(), ["unload v2"]);
}

#[test]
fn a_probe_that_waits_does_not_keep_others_from_loading() {
    let mut bed = StateTestbed::with_listed(&["a", "b"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    assert_eq!(bed.begin_decided_calls(), ["probe a"]);
    bed.finish_call("b", Err(timeout_error()));
    bed.poll();
    bed.advance(Duration::from_secs(2));
    assert_eq!(bed.decided_calls(), ["load b"]);
}
