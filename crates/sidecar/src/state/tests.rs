//! Tests of the state after events.

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
fn load_without_answer_waits_for_the_model_list() {
    for registered in [true, false] {
        let mut testbed = StateTestbed::with_listed(&["a"]);
        testbed.begin_decided_calls();
        testbed.finish_call("a", Err(timeout_error()));
        testbed.advance(60 * SECOND);
        assert_eq!(testbed.decided_calls(), Vec::<String>::new(), "the load is unconfirmed");
        assert_eq!(testbed.state.due_poll(testbed.now).map(|request| request.models), Some(true));
        if registered {
            testbed.table.insert("a".to_owned(), "/adapters/a".to_owned());
        }
        testbed.poll();
        assert_eq!(testbed.decided_calls(), [if registered { "probe a" } else { "load a" }]);
        assert_eq!(testbed.adapter_state("a"), if registered { Loaded } else { Failed });
    }
}

#[test]
fn older_model_list_does_not_undo_a_load() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    let pending = testbed.state.begin_poll(PollRequest { metrics: false, models: true }, testbed.now);
    let older_list = testbed.observe();
    testbed.finish_call("a", Ok(()));
    testbed.state.finish_poll(pending, older_list, testbed.now);
    assert_eq!(testbed.adapter_state("a"), Loaded);
}

#[test]
fn answer_from_before_a_restart_is_ignored() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    let epoch = testbed.state.epoch();
    testbed.begin_decided_calls();
    testbed.restart_server("2");
    testbed.state.finish_call(&id("a"), epoch, CallOutcome::Executed(Ok(())), 0.0, testbed.now);
    assert_eq!(testbed.state.adapters[&id("a")].registered, None);
}

#[test]
fn adapter_registered_by_a_new_process_is_not_verified() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.process_start = Some("2");
    testbed.state.idle_connection_closed();
    testbed.poll();
    assert_eq!(testbed.adapter_state("a"), Loaded);
}

#[test]
fn verification_survives_an_outage_of_the_same_process() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.process_start = None;
    testbed.poll();
    assert_eq!((testbed.status().server, testbed.adapter_state("a")), (None, Pending));
    testbed.process_start = Some("1");
    testbed.poll();
    assert_eq!((testbed.adapter_state("a"), testbed.readiness().0), (Verified, true));
}

#[test]
fn only_a_later_poll_clears_a_suspicion() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    let pending = testbed.state.begin_poll(PollRequest { metrics: true, models: true }, testbed.now);
    let observation = testbed.observe();
    testbed.state.idle_connection_closed();
    testbed.state.finish_poll(pending, observation, testbed.now);
    assert_eq!(testbed.readiness(), (false, "Suspect".to_owned()));
    assert_eq!(testbed.state.due_poll(testbed.now), Some(PollRequest { metrics: true, models: true }));
    testbed.poll();
    assert!(testbed.readiness().0);
}

#[test]
fn closed_idle_connection_is_only_polled_after_two_suspicions() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    let suspected: Vec<bool> = (0..4)
        .map(|_| {
            testbed.state.idle_connection_closed();
            let suspected = !testbed.readiness().0;
            assert!(testbed.state.due_poll(testbed.now).is_some_and(|request| request.metrics));
            testbed.poll();
            suspected
        })
        .collect();
    assert_eq!(suspected, [true, true, false, false]);
    testbed.restart_server("2");
    testbed.settle();
    testbed.state.idle_connection_closed();
    assert!(!testbed.readiness().0, "a new process is suspected again");
}

#[test]
fn ungoverned_id_is_retried_once_30_s_after_a_crash() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(connection_lost_error()));
    testbed.restart_server("2");
    assert_eq!((testbed.adapter_state("a"), testbed.error_reason("a")), (ServerDied, "ServerDied".to_owned()));
    assert_eq!(testbed.decided_calls(), Vec::<String>::new());
    testbed.advance(30 * SECOND);
    assert_eq!(testbed.begin_decided_calls(), ["load a"]);
    testbed.restart_server("3");
    testbed.advance(Duration::from_secs(1_000_000));
    assert_eq!((testbed.adapter_state("a"), testbed.decided_calls()), (Quarantined, Vec::new()));
    assert_eq!(testbed.adapter_status("a").next_try, None);
    testbed.set_desired(&[], &[], None);
    testbed.set_desired(&["a"], &[], None);
    assert_eq!(testbed.decided_calls(), ["load a"], "its entry was removed and added again");
}

