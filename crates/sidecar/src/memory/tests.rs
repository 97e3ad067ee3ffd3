//! Events, and what is known after them.

use super::*;
use crate::bed::{Bed, engine_dead, id, ids, late, lost, pilots, unreachable};
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
        let mut bed = Bed::listing(&["a"]);
        bed.begin();
        bed.end("a", Err(late()));
        bed.wait(60 * SECOND);
        assert_eq!(bed.decided(), Vec::<String>::new(), "in doubt");
        assert_eq!(bed.memory.look_due(bed.now).map(|look| look.models), Some(true));
        if registered {
            bed.table.insert("a".to_owned(), "/adapters/a".to_owned());
        }
        bed.look();
        assert_eq!(bed.decided(), [if registered { "probe a" } else { "load a" }]);
        assert_eq!(bed.state("a"), if registered { Loaded } else { Failed });
    }
}

#[test]
fn a_list_that_was_asked_for_before_a_load_ended_does_not_undo_it() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    let ticket = bed.memory.look_began(Look { metrics: false, models: true }, bed.now);
    let old = bed.shows();
    bed.end("a", Ok(()));
    bed.memory.looked(ticket, old, bed.now);
    assert_eq!(bed.state("a"), Loaded);
}

#[test]
fn an_answer_to_a_call_from_before_a_restart_counts_for_nothing() {
    let mut bed = Bed::listing(&["a"]);
    let epoch = bed.memory.epoch();
    bed.begin();
    bed.restart("2");
    bed.memory.ended(&id("a"), epoch, Ended::Answered(Ok(())), 0.0, bed.now);
    assert_eq!(bed.memory.adapters[&id("a")].registered, None);
}

#[test]
fn what_another_process_registers_by_itself_is_not_verified() {
    let mut bed = Bed::settled(&["a"]);
    bed.process = Some("2");
    bed.memory.connection_closed();
    bed.look();
    assert_eq!(bed.state("a"), Loaded);
}

#[test]
fn what_was_verified_stays_so_when_the_same_process_is_reached_again() {
    let mut bed = Bed::settled(&["a"]);
    bed.process = None;
    bed.look();
    assert_eq!((bed.status().server, bed.state("a")), (None, Pending));
    bed.process = Some("1");
    bed.look();
    assert_eq!((bed.state("a"), bed.readiness().0), (Verified, true));
}

#[test]
fn only_a_look_that_began_later_lifts_a_suspicion() {
    let mut bed = Bed::settled(&["a"]);
    let ticket = bed.memory.look_began(Look { metrics: true, models: true }, bed.now);
    let seen = bed.shows();
    bed.memory.connection_closed();
    bed.memory.looked(ticket, seen, bed.now);
    assert_eq!(bed.readiness(), (false, "Suspect".to_owned()));
    assert_eq!(bed.memory.look_due(bed.now), Some(Look { metrics: true, models: true }));
    bed.look();
    assert!(bed.readiness().0);
}

#[test]
fn a_server_that_closes_idle_connections_is_suspected_twice_and_then_only_looked_at() {
    let mut bed = Bed::settled(&["a"]);
    let suspected: Vec<bool> = (0..4)
        .map(|_| {
            bed.memory.connection_closed();
            let suspected = !bed.readiness().0;
            assert!(bed.memory.look_due(bed.now).is_some_and(|look| look.metrics));
            bed.look();
            suspected
        })
        .collect();
    assert_eq!(suspected, [true, true, false, false]);
    bed.restart("2");
    bed.settle();
    bed.memory.connection_closed();
    assert!(!bed.readiness().0, "another process is given the benefit of the doubt again");
}

#[test]
fn unmanaged_ids_over_which_the_server_dies_are_tried_once_more_after_thirty_seconds() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    bed.end("a", Err(lost()));
    bed.restart("2");
    assert_eq!((bed.state("a"), bed.reason("a")), (ServerDied, "ServerDied".to_owned()));
    assert_eq!(bed.decided(), Vec::<String>::new());
    bed.wait(30 * SECOND);
    assert_eq!(bed.begin(), ["load a"]);
    bed.restart("3");
    bed.wait(Duration::from_secs(1_000_000));
    assert_eq!((bed.state("a"), bed.decided()), (Quarantined, Vec::new()));
    assert_eq!(bed.adapter("a").next_try, None);
    bed.desire(&[], &[], None);
    bed.desire(&["a"], &[], None);
    assert_eq!(bed.decided(), ["load a"], "somebody took it out and put it back");
}

