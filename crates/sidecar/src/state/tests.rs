//! Events, and what is known after them.

use super::*;
use crate::testbed::{
    StateTestbed, connection_lost_error, engine_dead_error, id, ids, pilot_directives, timeout_error, unreachable_error,
};
use jiff::Timestamp;
use rollora_api::{
    operator_directives::OperatorDirectives,
    sidecar_status::AdapterState::{
        Failed, Gone, Loaded, Pending, Quarantined, Rejected, ServerDied, SourceChanged, Unlisted, UnloadHeld,
        Unloading, Verified,
    },
};
use rollora_vllm::{ServerMetrics, VllmError};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_load_without_an_answer_is_looked_up_before_anything_else() {
    for registered in [true, false] {
        let mut bed = StateTestbed::with_listed(&["a"]);
        bed.begin_decided_calls();
        bed.finish_call("a", Err(timeout_error()));
        bed.advance(60 * SECOND);
        assert_eq!(bed.decided_calls(), Vec::<String>::new(), "in doubt");
        assert_eq!(bed.state.due_poll(bed.now).map(|look| look.models), Some(true));
        if registered {
            bed.table.insert("a".to_owned(), "/adapters/a".to_owned());
        }
        bed.poll();
        assert_eq!(bed.decided_calls(), [if registered { "probe a" } else { "load a" }]);
        assert_eq!(bed.adapter_state("a"), if registered { Loaded } else { Failed });
    }
}

#[test]
fn a_list_that_was_asked_for_before_a_load_ended_does_not_undo_it() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    let ticket = bed.state.begin_poll(PollRequest { metrics: false, models: true }, bed.now);
    let old = bed.observe();
    bed.finish_call("a", Ok(()));
    bed.state.finish_poll(ticket, old, bed.now);
    assert_eq!(bed.adapter_state("a"), Loaded);
}

#[test]
fn an_answer_to_a_call_from_before_a_restart_counts_for_nothing() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    let epoch = bed.state.epoch();
    bed.begin_decided_calls();
    bed.restart_server("2");
    bed.state.finish_call(&id("a"), epoch, CallOutcome::Executed(Ok(())), 0.0, bed.now);
    assert_eq!(bed.state.adapters[&id("a")].registered, None);
}

#[test]
fn what_another_process_registers_by_itself_is_not_verified() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.process_start = Some("2");
    bed.state.idle_connection_closed();
    bed.poll();
    assert_eq!(bed.adapter_state("a"), Loaded);
}

#[test]
fn what_was_verified_stays_so_when_the_same_process_is_reached_again() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.process_start = None;
    bed.poll();
    assert_eq!((bed.status().server, bed.adapter_state("a")), (None, Pending));
    bed.process_start = Some("1");
    bed.poll();
    assert_eq!((bed.adapter_state("a"), bed.readiness().0), (Verified, true));
}

#[test]
fn only_a_look_that_began_later_lifts_a_suspicion() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    let ticket = bed.state.begin_poll(PollRequest { metrics: true, models: true }, bed.now);
    let seen = bed.observe();
    bed.state.idle_connection_closed();
    bed.state.finish_poll(ticket, seen, bed.now);
    assert_eq!(bed.readiness(), (false, "Suspect".to_owned()));
    assert_eq!(bed.state.due_poll(bed.now), Some(PollRequest { metrics: true, models: true }));
    bed.poll();
    assert!(bed.readiness().0);
}

#[test]
fn a_server_that_closes_idle_connections_is_suspected_twice_and_then_only_looked_at() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    let suspected: Vec<bool> = (0..4)
        .map(|_| {
            bed.state.idle_connection_closed();
            let suspected = !bed.readiness().0;
            assert!(bed.state.due_poll(bed.now).is_some_and(|look| look.metrics));
            bed.poll();
            suspected
        })
        .collect();
    assert_eq!(suspected, [true, true, false, false]);
    bed.restart_server("2");
    bed.settle();
    bed.state.idle_connection_closed();
    assert!(!bed.readiness().0, "another process is given the benefit of the doubt again");
}