#[test]
fn pilot_that_crashed_the_server_waits_for_the_operator() {
    let mut testbed = StateTestbed::new();
    testbed.set_desired(&["v2"], &[], Some(pilot_directives(&["v2"])));
    testbed.begin_decided_calls();
    testbed.restart_server("2");
    testbed.advance(Duration::from_secs(1_000_000));
    assert_eq!((testbed.adapter_state("v2"), testbed.decided_calls()), (ServerDied, Vec::new()));
    // A trial that is suspended for a while and resumed is no decision.
    testbed.set_desired(&["v2"], &[], Some(OperatorDirectives { pilots: Vec::new(), ..pilot_directives(&["v2"]) }));
    testbed.set_desired(&["v2"], &[], Some(pilot_directives(&["v2"])));
    assert_eq!((testbed.adapter_state("v2"), testbed.decided_calls()), (ServerDied, Vec::new()));
    testbed.set_desired(&["v2"], &[], Some(OperatorDirectives { rejected: ids(&["v2"]), ..pilot_directives(&["v2"]) }));
    assert_eq!((testbed.adapter_state("v2"), testbed.decided_calls()), (Rejected, Vec::new()));
    testbed.set_desired(&["v2"], &[], Some(pilot_directives(&["v2"])));
    assert_eq!(testbed.decided_calls(), ["load v2"]);
}

#[test]
fn verified_adapter_is_not_blamed_if_another_was_in_flight() {
    let mut testbed = StateTestbed::with_verified(&["old"]);
    testbed.restart_server("2");
    testbed.set_desired(&["old", "new"], &[], None);
    assert_eq!(testbed.begin_decided_calls(), ["load old", "load new"]);
    testbed.restart_server("3");
    assert_eq!((testbed.adapter_state("old"), testbed.adapter_state("new")), (Pending, ServerDied));
}

#[test]
fn verified_adapter_is_retried_immediately_after_a_crash() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.restart_server("2");
    let attempts: Vec<_> = ["3", "4"]
        .into_iter()
        .map(|process| {
            let begun = testbed.begin_decided_calls();
            testbed.restart_server(process);
            (begun, testbed.decided_calls().is_empty())
        })
        .collect();
    let load = || vec!["load a".to_owned()];
    assert_eq!(attempts, [(load(), false), (load(), true)]);
    assert_eq!(testbed.adapter_state("a"), ServerDied);
    testbed.advance(30 * SECOND);
    testbed.settle();
    assert_eq!((testbed.adapter_state("a"), testbed.state.adapters[&id("a")].server_crashes), (Verified, 0));
}

#[test]
fn crash_by_client_use_is_blamed_on_unverified_adapter() {
    let mut testbed = StateTestbed::with_verified(&["old"]);
    testbed.set_desired(&["old", "new"], &[], None);
    testbed.begin_decided_calls();
    testbed.finish_call("new", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("new", Err(timeout_error()));
    testbed.restart_server("2");
    assert_eq!((testbed.adapter_state("old"), testbed.adapter_state("new")), (Pending, ServerDied));
}

#[test]
fn dead_engine_is_down_although_its_process_answers() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&["a", "b"], &[], None);
    testbed.begin_decided_calls();
    testbed.finish_call("b", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("b", Err(engine_dead_error()));
    assert_eq!((testbed.adapter_state("b"), testbed.readiness()), (ServerDied, (false, "EngineDead".to_owned())));
    testbed.advance(SECOND);
    testbed.poll();
    assert!(!testbed.readiness().0, "the process with the dead engine is about to exit");
    testbed.advance(5 * SECOND);
    testbed.poll();
    assert!(testbed.readiness().0, "the process did not exit");
}

#[test]
fn unreachable_server_is_suspect_and_its_call_no_failure() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(unreachable_error()));
    assert_eq!(testbed.readiness().1, "Suspect");
    testbed.poll();
    assert_eq!((testbed.adapter_state("a"), testbed.adapter_status("a").attempts), (Pending, 0));
}

