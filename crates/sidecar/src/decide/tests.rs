//! Which calls are made, in which order, beside which others.

use super::*;
use crate::bed::{Bed, ids, late, lost, pilots};
use rollora_api::operator_directives::OperatorDirectives;

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn four_loads_go_at_once_and_one_probe() {
    let mut bed = Bed::listing(&["a", "b", "c", "d", "e"]);
    assert_eq!(bed.begin(), ["load a", "load b", "load c", "load d"]);
    bed.end("a", Ok(()));
    bed.end("b", Ok(()));
    assert_eq!(bed.begin(), ["probe a", "load e"]);
    bed.end("a", Ok(()));
    assert_eq!(bed.begin(), ["probe b"]);
}

#[test]
fn a_load_that_hangs_takes_no_place_from_another_and_not_many_hang_at_once() {
    let mut bed = Bed::listing(&["a", "b", "c", "d", "e"]);
    bed.memory.policy.max_parallel = 1;
    assert_eq!(bed.begin(), ["load a"]);
    bed.wait(PATIENCE);
    assert_eq!(bed.begin(), ["load b"]);
    bed.end("b", Ok(()));
    assert_eq!(bed.begin(), ["probe b", "load c"]);
    bed.wait(PATIENCE);
    assert_eq!(bed.begin(), none(), "two hang, and one at a time is allowed");
    bed.end("a", Err(late()));
    assert_eq!(bed.begin(), ["load d"]);
}

#[test]
fn a_probe_that_got_no_answer_waits_behind_those_that_were_not_tried() {
    let mut bed = Bed::listing(&["a", "b", "c"]);
    bed.begin();
    for name in ["a", "b", "c"] {
        bed.end(name, Ok(()));
    }
    assert_eq!(bed.begin(), ["probe a"]);
    bed.end("a", Err(late()));
    assert_eq!(bed.begin(), ["probe b"]);
    bed.wait(Duration::from_secs(5));
    assert_eq!(bed.begin(), none(), "one at a time");
    bed.end("b", Ok(()));
    assert_eq!(bed.begin(), ["probe c"]);
    bed.end("c", Ok(()));
    assert_eq!(bed.begin(), ["probe a"]);
}

#[test]
fn what_failed_waits_behind_what_was_not_tried_and_is_as_important() {
    let mut bed = Bed::listing(&["needed!", "a", "b"]);
    bed.memory.policy.max_parallel = 1;
    for name in ["needed", "a"] {
        assert_eq!(bed.begin(), [format!("load {name}")]);
        bed.end(name, Err(crate::bed::bad(name)));
    }
    bed.wait(Duration::from_secs(1));
    assert_eq!(bed.begin(), ["load needed"]);
    bed.end("needed", Err(crate::bed::bad("needed")));
    assert_eq!(bed.begin(), ["load b"]);
}

#[test]
fn hub_names_go_one_at_a_time_and_paths_beside_them() {
    let mut bed = Bed::listing(&["org/a", "org/b", "c"]);
    assert_eq!(bed.begin(), ["load org/a", "load c"]);
    bed.end("org/a", Ok(()));
    assert_eq!(bed.begin(), ["probe org/a", "load org/b"]);
}

#[test]
fn a_pilot_goes_first_and_others_that_are_new_wait_for_it_a_while() {
    let mut bed = Bed::settled(&["old"]);
    bed.restart("2");
    bed.desire(&["old", "new", "v2"], &[], Some(pilots(&["v2"])));
    assert_eq!(bed.begin(), ["load v2", "load old"], "what was proven here goes beside it");
    bed.wait(PATIENCE);
    assert_eq!(bed.decided(), ["load new"], "a pilot that hangs holds nobody up for long");
    bed.end("v2", Ok(()));
    assert_eq!(bed.begin(), ["probe v2"]);
    bed.end("v2", Ok(()));
    assert_eq!(bed.decided(), ["load new"]);
}

#[test]
fn one_over_which_the_server_died_is_tried_alone() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    bed.end("a", Err(lost()));
    bed.restart("2");
    bed.wait(Duration::from_secs(30));
    bed.desire(&["b!", "a"], &[], None);
    assert_eq!(bed.begin(), ["load b"]);
    bed.end("b", Ok(()));
    assert_eq!(bed.begin(), ["probe b"]);
    bed.end("b", Ok(()));
    assert_eq!(bed.begin(), ["load a"]);
    bed.desire(&["b!", "a", "c"], &[], None);
    assert_eq!(bed.decided(), none());
}

#[test]
fn loads_go_before_unloads() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&["b"], &["a"], None);
    assert_eq!(bed.begin(), ["load b"]);
    assert_eq!(bed.decided(), none());
    bed.wait(PATIENCE);
    assert_eq!(bed.decided(), ["unload a"], "a load that hangs holds no unload up for long");
    bed.end("b", Ok(()));
    assert_eq!(bed.begin(), ["probe b", "unload a"]);
}