#[test]
fn unmanaged_ids_over_which_the_server_dies_are_tried_once_more_after_thirty_seconds() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Err(connection_lost_error()));
    bed.restart_server("2");
    assert_eq!((bed.adapter_state("a"), bed.error_reason("a")), (ServerDied, "ServerDied".to_owned()));
    assert_eq!(bed.decided_calls(), Vec::<String>::new());
    bed.advance(30 * SECOND);
    assert_eq!(bed.begin_decided_calls(), ["load a"]);
    bed.restart_server("3");
    bed.advance(Duration::from_secs(1_000_000));
    assert_eq!((bed.adapter_state("a"), bed.decided_calls()), (Quarantined, Vec::new()));
    assert_eq!(bed.adapter_status("a").next_try, None);
    bed.set_desired(&[], &[], None);
    bed.set_desired(&["a"], &[], None);
    assert_eq!(bed.decided_calls(), ["load a"], "somebody took it out and put it back");
}

#[test]
fn a_pilot_over_which_the_server_dies_waits_for_the_operator() {
    let mut bed = StateTestbed::new();
    bed.set_desired(&["v2"], &[], Some(pilot_directives(&["v2"])));
    bed.begin_decided_calls();
    bed.restart_server("2");
    bed.advance(Duration::from_secs(1_000_000));
    assert_eq!((bed.adapter_state("v2"), bed.decided_calls()), (ServerDied, Vec::new()));
    // The trial is called off for a while and comes back: that is no answer.
    bed.set_desired(&["v2"], &[], Some(OperatorDirectives { pilots: Vec::new(), ..pilot_directives(&["v2"]) }));
    bed.set_desired(&["v2"], &[], Some(pilot_directives(&["v2"])));
    assert_eq!((bed.adapter_state("v2"), bed.decided_calls()), (ServerDied, Vec::new()));
    bed.set_desired(&["v2"], &[], Some(OperatorDirectives { rejected: ids(&["v2"]), ..pilot_directives(&["v2"]) }));
    assert_eq!((bed.adapter_state("v2"), bed.decided_calls()), (Rejected, Vec::new()));
    bed.set_desired(&["v2"], &[], Some(pilot_directives(&["v2"])));
    assert_eq!(bed.decided_calls(), ["load v2"]);
}

#[test]
fn what_was_proven_here_is_not_blamed_while_there_is_another() {
    let mut bed = StateTestbed::with_verified(&["old"]);
    bed.restart_server("2");
    bed.set_desired(&["old", "new"], &[], None);
    assert_eq!(bed.begin_decided_calls(), ["load old", "load new"]);
    bed.restart_server("3");
    assert_eq!((bed.adapter_state("old"), bed.adapter_state("new")), (Pending, ServerDied));
}

#[test]
fn what_was_proven_here_is_tried_again_at_once() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.restart_server("2");
    let tries: Vec<_> = ["3", "4"]
        .into_iter()
        .map(|process| {
            let begun = bed.begin_decided_calls();
            bed.restart_server(process);
            (begun, bed.decided_calls().is_empty())
        })
        .collect();
    let load = || vec!["load a".to_owned()];
    assert_eq!(tries, [(load(), false), (load(), true)]);
    assert_eq!(bed.adapter_state("a"), ServerDied);
    bed.advance(30 * SECOND);
    bed.settle();
    assert_eq!((bed.adapter_state("a"), bed.state.adapters[&id("a")].server_crashes), (Verified, 0));
}

#[test]
fn a_first_use_by_a_client_is_blamed_on_what_is_not_proven_yet() {
    let mut bed = StateTestbed::with_verified(&["old"]);
    bed.set_desired(&["old", "new"], &[], None);
    bed.begin_decided_calls();
    bed.finish_call("new", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("new", Err(timeout_error()));
    bed.restart_server("2");
    assert_eq!((bed.adapter_state("old"), bed.adapter_state("new")), (Pending, ServerDied));
}

#[test]
fn a_dead_engine_is_a_dead_server_although_it_still_answers() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&["a", "b"], &[], None);
    bed.begin_decided_calls();
    bed.finish_call("b", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("b", Err(engine_dead_error()));
    assert_eq!((bed.adapter_state("b"), bed.readiness()), (ServerDied, (false, "EngineDead".to_owned())));
    bed.advance(SECOND);
    bed.poll();
    assert!(!bed.readiness().0, "the same process is on its way out");
    bed.advance(5 * SECOND);
    bed.poll();
    assert!(bed.readiness().0, "it went on all the same");
}

#[test]
fn a_server_that_is_unreachable_for_a_call_is_suspect_and_the_call_is_no_failure() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Err(unreachable_error()));
    assert_eq!(bed.readiness().1, "Suspect");
    bed.poll();
    assert_eq!((bed.adapter_state("a"), bed.adapter_status("a").attempts), (Pending, 0));
}