#[test]
fn failures_back_off_until_the_source_changes() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    let mut delays = Vec::new();
    for _ in 0..3 {
        testbed.begin_decided_calls();
        testbed.finish_call("a", Err(crate::testbed::bad_adapter_error("a")));
        let next = testbed.adapter_status("a").next_try.unwrap();
        delays.push(next.duration_since(testbed.now).as_secs());
        testbed.now = next;
    }
    assert_eq!((delays, testbed.adapter_status("a").attempts), (vec![1, 2, 4], 3));
    testbed.state.adapters.get_mut(&id("a")).unwrap().spec.as_mut().unwrap().source = "/elsewhere".to_owned();
    testbed.set_desired(&["a"], &[], None);
    assert_eq!((testbed.adapter_status("a").attempts, testbed.decided_calls()), (0, vec!["load a".to_owned()]));
}

#[test]
fn probe_without_answer_is_inconclusive() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(timeout_error()));
    assert_eq!(
        (testbed.adapter_state("a"), testbed.adapter_status("a").attempts, testbed.readiness().0),
        (Loaded, 0, true)
    );
    assert_eq!(testbed.decided_calls(), Vec::<String>::new());
    testbed.advance(SECOND);
    assert_eq!(testbed.decided_calls(), ["probe a"]);
}

#[test]
fn unload_is_confirmed_by_the_model_list() {
    for answer in [Ok(()), Err(VllmError::UnknownAdapter { id: id("a") })] {
        let mut testbed = StateTestbed::with_verified(&["a"]);
        testbed.set_desired(&[], &["a"], None);
        assert_eq!(testbed.begin_decided_calls(), ["unload a"]);
        testbed.finish_call("a", answer);
        assert_eq!((testbed.adapter_state("a"), testbed.decided_calls()), (Unloading, Vec::new()));
        testbed.table.clear();
        testbed.poll();
        assert_eq!(testbed.adapter_state("a"), Gone);
    }
}

#[test]
fn adapter_with_pending_unload_is_not_resident_if_rewanted() {
    let serving = OperatorDirectives { serving: ids(&["a"]), ..OperatorDirectives::default() };
    for (exist, not_exist, directives, settled_state) in [
        (["a"].as_slice(), [].as_slice(), None, Verified),
        (&[], &["a"], Some(serving), UnloadHeld),
        (&[], &[], None, Unlisted),
    ] {
        let mut testbed = StateTestbed::with_verified(&["a"]);
        testbed.set_desired(&[], &["a"], None);
        assert_eq!(testbed.begin_decided_calls(), ["unload a"]);
        testbed.set_desired(exist, not_exist, directives);
        let assert_unloading = |testbed: &StateTestbed| {
            let status = testbed.status();
            assert_eq!(
                (testbed.adapter_state("a"), status.is_resident(&id("a")), testbed.decided_calls()),
                (Unloading, false, Vec::new())
            );
        };
        assert_unloading(&testbed);
        let pending = testbed.state.begin_poll(PollRequest { metrics: false, models: true }, testbed.now);
        let older_list = testbed.observe();
        testbed.finish_call("a", Err(timeout_error()));
        assert_unloading(&testbed);
        testbed.state.finish_poll(pending, older_list, testbed.now);
        assert_unloading(&testbed);
        testbed.advance(SECOND);
        testbed.poll();
        if settled_state == Verified {
            // It may have been unloaded and loaded again in between, so it is verified again.
            assert_eq!(testbed.begin_decided_calls(), ["probe a"]);
            testbed.finish_call("a", Ok(()));
        }
        assert_eq!(testbed.adapter_state("a"), settled_state);
    }
}

#[test]
fn unloaded_adapter_is_loaded_and_verified_if_rewanted() {
    for answer in [Ok(()), Err(timeout_error())] {
        let mut testbed = StateTestbed::with_verified(&["a"]);
        testbed.set_desired(&[], &["a"], None);
        testbed.begin_decided_calls();
        testbed.set_desired(&["a"], &[], None);
        testbed.finish_call("a", answer);
        assert_eq!(testbed.adapter_state("a"), Unloading);
        testbed.table.clear();
        testbed.poll();
        assert_eq!((testbed.adapter_state("a"), testbed.begin_decided_calls()), (Pending, vec!["load a".to_owned()]));
        testbed.finish_call("a", Ok(()));
        assert_eq!((testbed.adapter_state("a"), testbed.begin_decided_calls()), (Loaded, vec!["probe a".to_owned()]));
        testbed.finish_call("a", Ok(()));
        assert_eq!(testbed.adapter_state("a"), Verified);
    }
}