#[test]
fn a_pilot_over_which_the_server_dies_waits_for_the_operator() {
    let mut bed = Bed::up();
    bed.desire(&["v2"], &[], Some(pilots(&["v2"])));
    bed.begin();
    bed.restart("2");
    bed.wait(Duration::from_secs(1_000_000));
    assert_eq!((bed.state("v2"), bed.decided()), (ServerDied, Vec::new()));
    // The trial is called off for a while and comes back: that is no answer.
    bed.desire(&["v2"], &[], Some(OperatorDirectives { pilots: Vec::new(), ..pilots(&["v2"]) }));
    bed.desire(&["v2"], &[], Some(pilots(&["v2"])));
    assert_eq!((bed.state("v2"), bed.decided()), (ServerDied, Vec::new()));
    bed.desire(&["v2"], &[], Some(OperatorDirectives { rejected: ids(&["v2"]), ..pilots(&["v2"]) }));
    assert_eq!((bed.state("v2"), bed.decided()), (Rejected, Vec::new()));
    bed.desire(&["v2"], &[], Some(pilots(&["v2"])));
    assert_eq!(bed.decided(), ["load v2"]);
}

#[test]
fn what_was_proven_here_is_not_blamed_while_there_is_another() {
    let mut bed = Bed::settled(&["old"]);
    bed.restart("2");
    bed.desire(&["old", "new"], &[], None);
    assert_eq!(bed.begin(), ["load old", "load new"]);
    bed.restart("3");
    assert_eq!((bed.state("old"), bed.state("new")), (Pending, ServerDied));
}

#[test]
fn what_was_proven_here_is_tried_again_at_once() {
    let mut bed = Bed::settled(&["a"]);
    bed.restart("2");
    let tries: Vec<_> = ["3", "4"]
        .into_iter()
        .map(|process| {
            let begun = bed.begin();
            bed.restart(process);
            (begun, bed.decided().is_empty())
        })
        .collect();
    let load = || vec!["load a".to_owned()];
    assert_eq!(tries, [(load(), false), (load(), true)]);
    assert_eq!(bed.state("a"), ServerDied);
    bed.wait(30 * SECOND);
    bed.settle();
    assert_eq!((bed.state("a"), bed.memory.adapters[&id("a")].deaths), (Verified, 0));
}

#[test]
fn a_first_use_by_a_client_is_blamed_on_what_is_not_proven_yet() {
    let mut bed = Bed::settled(&["old"]);
    bed.desire(&["old", "new"], &[], None);
    bed.begin();
    bed.end("new", Ok(()));
    bed.begin();
    bed.end("new", Err(late()));
    bed.restart("2");
    assert_eq!((bed.state("old"), bed.state("new")), (Pending, ServerDied));
}

#[test]
fn a_dead_engine_is_a_dead_server_although_it_still_answers() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&["a", "b"], &[], None);
    bed.begin();
    bed.end("b", Ok(()));
    bed.begin();
    bed.end("b", Err(engine_dead()));
    assert_eq!((bed.state("b"), bed.readiness()), (ServerDied, (false, "EngineDead".to_owned())));
    bed.wait(SECOND);
    bed.look();
    assert!(!bed.readiness().0, "the same process is on its way out");
    bed.wait(5 * SECOND);
    bed.look();
    assert!(bed.readiness().0, "it went on all the same");
}

#[test]
fn a_server_that_is_unreachable_for_a_call_is_suspect_and_the_call_is_no_failure() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    bed.end("a", Err(unreachable()));
    assert_eq!(bed.readiness().1, "Suspect");
    bed.look();
    assert_eq!((bed.state("a"), bed.adapter("a").attempts), (Pending, 0));
}

#[test]
fn failures_back_off_and_a_changed_source_starts_afresh() {
    let mut bed = Bed::listing(&["a"]);
    let mut waits = Vec::new();
    for _ in 0..3 {
        bed.begin();
        bed.end("a", Err(crate::bed::bad("a")));
        let next = bed.adapter("a").next_try.unwrap();
        waits.push(next.duration_since(bed.now).as_secs());
        bed.now = next;
    }
    assert_eq!((waits, bed.adapter("a").attempts), (vec![1, 2, 4], 3));
    bed.memory.adapters.get_mut(&id("a")).unwrap().wish.as_mut().unwrap().source = "/elsewhere".to_owned();
    bed.desire(&["a"], &[], None);
    assert_eq!((bed.adapter("a").attempts, bed.decided()), (0, vec!["load a".to_owned()]));
}

#[test]
fn a_probe_without_an_answer_is_undecided() {
    let mut bed = Bed::listing(&["a"]);
    bed.begin();
    bed.end("a", Ok(()));
    bed.begin();
    bed.end("a", Err(late()));
    assert_eq!((bed.state("a"), bed.adapter("a").attempts, bed.readiness().0), (Loaded, 0, true));
    assert_eq!(bed.decided(), Vec::<String>::new());
    bed.wait(SECOND);
    assert_eq!(bed.decided(), ["probe a"]);
}