#[test]
fn failures_back_off_and_a_changed_source_starts_afresh() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    let mut waits = Vec::new();
    for _ in 0..3 {
        bed.begin_decided_calls();
        bed.finish_call("a", Err(crate::testbed::bad_adapter_error("a")));
        let next = bed.adapter_status("a").next_try.unwrap();
        waits.push(next.duration_since(bed.now).as_secs());
        bed.now = next;
    }
    assert_eq!((waits, bed.adapter_status("a").attempts), (vec![1, 2, 4], 3));
    bed.state.adapters.get_mut(&id("a")).unwrap().spec.as_mut().unwrap().source = "/elsewhere".to_owned();
    bed.set_desired(&["a"], &[], None);
    assert_eq!((bed.adapter_status("a").attempts, bed.decided_calls()), (0, vec!["load a".to_owned()]));
}

#[test]
fn a_probe_without_an_answer_is_undecided() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    bed.begin_decided_calls();
    bed.finish_call("a", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("a", Err(timeout_error()));
    assert_eq!((bed.adapter_state("a"), bed.adapter_status("a").attempts, bed.readiness().0), (Loaded, 0, true));
    assert_eq!(bed.decided_calls(), Vec::<String>::new());
    bed.advance(SECOND);
    assert_eq!(bed.decided_calls(), ["probe a"]);
}

#[test]
fn an_unload_is_believed_when_the_list_says_so() {
    for answer in [Ok(()), Err(VllmError::UnknownAdapter { id: id("a") })] {
        let mut bed = StateTestbed::with_verified(&["a"]);
        bed.set_desired(&[], &["a"], None);
        assert_eq!(bed.begin_decided_calls(), ["unload a"]);
        bed.finish_call("a", answer);
        assert_eq!((bed.adapter_state("a"), bed.decided_calls()), (Unloading, Vec::new()));
        bed.table.clear();
        bed.poll();
        assert_eq!(bed.adapter_state("a"), Gone);
    }
}

#[test]
fn what_may_still_be_unloaded_is_not_resident_although_it_is_wanted_again() {
    let serving = OperatorDirectives { serving: ids(&["a"]), ..OperatorDirectives::default() };
    for (exist, not_exist, key, settled) in [
        (["a"].as_slice(), [].as_slice(), None, Verified),
        (&[], &["a"], Some(serving), UnloadHeld),
        (&[], &[], None, Unlisted),
    ] {
        let mut bed = StateTestbed::with_verified(&["a"]);
        bed.set_desired(&[], &["a"], None);
        assert_eq!(bed.begin_decided_calls(), ["unload a"]);
        bed.set_desired(exist, not_exist, key);
        let unloading = |bed: &StateTestbed| {
            let status = bed.status();
            assert_eq!(
                (bed.adapter_state("a"), status.is_resident(&id("a")), bed.decided_calls()),
                (Unloading, false, Vec::new())
            );
        };
        unloading(&bed);
        let ticket = bed.state.begin_poll(PollRequest { metrics: false, models: true }, bed.now);
        let old = bed.observe();
        bed.finish_call("a", Err(timeout_error()));
        unloading(&bed);
        bed.state.finish_poll(ticket, old, bed.now);
        unloading(&bed);
        bed.advance(SECOND);
        bed.poll();
        if settled == Verified {
            // Whether it was there all the time nobody has seen.
            assert_eq!(bed.begin_decided_calls(), ["probe a"]);
            bed.finish_call("a", Ok(()));
        }
        assert_eq!(bed.adapter_state("a"), settled);
    }
}

#[test]
fn what_was_unloaded_and_is_wanted_again_is_loaded_and_proven_again() {
    for answer in [Ok(()), Err(timeout_error())] {
        let mut bed = StateTestbed::with_verified(&["a"]);
        bed.set_desired(&[], &["a"], None);
        bed.begin_decided_calls();
        bed.set_desired(&["a"], &[], None);
        bed.finish_call("a", answer);
        assert_eq!(bed.adapter_state("a"), Unloading);
        bed.table.clear();
        bed.poll();
        assert_eq!((bed.adapter_state("a"), bed.begin_decided_calls()), (Pending, vec!["load a".to_owned()]));
        bed.finish_call("a", Ok(()));
        assert_eq!((bed.adapter_state("a"), bed.begin_decided_calls()), (Loaded, vec!["probe a".to_owned()]));
        bed.finish_call("a", Ok(()));
        assert_eq!(bed.adapter_state("a"), Verified);
    }
}