#[test]
fn nothing_is_asked_of_a_server_that_is_away_or_suspect() {
    let mut bed = Bed::listing(&["a"]);
    bed.memory.connection_closed();
    assert_eq!(bed.decided(), none());
    bed.process = None;
    bed.look();
    assert_eq!(bed.decided(), none());
}

#[test]
fn a_base_model_is_never_touched() {
    let mut bed = Bed::listing(&["base"]);
    assert_eq!(bed.decided(), none());
    bed.desire(&[], &["base"], None);
    bed.wait(Duration::from_hours(1));
    assert_eq!(bed.decided(), none());
}

#[test]
fn without_probes_registration_is_enough() {
    let mut bed = Bed::listing(&["a"]);
    bed.memory.policy.probe = false;
    bed.begin();
    bed.end("a", Ok(()));
    assert_eq!((bed.decided(), bed.status().is_verified(&crate::bed::id("a"))), (none(), true));
}

#[test]
fn governed_ids_wait_for_their_admission() {
    let mut bed = Bed::up();
    let key = |admitted: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        admitted: ids(admitted),
        ..OperatorDirectives::default()
    };
    bed.desire(&["v1", "v2", "free"], &[], Some(key(&["v1"])));
    assert_eq!(bed.decided(), ["load v1", "load free"]);
    bed.settle();
    bed.desire(&["v1", "v2", "free"], &[], Some(key(&["v1", "v2"])));
    assert_eq!(bed.decided(), ["load v2"]);
}

#[test]
fn without_the_operators_key_the_file_alone_decides() {
    let mut bed = Bed::up();
    let key =
        OperatorDirectives { managed: vec!["v*".to_owned()], rejected: ids(&["v2"]), ..OperatorDirectives::default() };
    bed.desire(&["v1", "v2"], &[], Some(key.clone()));
    assert_eq!(bed.decided(), none());
    bed.desire(&["v1", "v2"], &[], None);
    assert_eq!(bed.decided(), ["load v1", "load v2"], "the key was taken away");
    bed.settle();
    bed.desire(&["v1", "v2"], &[], Some(OperatorDirectives { serving: ids(&["v1", "v2"]), ..key }));
    assert_eq!(bed.decided(), none(), "both serve");
    bed.desire(&[], &["v1"], None);
    assert_eq!(bed.decided(), ["unload v1"], "and nobody says any more that it serves");
}

#[test]
fn one_that_is_registered_and_not_admitted_is_neither_tried_nor_unloaded() {
    let mut bed = Bed::up();
    bed.table.insert("v1".to_owned(), "/adapters/v1".to_owned());
    bed.look();
    bed.desire(
        &["v1"],
        &[],
        Some(OperatorDirectives { managed: vec!["v*".to_owned()], ..OperatorDirectives::default() }),
    );
    bed.wait(Duration::from_hours(1));
    assert_eq!(bed.decided(), none());
}

#[test]
fn an_adapter_goes_when_its_last_use_is_as_long_ago_as_the_grace() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&[], &["a"], None);
    bed.used.insert(crate::bed::id("a"), bed.now);
    bed.look();
    bed.wait(Duration::from_millis(29_999));
    assert_eq!(bed.decided(), none());
    bed.wait(Duration::from_millis(1));
    assert_eq!(bed.decided(), ["unload a"]);
}

#[test]
fn one_that_was_skipped_in_the_last_moment_is_looked_at_again() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&[], &["a"], None);
    bed.begin();
    bed.memory.ended(&crate::bed::id("a"), bed.memory.epoch(), crate::memory::Ended::Skipped, 0.0, bed.now);
    assert_eq!(bed.decided(), none());
    assert!(bed.memory.look_due(bed.now).is_some_and(|look| look.metrics));
    bed.wait(Duration::from_millis(250));
    assert_eq!(bed.decided(), ["unload a"]);
}

#[test]
fn a_rejected_one_is_unloaded_when_idle_unless_it_serves() {
    let key = |serving: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        rejected: ids(&["v2"]),
        serving: ids(serving),
        ..OperatorDirectives::default()
    };
    let mut bed = Bed::settled(&["v2"]);
    bed.desire(&["v2"], &[], Some(key(&["v2"])));
    assert_eq!(bed.decided(), none());
    bed.desire(&["v2"], &[], Some(key(&[])));
    assert_eq!(bed.decided(), ["unload v2"]);
}

#[test]
fn a_probe_that_waits_does_not_keep_others_from_loading() {
    let mut bed = Bed::listing(&["a", "b"]);
    bed.begin();
    bed.end("a", Ok(()));
    assert_eq!(bed.begin(), ["probe a"]);
    bed.end("b", Err(late()));
    bed.look();
    bed.wait(Duration::from_secs(2));
    assert_eq!(bed.decided(), ["load b"]);
}
