//! When requests may be sent, and when not.

use crate::bed::{Bed, bad, engine_dead, ids, late};
use jiff::SignedDuration;
use rollora_api::operator_directives::OperatorDirectives;
use std::time::Duration;

fn serving(names: &[&str]) -> OperatorDirectives {
    OperatorDirectives { serving: ids(names), ..OperatorDirectives::default() }
}

#[test]
fn a_server_settles_before_it_is_ready() {
    let mut bed = Bed::up();
    assert_eq!(bed.readiness(), (false, "NoAdaptersFile".to_owned()));
    bed.desire(&["a"], &[], None);
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()));
    bed.begin();
    bed.end("a", Ok(()));
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()), "loaded is not proven");
    bed.begin();
    bed.end("a", Ok(()));
    assert!(bed.readiness().0);
}

#[test]
fn settling_ends_some_time_after_the_servers_start() {
    for file in [false, true] {
        let mut bed = Bed::up();
        if file {
            bed.desire(&["a"], &[], None);
        }
        bed.wait(Duration::from_secs(299));
        assert!(!bed.readiness().0);
        bed.wait(Duration::from_secs(1));
        assert!(bed.readiness().0);
    }
}

#[test]
fn what_serves_or_is_required_holds_it_for_as_long_as_it_takes() {
    let mut required = Bed::listing(&["a!"]);
    required.wait(Duration::from_hours(24));
    assert_eq!(required.readiness(), (false, "AdaptersNotVerified".to_owned()));
    let mut in_service = Bed::up();
    in_service.desire(&["a"], &[], Some(serving(&["a"])));
    in_service.begin();
    in_service.end("a", Err(bad("a")));
    in_service.wait(Duration::from_hours(24));
    assert_eq!(in_service.readiness(), (false, "AdaptersNotVerified".to_owned()));
    in_service.settle();
    assert!(in_service.readiness().0);
}

#[test]
fn where_nobody_probes_registration_is_enough() {
    for names in [["a"], ["a!"]] {
        let mut bed = Bed::listing(&names);
        bed.memory.policy.probe = false;
        assert!(!bed.readiness().0);
        bed.begin();
        bed.end("a", Ok(()));
        assert!(bed.readiness().0, "{names:?}");
    }
}

#[test]
fn a_bad_adapter_that_nobody_depends_on_holds_nothing_up() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    bed.end("a", Err(bad("a")));
    assert!(bed.readiness().0);
}

#[test]
fn a_probe_on_a_server_that_is_busy_holds_nothing_up() {
    let mut bed = Bed::listing(&["a!"]);
    bed.begin();
    bed.end("a", Ok(()));
    bed.begin();
    bed.end("a", Err(late()));
    assert!(bed.readiness().0);
}

#[test]
fn a_new_adapter_takes_nothing_back_from_a_server_that_was_ready() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&["a", "b!", "c"], &[], Some(serving(&["c"])));
    assert!(bed.readiness().0);
}

#[test]
fn after_a_restart_what_was_there_has_to_be_back() {
    let mut bed = Bed::settled(&["a"]);
    bed.restart("2");
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()));
    bed.begin();
    // It worked before: a failure that may pass is waited out.
    bed.end("a", Err(late()));
    bed.look();
    assert!(!bed.readiness().0);
    bed.wait(Duration::from_secs(2));
    bed.settle();
    assert!(bed.readiness().0);
}

#[test]
fn what_was_there_and_now_needs_a_person_is_not_waited_for() {
    let mut bed = Bed::settled(&["a"]);
    bed.restart("2");
    bed.begin();
    bed.end("a", Err(bad("a")));
    assert!(bed.readiness().0);
}

#[test]
fn away_and_suspect_are_not_ready_at_once() {
    let mut bed = Bed::settled(&["a"]);
    bed.memory.connection_closed();
    assert_eq!(bed.readiness(), (false, "Suspect".to_owned()));
    bed.process = None;
    bed.look();
    assert_eq!(bed.readiness(), (false, "Unreachable".to_owned()));
    let mut dead = Bed::listing(&["a"]);
    dead.begin();
    dead.end("a", Err(engine_dead()));
    assert_eq!(dead.readiness(), (false, "EngineDead".to_owned()));
}

#[test]
fn a_hub_download_that_takes_long_takes_the_server_out() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&["a", "org/b"], &[], None);
    bed.begin();
    assert!(bed.readiness().0);
    bed.now += SignedDuration::from_secs(10);
    assert_eq!(bed.readiness(), (false, "HubLoadBlocksServer".to_owned()));
    assert_eq!(bed.status().problem.unwrap().reason, "HubLoadBlocksServer");
    bed.end("org/b", Ok(()));
    assert!(bed.readiness().0);
}

#[test]
fn a_hub_download_that_nobody_waits_for_any_more_keeps_the_server_out_until_its_engine_answers() {
    let out = (false, "HubLoadBlocksServer".to_owned());
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&["a", "org/b"], &[], None);
    bed.begin();
    bed.wait(Duration::from_mins(5));
    bed.end("org/b", Err(late()));
    bed.look();
    assert_eq!(bed.readiness(), out);
    bed.wait(Duration::from_secs(2));
    assert_eq!(bed.begin(), ["load org/b"]);
    assert_eq!(bed.readiness(), out, "a second try is no answer");
    let mut answered = Bed { memory: bed.memory.clone(), table: bed.table.clone(), used: bed.used.clone(), ..bed };
    answered.end("org/b", Err(bad("org/b")));
    assert!(answered.readiness().0, "it answers, if badly");
    bed.end("org/b", Err(late()));
    bed.look();
    bed.desire(&["a", "org/b", "c"], &[], None);
    bed.begin();
    bed.end("c", Ok(()));
    assert!(bed.readiness().0, "the engine has loaded another");
    bed.end("org/b", Err(late()));
    bed.restart("2");
    bed.settle();
    assert!(bed.readiness().0, "another process hangs in nothing");
}

#[test]
fn what_it_waits_for_is_named_and_long_lists_are_cut() {
    let bed = Bed::listing(&["a", "b", "c", "d", "e", "f", "g"]);
    let message = bed.status().readiness.message;
    assert_eq!(message, "not dealt with yet: a, b, c, d, e and 2 more");
}