#[test]
fn an_unload_may_still_be_done_by_a_server_that_was_away_for_a_moment() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&[], &["a"], None);
    let epoch = bed.state.epoch();
    bed.begin_decided_calls();
    bed.set_desired(&["a"], &[], None);
    bed.process_start = None;
    bed.poll();
    bed.process_start = Some("1");
    bed.poll();
    assert_eq!((bed.status().is_resident(&id("a")), bed.decided_calls()), (false, Vec::new()));
    bed.table.clear();
    bed.state.finish_call(&id("a"), epoch, CallOutcome::Executed(Ok(())), 0.0, bed.now);
    assert_eq!(bed.state.due_poll(bed.now).map(|look| look.models), Some(true));
    bed.poll();
    assert_eq!((bed.adapter_state("a"), bed.decided_calls()), (Pending, vec!["load a".to_owned()]));
}

#[test]
fn an_unload_that_was_not_made_takes_nothing_back() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&[], &["a"], None);
    bed.begin_decided_calls();
    bed.set_desired(&["a"], &[], None);
    bed.state.finish_call(&id("a"), bed.state.epoch(), CallOutcome::Skipped, 0.0, bed.now);
    assert_eq!(bed.adapter_state("a"), Verified);
}

/// Begins what is decided, has it answered and looks, three times; the waits after it.
fn contradiction_backoffs(bed: &mut StateTestbed, answer: &Result<(), VllmError>) -> Vec<i64> {
    let waits = (0..3).map(|_| {
        assert_eq!(bed.begin_decided_calls().len(), 1);
        bed.finish_call("a", answer.clone());
        assert_eq!(bed.decided_calls(), Vec::<String>::new(), "the list is asked first");
        bed.poll();
        assert_eq!((bed.decided_calls(), bed.error_reason("a").as_str()), (Vec::new(), "Contradiction"));
        let next = bed.adapter_status("a").next_try.unwrap();
        let wait = next.duration_since(bed.now).as_secs();
        bed.now = next;
        wait
    });
    waits.collect()
}

#[test]
fn a_server_whose_answers_and_list_contradict_each_other_is_not_asked_without_end() {
    // As behind several API server processes, each with a table of its own.
    let mut unloaded = StateTestbed::with_verified(&["a"]);
    unloaded.set_desired(&[], &["a"], None);
    assert_eq!(contradiction_backoffs(&mut unloaded, &Ok(())), [1, 2, 4]);
    assert_eq!(unloaded.adapter_state("a"), Unloading);
    unloaded.table.clear();
    unloaded.poll();
    assert_eq!((unloaded.adapter_state("a"), unloaded.adapter_status("a").last_error), (Gone, None));

    let mut loaded = StateTestbed::with_listed(&["a"]);
    assert_eq!(contradiction_backoffs(&mut loaded, &Err(VllmError::AlreadyLoaded { id: id("a") })), [1, 2, 4]);
    assert_eq!(loaded.adapter_state("a"), Failed);
    loaded.settle();
    assert_eq!((loaded.adapter_state("a"), loaded.adapter_status("a").last_error), (Verified, None));

    let mut unknown = StateTestbed::new();
    unknown.table.insert("a".to_owned(), "/adapters/a".to_owned());
    unknown.poll();
    unknown.set_desired(&["a"], &[], None);
    assert_eq!(contradiction_backoffs(&mut unknown, &Err(VllmError::UnknownAdapter { id: id("a") })), [1, 2, 4]);
    unknown.settle();
    assert_eq!(unknown.adapter_state("a"), Verified);
}

#[test]
fn what_was_said_of_the_key_is_forgotten_when_the_list_comes() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    let ticket = bed.state.begin_poll(PollRequest { metrics: false, models: true }, bed.now);
    let refused = PollError { step: PollStep::Models, error: VllmError::Unauthorized };
    bed.state.finish_poll(ticket, Err(refused), bed.now);
    assert_eq!(bed.status().problem.unwrap().reason, "Unauthorized");
    bed.poll();
    assert_eq!(bed.status().problem, None);
}