#[test]
fn unload_may_take_effect_after_a_short_outage() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&[], &["a"], None);
    let epoch = testbed.state.epoch();
    testbed.begin_decided_calls();
    testbed.set_desired(&["a"], &[], None);
    testbed.process_start = None;
    testbed.poll();
    testbed.process_start = Some("1");
    testbed.poll();
    assert_eq!((testbed.status().is_resident(&id("a")), testbed.decided_calls()), (false, Vec::new()));
    testbed.table.clear();
    testbed.state.finish_call(&id("a"), epoch, CallOutcome::Executed(Ok(())), 0.0, testbed.now);
    assert_eq!(testbed.state.due_poll(testbed.now).map(|request| request.models), Some(true));
    testbed.poll();
    assert_eq!((testbed.adapter_state("a"), testbed.decided_calls()), (Pending, vec!["load a".to_owned()]));
}

#[test]
fn skipped_unload_keeps_the_adapter_verified() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&[], &["a"], None);
    testbed.begin_decided_calls();
    testbed.set_desired(&["a"], &[], None);
    testbed.state.finish_call(&id("a"), testbed.state.epoch(), CallOutcome::Skipped, 0.0, testbed.now);
    assert_eq!(testbed.adapter_state("a"), Verified);
}

/// Three times: starts the decided call, finishes it with `answer` and polls. Returns the retry delays in seconds.
fn contradiction_backoffs(testbed: &mut StateTestbed, answer: &Result<(), VllmError>) -> Vec<i64> {
    let delays = (0..3).map(|_| {
        assert_eq!(testbed.begin_decided_calls().len(), 1);
        testbed.finish_call("a", answer.clone());
        assert_eq!(testbed.decided_calls(), Vec::<String>::new(), "the model list must be read first");
        testbed.poll();
        assert_eq!((testbed.decided_calls(), testbed.error_reason("a").as_str()), (Vec::new(), "Contradiction"));
        let next = testbed.adapter_status("a").next_try.unwrap();
        let delay = next.duration_since(testbed.now).as_secs();
        testbed.now = next;
        delay
    });
    delays.collect()
}

#[test]
fn calls_back_off_if_answers_contradict_the_model_list() {
    // Several API server processes, each with its own adapter table, behave like this.
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
fn model_list_clears_an_unauthorized_problem() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    let pending = testbed.state.begin_poll(PollRequest { metrics: false, models: true }, testbed.now);
    let poll_error = PollError { step: PollStep::Models, error: VllmError::Unauthorized };
    testbed.state.finish_poll(pending, Err(poll_error), testbed.now);
    assert_eq!(testbed.status().problem.unwrap().reason, "Unauthorized");
    testbed.poll();
    assert_eq!(testbed.status().problem, None);
}

#[test]
fn failed_unload_is_reported_and_retried() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.set_desired(&[], &["a"], None);
    testbed.begin_decided_calls();
    testbed.finish_call("a", Err(VllmError::RuntimeUpdatingOff));
    assert_eq!((testbed.adapter_state("a"), testbed.error_reason("a")), (Unloading, "RuntimeUpdatingOff".to_owned()));
    assert_eq!(testbed.status().problem.unwrap().reason, "RuntimeUpdatingOff");
    testbed.advance(SECOND);
    assert_eq!(testbed.decided_calls(), ["unload a"]);
}

#[test]
fn adapter_with_foreign_source_is_kept_and_reported() {
    let mut testbed = StateTestbed::new();
    testbed.table.insert("a".to_owned(), "/elsewhere".to_owned());
    testbed.poll();
    testbed.set_desired(&["a"], &[], None);
    assert_eq!(
        (testbed.adapter_state("a"), testbed.decided_calls(), testbed.readiness().0),
        (SourceChanged, Vec::new(), true)
    );
    assert!(testbed.adapter_status("a").last_error.unwrap().message.contains("new id"));
}