#[test]
fn an_unload_is_believed_when_the_list_says_so() {
    for answer in [Ok(()), Err(VllmError::UnknownAdapter { id: id("a") })] {
        let mut bed = Bed::settled(&["a"]);
        bed.desire(&[], &["a"], None);
        assert_eq!(bed.begin(), ["unload a"]);
        bed.end("a", answer);
        assert_eq!((bed.state("a"), bed.decided()), (Unloading, Vec::new()));
        bed.table.clear();
        bed.look();
        assert_eq!(bed.state("a"), Gone);
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
        let mut bed = Bed::settled(&["a"]);
        bed.desire(&[], &["a"], None);
        assert_eq!(bed.begin(), ["unload a"]);
        bed.desire(exist, not_exist, key);
        let unloading = |bed: &Bed| {
            let status = bed.status();
            assert_eq!((bed.state("a"), status.is_resident(&id("a")), bed.decided()), (Unloading, false, Vec::new()));
        };
        unloading(&bed);
        let ticket = bed.memory.look_began(Look { metrics: false, models: true }, bed.now);
        let old = bed.shows();
        bed.end("a", Err(late()));
        unloading(&bed);
        bed.memory.looked(ticket, old, bed.now);
        unloading(&bed);
        bed.wait(SECOND);
        bed.look();
        if settled == Verified {
            // Whether it was there all the time nobody has seen.
            assert_eq!(bed.begin(), ["probe a"]);
            bed.end("a", Ok(()));
        }
        assert_eq!(bed.state("a"), settled);
    }
}

#[test]
fn what_was_unloaded_and_is_wanted_again_is_loaded_and_proven_again() {
    for answer in [Ok(()), Err(late())] {
        let mut bed = Bed::settled(&["a"]);
        bed.desire(&[], &["a"], None);
        bed.begin();
        bed.desire(&["a"], &[], None);
        bed.end("a", answer);
        assert_eq!(bed.state("a"), Unloading);
        bed.table.clear();
        bed.look();
        assert_eq!((bed.state("a"), bed.begin()), (Pending, vec!["load a".to_owned()]));
        bed.end("a", Ok(()));
        assert_eq!((bed.state("a"), bed.begin()), (Loaded, vec!["probe a".to_owned()]));
        bed.end("a", Ok(()));
        assert_eq!(bed.state("a"), Verified);
    }
}

#[test]
fn an_unload_may_still_be_done_by_a_server_that_was_away_for_a_moment() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&[], &["a"], None);
    let epoch = bed.memory.epoch();
    bed.begin();
    bed.desire(&["a"], &[], None);
    bed.process = None;
    bed.look();
    bed.process = Some("1");
    bed.look();
    assert_eq!((bed.status().is_resident(&id("a")), bed.decided()), (false, Vec::new()));
    bed.table.clear();
    bed.memory.ended(&id("a"), epoch, Ended::Answered(Ok(())), 0.0, bed.now);
    assert_eq!(bed.memory.look_due(bed.now).map(|look| look.models), Some(true));
    bed.look();
    assert_eq!((bed.state("a"), bed.decided()), (Pending, vec!["load a".to_owned()]));
}

#[test]
fn an_unload_that_was_not_made_takes_nothing_back() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&[], &["a"], None);
    bed.begin();
    bed.desire(&["a"], &[], None);
    bed.memory.ended(&id("a"), bed.memory.epoch(), Ended::Skipped, 0.0, bed.now);
    assert_eq!(bed.state("a"), Verified);
}

/// Begins what is decided, has it answered and looks, three times; the waits after it.
fn waits_of(bed: &mut Bed, answer: &Result<(), VllmError>) -> Vec<i64> {
    let waits = (0..3).map(|_| {
        assert_eq!(bed.begin().len(), 1);
        bed.end("a", answer.clone());
        assert_eq!(bed.decided(), Vec::<String>::new(), "the list is asked first");
        bed.look();
        assert_eq!((bed.decided(), bed.reason("a").as_str()), (Vec::new(), "Contradiction"));
        let next = bed.adapter("a").next_try.unwrap();
        let wait = next.duration_since(bed.now).as_secs();
        bed.now = next;
        wait
    });
    waits.collect()
}