#[test]
fn a_failed_unload_is_shown_and_tried_again() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.set_desired(&[], &["a"], None);
    bed.begin_decided_calls();
    bed.finish_call("a", Err(VllmError::RuntimeUpdatingOff));
    assert_eq!((bed.adapter_state("a"), bed.error_reason("a")), (Unloading, "RuntimeUpdatingOff".to_owned()));
    assert_eq!(bed.status().problem.unwrap().reason, "RuntimeUpdatingOff");
    bed.advance(SECOND);
    assert_eq!(bed.decided_calls(), ["unload a"]);
}

#[test]
fn what_somebody_else_registered_from_elsewhere_is_left_and_said() {
    let mut bed = StateTestbed::new();
    bed.table.insert("a".to_owned(), "/elsewhere".to_owned());
    bed.poll();
    bed.set_desired(&["a"], &[], None);
    assert_eq!((bed.adapter_state("a"), bed.decided_calls(), bed.readiness().0), (SourceChanged, Vec::new(), true));
    assert!(bed.adapter_status("a").last_error.unwrap().message.contains("new id"));
}

#[test]
fn a_use_counts_as_of_the_reading_that_shows_it_whatever_the_servers_clock_says() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    let start = bed.now;
    let hour = 3_600 * SECOND;
    let mut last_used = |used: Timestamp| {
        bed.advance(10 * SECOND);
        bed.last_used.insert(id("a"), used);
        bed.poll();
        (bed.adapter_status("a").last_used, bed.now)
    };
    let (ahead, first) = last_used(start + hour);
    assert_eq!(ahead, Some(first), "ahead");
    assert_eq!(last_used(start + hour).0, Some(first), "not used again");
    let (behind, third) = last_used(start - hour);
    assert_eq!(behind, Some(third), "behind: perhaps a moment ago");
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.last_used.insert(id("a"), start - hour);
    bed.restart_sidecar(bed.state.to_persisted());
    bed.set_desired(&["a"], &[], None);
    bed.poll();
    assert_eq!(bed.adapter_status("a").last_used, Some(bed.now), "the first reading of a sidecar");
}

#[test]
fn uses_are_read_when_the_metrics_are_asked_for_and_they_tell() {
    let mut bed = StateTestbed::with_listed(&["a"]);
    assert_eq!(bed.state.usage_read_at(), Some(bed.now), "the first look");
    // A look takes a second; what it is answered, and what is known then.
    let look = |bed: &mut StateTestbed, metrics: Option<ServerMetrics>| {
        bed.advance(10 * SECOND);
        let asked = bed.now;
        let ticket = bed.state.begin_poll(PollRequest { metrics: true, models: true }, asked);
        let shown = bed.observe();
        let late = PollError { step: PollStep::Metrics, error: timeout_error() };
        let seen = metrics
            .ok_or(late)
            .and_then(|metrics| shown.map(|seen| ServerObservation { metrics: Some(metrics), ..seen }));
        bed.advance(SECOND);
        bed.state.finish_poll(ticket, seen, bed.now);
        (asked, bed.state.usage_read_at())
    };
    let told =
        ServerMetrics { process_start_time: Some("1".to_owned()), has_statistics: true, ..ServerMetrics::default() };
    let untold = ServerMetrics { has_statistics: false, ..told.clone() };
    let (asked, read_at) = look(&mut bed, Some(told.clone()));
    assert_eq!(read_at, Some(asked), "when it began, not when it ended");
    for nothing in [None, Some(untold.clone())] {
        assert_eq!(look(&mut bed, nothing).1, Some(asked), "nothing is told");
    }
    let status = bed.status();
    let (later, read_at) = look(&mut bed, Some(told.clone()));
    assert_eq!((read_at, bed.status()), (Some(later), status), "nobody who watches the status is woken");
    // Another process that does not tell: what its predecessor told says nothing of it.
    let another = Some("2".to_owned());
    assert_eq!(look(&mut bed, Some(ServerMetrics { process_start_time: another.clone(), ..untold })).1, None);
    let (asked, read_at) = look(&mut bed, Some(ServerMetrics { process_start_time: Some("3".to_owned()), ..told }));
    assert_eq!(read_at, Some(asked));
}