#[test]
fn use_counts_as_of_its_poll_independent_of_server_clock() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    let start = testbed.now;
    let hour = 3_600 * SECOND;
    let mut last_used = |used: Timestamp| {
        testbed.advance(10 * SECOND);
        testbed.last_used.insert(id("a"), used);
        testbed.poll();
        (testbed.adapter_status("a").last_used, testbed.now)
    };
    let (ahead, first) = last_used(start + hour);
    assert_eq!(ahead, Some(first), "server clock ahead");
    assert_eq!(last_used(start + hour).0, Some(first), "not used again");
    let (behind, third) = last_used(start - hour);
    assert_eq!(behind, Some(third), "server clock behind: it may be a recent use");
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.last_used.insert(id("a"), start - hour);
    testbed.restart_sidecar(testbed.state.to_persisted());
    testbed.set_desired(&["a"], &[], None);
    testbed.poll();
    assert_eq!(testbed.adapter_status("a").last_used, Some(testbed.now), "the first poll of a sidecar");
}

#[test]
fn usage_read_at_is_the_request_time_of_usable_metrics() {
    let mut testbed = StateTestbed::with_listed(&["a"]);
    assert_eq!(testbed.state.usage_read_at(), Some(testbed.now), "the first poll");
    // A poll that takes a second. Returns its request time and `usage_read_at` after it.
    let poll = |testbed: &mut StateTestbed, metrics: Option<ServerMetrics>| {
        testbed.advance(10 * SECOND);
        let requested_at = testbed.now;
        let pending = testbed.state.begin_poll(PollRequest { metrics: true, models: true }, requested_at);
        let observation = testbed.observe();
        let timeout = PollError { step: PollStep::Metrics, error: timeout_error() };
        let observation = metrics.ok_or(timeout).and_then(|metrics| {
            observation.map(|observation| ServerObservation { metrics: Some(metrics), ..observation })
        });
        testbed.advance(SECOND);
        testbed.state.finish_poll(pending, observation, testbed.now);
        (requested_at, testbed.state.usage_read_at())
    };
    let with_statistics =
        ServerMetrics { process_start_time: Some("1".to_owned()), has_statistics: true, ..ServerMetrics::default() };
    let without_statistics = ServerMetrics { has_statistics: false, ..with_statistics.clone() };
    let (requested_at, read_at) = poll(&mut testbed, Some(with_statistics.clone()));
    assert_eq!(read_at, Some(requested_at), "the request time, not the end");
    for metrics in [None, Some(without_statistics.clone())] {
        assert_eq!(poll(&mut testbed, metrics).1, Some(requested_at), "these metrics contain no usage");
    }
    let status = testbed.status();
    let (later, read_at) = poll(&mut testbed, Some(with_statistics.clone()));
    assert_eq!((read_at, testbed.status()), (Some(later), status), "a usage poll must not change the status");
    // A new process without statistics: those of its predecessor say nothing about it.
    let another = Some("2".to_owned());
    assert_eq!(
        poll(&mut testbed, Some(ServerMetrics { process_start_time: another.clone(), ..without_statistics })).1,
        None
    );
    let (requested_at, read_at) =
        poll(&mut testbed, Some(ServerMetrics { process_start_time: Some("3".to_owned()), ..with_statistics }));
    assert_eq!(read_at, Some(requested_at));
}

#[test]
fn usage_read_at_never_precedes_its_recorded_uses() {
    // Used just before the metrics are answered, long after they were requested.
    let mut testbed = StateTestbed::with_verified(&["a"]);
    testbed.advance(10 * SECOND);
    let pending = testbed.state.begin_poll(PollRequest { metrics: true, models: true }, testbed.now);
    testbed.advance(5 * SECOND);
    let used = testbed.now;
    testbed.last_used.insert(id("a"), used);
    let observation = testbed.observe();
    testbed.state.finish_poll(pending, observation, testbed.now);
    assert!(
        testbed.adapter_status("a").last_used >= Some(used),
        "the recorded use must not be earlier than the actual one"
    );
    assert!(
        testbed.state.usage_read_at() <= testbed.adapter_status("a").last_used,
        "the adapter must not count as idle"
    );
    // An id that the file did not list when the metrics were read.
    let mut testbed = StateTestbed::new();
    testbed.last_used.insert(id("a"), testbed.now);
    testbed.poll();
    testbed.set_desired(&["a"], &[], None);
    assert_eq!(testbed.adapter_status("a").last_used, Some(testbed.now));
}