#[test]
fn a_server_whose_answers_and_list_contradict_each_other_is_not_asked_without_end() {
    // As behind several API server processes, each with a table of its own.
    let mut unloaded = Bed::settled(&["a"]);
    unloaded.desire(&[], &["a"], None);
    assert_eq!(waits_of(&mut unloaded, &Ok(())), [1, 2, 4]);
    assert_eq!(unloaded.state("a"), Unloading);
    unloaded.table.clear();
    unloaded.look();
    assert_eq!((unloaded.state("a"), unloaded.adapter("a").last_error), (Gone, None));

    let mut loaded = Bed::listing(&["a"]);
    assert_eq!(waits_of(&mut loaded, &Err(VllmError::AlreadyLoaded { id: id("a") })), [1, 2, 4]);
    assert_eq!(loaded.state("a"), Failed);
    loaded.settle();
    assert_eq!((loaded.state("a"), loaded.adapter("a").last_error), (Verified, None));

    let mut unknown = Bed::up();
    unknown.table.insert("a".to_owned(), "/adapters/a".to_owned());
    unknown.look();
    unknown.desire(&["a"], &[], None);
    assert_eq!(waits_of(&mut unknown, &Err(VllmError::UnknownAdapter { id: id("a") })), [1, 2, 4]);
    unknown.settle();
    assert_eq!(unknown.state("a"), Verified);
}

#[test]
fn what_was_said_of_the_key_is_forgotten_when_the_list_comes() {
    let mut bed = Bed::settled(&["a"]);
    let ticket = bed.memory.look_began(Look { metrics: false, models: true }, bed.now);
    let refused = LookError { step: LookStep::Models, error: VllmError::Unauthorized };
    bed.memory.looked(ticket, Err(refused), bed.now);
    assert_eq!(bed.status().problem.unwrap().reason, "Unauthorized");
    bed.look();
    assert_eq!(bed.status().problem, None);
}

#[test]
fn a_failed_unload_is_shown_and_tried_again() {
    let mut bed = Bed::settled(&["a"]);
    bed.desire(&[], &["a"], None);
    bed.begin();
    bed.end("a", Err(VllmError::RuntimeUpdatingOff));
    assert_eq!((bed.state("a"), bed.reason("a")), (Unloading, "RuntimeUpdatingOff".to_owned()));
    assert_eq!(bed.status().problem.unwrap().reason, "RuntimeUpdatingOff");
    bed.wait(SECOND);
    assert_eq!(bed.decided(), ["unload a"]);
}

#[test]
fn what_somebody_else_registered_from_elsewhere_is_left_and_said() {
    let mut bed = Bed::up();
    bed.table.insert("a".to_owned(), "/elsewhere".to_owned());
    bed.look();
    bed.desire(&["a"], &[], None);
    assert_eq!((bed.state("a"), bed.decided(), bed.readiness().0), (SourceChanged, Vec::new(), true));
    assert!(bed.adapter("a").last_error.unwrap().message.contains("new id"));
}

#[test]
fn a_use_counts_as_of_the_reading_that_shows_it_whatever_the_servers_clock_says() {
    let mut bed = Bed::settled(&["a"]);
    let start = bed.now;
    let hour = 3_600 * SECOND;
    let mut last_used = |used: Timestamp| {
        bed.wait(10 * SECOND);
        bed.used.insert(id("a"), used);
        bed.look();
        (bed.adapter("a").last_used, bed.now)
    };
    let (ahead, first) = last_used(start + hour);
    assert_eq!(ahead, Some(first), "ahead");
    assert_eq!(last_used(start + hour).0, Some(first), "not used again");
    let (behind, third) = last_used(start - hour);
    assert_eq!(behind, Some(third), "behind: perhaps a moment ago");
    let mut bed = Bed::settled(&["a"]);
    bed.used.insert(id("a"), start - hour);
    bed.restart_sidecar(bed.memory.to_keep());
    bed.desire(&["a"], &[], None);
    bed.look();
    assert_eq!(bed.adapter("a").last_used, Some(bed.now), "the first reading of a sidecar");
}