#[test]
fn no_reading_is_told_without_the_uses_that_it_showed() {
    // Used a moment before the metrics are answered, long after they were asked for.
    let mut bed = StateTestbed::with_verified(&["a"]);
    bed.advance(10 * SECOND);
    let ticket = bed.state.begin_poll(PollRequest { metrics: true, models: true }, bed.now);
    bed.advance(5 * SECOND);
    let used = bed.now;
    bed.last_used.insert(id("a"), used);
    let seen = bed.observe();
    bed.state.finish_poll(ticket, seen, bed.now);
    assert!(bed.adapter_status("a").last_used >= Some(used), "not earlier than it was");
    assert!(bed.state.usage_read_at() <= bed.adapter_status("a").last_used, "it is not quiet yet");
    // What nobody had listed when the metrics were read.
    let mut bed = StateTestbed::new();
    bed.last_used.insert(id("a"), bed.now);
    bed.poll();
    bed.set_desired(&["a"], &[], None);
    assert_eq!(bed.adapter_status("a").last_used, Some(bed.now));
}

#[test]
fn where_no_use_is_told_an_unload_waits_from_when_it_became_unwanted() {
    let mut bed = StateTestbed::with_verified(&["a"]);
    let ticket = bed.state.begin_poll(PollRequest { metrics: true, models: true }, bed.now);
    let untold = ServerMetrics { process_start_time: Some("1".to_owned()), ..ServerMetrics::default() };
    let seen = bed.observe().map(|seen| ServerObservation { metrics: Some(untold), ..seen });
    bed.state.finish_poll(ticket, seen, bed.now);
    bed.set_desired(&[], &["a"], None);
    assert_eq!(bed.decided_calls(), Vec::<String>::new());
    bed.advance(bed.state.policy.unload_grace);
    assert_eq!(bed.decided_calls(), ["unload a"]);
}

#[test]
fn uses_are_read_every_second_only_while_somebody_waits_for_their_end() {
    let interval = |bed: &mut StateTestbed| {
        bed.poll();
        let began = bed.now;
        while !bed.state.due_poll(bed.now).is_some_and(|look| look.metrics) {
            bed.advance(Duration::from_millis(250));
        }
        bed.now.duration_since(began).as_secs()
    };
    let key = |serving: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        admitted: ids(&["v1", "v2"]),
        serving: ids(serving),
        ..OperatorDirectives::default()
    };
    let mut bed = StateTestbed::with_verified(&["v1", "v2"]);
    assert_eq!(interval(&mut bed), 15, "nobody waits");
    bed.set_desired(&["v1", "v2"], &[], Some(key(&["v1", "v2"])));
    assert_eq!(interval(&mut bed), 15, "both serve");
    bed.state.boost_usage_polls(bed.now);
    assert_eq!(interval(&mut bed), 1, "somebody looks");
    bed.advance(Duration::from_secs(4));
    assert_eq!(interval(&mut bed), 15, "nobody has looked for a while");
    bed.set_desired(&["v1", "v2"], &[], Some(key(&["v2"])));
    assert_eq!(interval(&mut bed), 1, "v1 has retired");
    bed.set_desired(&["v2"], &["v1"], Some(key(&["v2"])));
    assert_eq!(interval(&mut bed), 1, "v1 is unwanted");
}

#[test]
fn a_server_that_does_not_say_when_it_started_is_known_by_what_it_remembers() {
    let unnamed = |bed: &mut StateTestbed| {
        let ticket = bed.state.begin_poll(PollRequest { metrics: true, models: true }, bed.now);
        let seen = bed.observe().map(|seen| ServerObservation { metrics: Some(ServerMetrics::default()), ..seen });
        bed.state.finish_poll(ticket, seen, bed.now);
        bed.state.process.as_ref().unwrap().identity.start.clone()
    };
    let mut bed = StateTestbed::with_listed(&["a"]);
    let first = unnamed(&mut bed);
    bed.settle();
    bed.advance(SECOND);
    assert_eq!(unnamed(&mut bed), first, "nothing happened");
    bed.state.idle_connection_closed();
    assert_eq!(unnamed(&mut bed), first, "it remembers `a`");
    bed.state.idle_connection_closed();
    bed.table.clear();
    assert_ne!(unnamed(&mut bed), first, "it has forgotten `a`");
}

#[test]
fn ids_that_nobody_names_or_holds_are_forgotten() {
    let mut bed = StateTestbed::with_verified(&["a", "b"]);
    bed.set_desired(&["b"], &[], None);
    assert_eq!(bed.state.adapters.len(), 2, "`a` is registered");
    bed.table.remove("a");
    bed.poll();
    assert_eq!(bed.state.adapters.keys().collect::<Vec<_>>(), [&id("b")]);
}