#[test]
fn without_statistics_the_grace_starts_when_unwanted() {
    let mut testbed = StateTestbed::with_verified(&["a"]);
    let pending = testbed.state.begin_poll(PollRequest { metrics: true, models: true }, testbed.now);
    let without_statistics = ServerMetrics { process_start_time: Some("1".to_owned()), ..ServerMetrics::default() };
    let observation =
        testbed.observe().map(|observation| ServerObservation { metrics: Some(without_statistics), ..observation });
    testbed.state.finish_poll(pending, observation, testbed.now);
    testbed.set_desired(&[], &["a"], None);
    assert_eq!(testbed.decided_calls(), Vec::<String>::new());
    testbed.advance(testbed.state.policy.unload_grace);
    assert_eq!(testbed.decided_calls(), ["unload a"]);
}

#[test]
fn usage_is_polled_every_second_only_while_awaited() {
    let interval = |testbed: &mut StateTestbed| {
        testbed.poll();
        let began = testbed.now;
        while !testbed.state.due_poll(testbed.now).is_some_and(|request| request.metrics) {
            testbed.advance(Duration::from_millis(250));
        }
        testbed.now.duration_since(began).as_secs()
    };
    let directives = |serving: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        admitted: ids(&["v1", "v2"]),
        serving: ids(serving),
        ..OperatorDirectives::default()
    };
    let mut testbed = StateTestbed::with_verified(&["v1", "v2"]);
    assert_eq!(interval(&mut testbed), 15, "no end of use is awaited");
    testbed.set_desired(&["v1", "v2"], &[], Some(directives(&["v1", "v2"])));
    assert_eq!(interval(&mut testbed), 15, "both are serving");
    testbed.state.boost_usage_polls(testbed.now);
    assert_eq!(interval(&mut testbed), 1, "a client requested usage polls");
    testbed.advance(Duration::from_secs(4));
    assert_eq!(interval(&mut testbed), 15, "the request has expired");
    testbed.set_desired(&["v1", "v2"], &[], Some(directives(&["v2"])));
    assert_eq!(interval(&mut testbed), 1, "v1 has retired");
    testbed.set_desired(&["v2"], &["v1"], Some(directives(&["v2"])));
    assert_eq!(interval(&mut testbed), 1, "v1 is unwanted");
}

#[test]
fn server_without_start_time_is_identified_by_its_adapters() {
    let poll_without_start_time = |testbed: &mut StateTestbed| {
        let pending = testbed.state.begin_poll(PollRequest { metrics: true, models: true }, testbed.now);
        let observation = testbed
            .observe()
            .map(|observation| ServerObservation { metrics: Some(ServerMetrics::default()), ..observation });
        testbed.state.finish_poll(pending, observation, testbed.now);
        testbed.state.process.as_ref().unwrap().identity.start.clone()
    };
    let mut testbed = StateTestbed::with_listed(&["a"]);
    let first = poll_without_start_time(&mut testbed);
    testbed.settle();
    testbed.advance(SECOND);
    assert_eq!(poll_without_start_time(&mut testbed), first, "no event happened");
    testbed.state.idle_connection_closed();
    assert_eq!(poll_without_start_time(&mut testbed), first, "it still holds `a`");
    testbed.state.idle_connection_closed();
    testbed.table.clear();
    assert_ne!(poll_without_start_time(&mut testbed), first, "it has lost `a`");
}

#[test]
fn unlisted_and_unregistered_ids_are_dropped() {
    let mut testbed = StateTestbed::with_verified(&["a", "b"]);
    testbed.set_desired(&["b"], &[], None);
    assert_eq!(testbed.state.adapters.len(), 2, "`a` is registered");
    testbed.table.remove("a");
    testbed.poll();
    assert_eq!(testbed.state.adapters.keys().collect::<Vec<_>>(), [&id("b")]);
}