#[test]
fn uses_are_read_when_the_metrics_are_asked_for_and_they_tell() {
    let mut bed = Bed::listing(&["a"]);
    assert_eq!(bed.memory.uses_read_at(), Some(bed.now), "the first look");
    // A look takes a second; what it is answered, and what is known then.
    let look = |bed: &mut Bed, metrics: Option<ServerMetrics>| {
        bed.wait(10 * SECOND);
        let asked = bed.now;
        let ticket = bed.memory.look_began(Look { metrics: true, models: true }, asked);
        let shown = bed.shows();
        let late = LookError { step: LookStep::Metrics, error: late() };
        let seen = metrics.ok_or(late).and_then(|metrics| shown.map(|seen| Seen { metrics: Some(metrics), ..seen }));
        bed.wait(SECOND);
        bed.memory.looked(ticket, seen, bed.now);
        (asked, bed.memory.uses_read_at())
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
    let mut bed = Bed::settled(&["a"]);
    bed.wait(10 * SECOND);
    let ticket = bed.memory.look_began(Look { metrics: true, models: true }, bed.now);
    bed.wait(5 * SECOND);
    let used = bed.now;
    bed.used.insert(id("a"), used);
    let seen = bed.shows();
    bed.memory.looked(ticket, seen, bed.now);
    assert!(bed.adapter("a").last_used >= Some(used), "not earlier than it was");
    assert!(bed.memory.uses_read_at() <= bed.adapter("a").last_used, "it is not quiet yet");
    // What nobody had listed when the metrics were read.
    let mut bed = Bed::up();
    bed.used.insert(id("a"), bed.now);
    bed.look();
    bed.desire(&["a"], &[], None);
    assert_eq!(bed.adapter("a").last_used, Some(bed.now));
}

#[test]
fn where_no_use_is_told_an_unload_waits_from_when_it_became_unwanted() {
    let mut bed = Bed::settled(&["a"]);
    let ticket = bed.memory.look_began(Look { metrics: true, models: true }, bed.now);
    let untold = ServerMetrics { process_start_time: Some("1".to_owned()), ..ServerMetrics::default() };
    let seen = bed.shows().map(|seen| Seen { metrics: Some(untold), ..seen });
    bed.memory.looked(ticket, seen, bed.now);
    bed.desire(&[], &["a"], None);
    assert_eq!(bed.decided(), Vec::<String>::new());
    bed.wait(bed.memory.policy.unload_grace);
    assert_eq!(bed.decided(), ["unload a"]);
}

#[test]
fn uses_are_read_every_second_only_while_somebody_waits_for_their_end() {
    let interval = |bed: &mut Bed| {
        bed.look();
        let began = bed.now;
        while !bed.memory.look_due(bed.now).is_some_and(|look| look.metrics) {
            bed.wait(Duration::from_millis(250));
        }
        bed.now.duration_since(began).as_secs()
    };
    let key = |serving: &[&str]| OperatorDirectives {
        managed: vec!["v*".to_owned()],
        admitted: ids(&["v1", "v2"]),
        serving: ids(serving),
        ..OperatorDirectives::default()
    };
    let mut bed = Bed::settled(&["v1", "v2"]);
    assert_eq!(interval(&mut bed), 15, "nobody waits");
    bed.desire(&["v1", "v2"], &[], Some(key(&["v1", "v2"])));
    assert_eq!(interval(&mut bed), 15, "both serve");
    bed.memory.looked_at(bed.now);
    assert_eq!(interval(&mut bed), 1, "somebody looks");
    bed.wait(Duration::from_secs(4));
    assert_eq!(interval(&mut bed), 15, "nobody has looked for a while");
    bed.desire(&["v1", "v2"], &[], Some(key(&["v2"])));
    assert_eq!(interval(&mut bed), 1, "v1 has retired");
    bed.desire(&["v2"], &["v1"], Some(key(&["v2"])));
    assert_eq!(interval(&mut bed), 1, "v1 is unwanted");
}

#[test]
fn a_server_that_does_not_say_when_it_started_is_known_by_what_it_remembers() {
    let unnamed = |bed: &mut Bed| {
        let ticket = bed.memory.look_began(Look { metrics: true, models: true }, bed.now);
        let seen = bed.shows().map(|seen| Seen { metrics: Some(ServerMetrics::default()), ..seen });
        bed.memory.looked(ticket, seen, bed.now);
        bed.memory.known.as_ref().unwrap().identity.start.clone()
    };
    let mut bed = Bed::listing(&["a"]);
    let first = unnamed(&mut bed);
    bed.settle();
    bed.wait(SECOND);
    assert_eq!(unnamed(&mut bed), first, "nothing happened");
    bed.memory.connection_closed();
    assert_eq!(unnamed(&mut bed), first, "it remembers `a`");
    bed.memory.connection_closed();
    bed.table.clear();
    assert_ne!(unnamed(&mut bed), first, "it has forgotten `a`");
}

#[test]
fn ids_that_nobody_names_or_holds_are_forgotten() {
    let mut bed = Bed::settled(&["a", "b"]);
    bed.desire(&["b"], &[], None);
    assert_eq!(bed.memory.adapters.len(), 2, "`a` is registered");
    bed.table.remove("a");
    bed.look();
    assert_eq!(bed.memory.adapters.keys().collect::<Vec<_>>(), [&id("b")]);
}
