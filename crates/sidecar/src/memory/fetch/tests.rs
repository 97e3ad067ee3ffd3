//! What a hub has is fetched, and then loaded as a path.

use super::*;
use crate::{
    bed::{Bed, bad, fetched, id, not_fetched, pilots},
    source::Allowed,
};
use rollora_api::{
    operator_directives::OperatorDirectives,
    sidecar_status::{
        AdapterState::{
            AwaitingAdmission, Failed, Fetching as Fetches, Pending, SourceChanged, SourceRefused, Verified,
        },
        FetchStatus,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn none() -> Vec<String> {
    Vec::new()
}

fn allowing(prefixes: &[&str], exist: &[&str]) -> Bed {
    let mut bed = Bed::fetching(&[]);
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    bed.memory.sources.allowed = Some(Allowed::new(prefixes));
    bed.desire(exist, &[], None);
    bed
}

#[test]
fn a_hub_name_is_fetched_and_then_loaded_by_its_path_like_any_other() {
    let mut bed = Bed::fetching(&["org/a", "org/b", "c"]);
    assert_eq!(bed.begin(), ["load c"], "nothing that is not there is loaded");
    assert_eq!(bed.begin_fetches(), ["org/a", "org/b"]);
    assert_eq!(bed.state("org/a"), Fetches);
    bed.end_fetch("org/a", Ok(fetched()));
    bed.end_fetch("org/b", Ok(fetched()));
    assert_eq!(bed.begin(), ["load org/a", "load org/b"], "at the same time: vLLM downloads nothing");
    let source = |bed: &Bed, name| bed.memory.adapters[&id(name)].in_flight.clone().unwrap().source;
    assert_eq!(source(&bed, "org/a"), "/fetched/org/a");
    bed.end("org/a", Ok(()));
    bed.end("c", Ok(()));
    bed.begin();
    bed.end("org/a", Ok(()));
    assert_eq!(bed.state("org/a"), Verified);
    assert_eq!(bed.adapter("org/a").source.as_deref(), Some("org/a"));
    assert_eq!(bed.adapter("org/a").fetch.unwrap().commit.as_deref(), Some("c0ffee"));
}

#[test]
fn the_status_tells_how_far_it_is() {
    let mut bed = Bed::fetching(&["org/a"]);
    assert_eq!((bed.state("org/a"), bed.adapter("org/a").fetch), (Pending, None));
    let number = bed.memory.fetch_began(&id("org/a"), bed.now);
    bed.memory.fetch_progressed(&id("org/a"), number, FetchProgress { bytes: 7, total_bytes: Some(9) });
    let told = FetchStatus { bytes: 7, total_bytes: Some(9), commit: None };
    assert_eq!((bed.state("org/a"), bed.adapter("org/a").fetch), (Fetches, Some(Box::new(told))));
}

#[test]
fn two_are_fetched_at_once_and_one_that_takes_long_keeps_no_place() {
    let mut bed = Bed::fetching(&["org/a", "org/b", "org/c", "org/d", "org/e!", "org/f"]);
    assert_eq!(bed.begin_fetches(), ["org/e", "org/a"], "what is required first");
    assert_eq!(bed.begin_fetches(), none());
    bed.wait(60 * SECOND);
    assert_eq!(bed.begin_fetches(), ["org/b", "org/c"]);
    bed.wait(60 * SECOND);
    assert_eq!(bed.begin_fetches(), none(), "not without end");
    bed.end_fetch("org/a", Ok(fetched()));
    assert_eq!(bed.begin_fetches(), ["org/d"]);
}

#[test]
fn a_fetch_goes_on_while_vllm_starts_again_and_so_does_the_wait_after_one_that_failed() {
    let mut bed = Bed::fetching(&["org/a", "org/b"]);
    bed.begin_fetches();
    bed.end_fetch("org/b", Err(not_fetched(FetchReason::HubUnreachable)));
    bed.restart("2");
    assert_eq!((bed.state("org/a"), bed.state("org/b")), (Fetches, Failed));
    assert_eq!(bed.begin_fetches(), none());
    bed.end_fetch("org/a", Ok(fetched()));
    assert_eq!(bed.begin(), ["load org/a"]);
    bed.wait(SECOND);
    assert_eq!(bed.begin_fetches(), ["org/b"]);
}

#[test]
fn what_was_fetched_is_not_fetched_again_for_another_process() {
    let mut bed = Bed::fetching(&["org/a"]);
    bed.begin_fetches();
    bed.end_fetch("org/a", Ok(fetched()));
    bed.settle();
    assert_eq!(bed.table["org/a"], "/fetched/org/a");
    bed.restart("2");
    assert_eq!((bed.begin_fetches(), bed.begin()), (none(), vec!["load org/a".to_owned()]));
}

#[test]
fn beside_a_server_that_has_it_nothing_is_fetched_even_by_a_sidecar_that_starts_again() {
    for root in ["/fetched/org/a", "org/a"] {
        let mut bed = Bed::fetching(&["org/a"]);
        bed.table.insert("org/a".to_owned(), root.to_owned());
        bed.look();
        assert_eq!((bed.begin_fetches(), bed.begin()), (none(), vec!["probe org/a".to_owned()]));
    }
    let mut bed = Bed::fetching(&["org/a"]);
    bed.table.insert("org/a".to_owned(), "/fetched/org/a@other".to_owned());
    bed.look();
    assert_eq!((bed.state("org/a"), bed.begin_fetches(), bed.begin()), (SourceChanged, none(), none()));
}

#[test]
fn before_the_server_was_asked_nothing_is_fetched_and_while_it_is_away_everything_is() {
    let mut bed = Bed::fetching(&["org/a"]);
    let fresh = Memory::new("http://server", bed.memory.policy);
    let sources = std::mem::replace(&mut bed.memory, fresh).sources;
    bed.memory.sources = sources;
    bed.desire(&["org/a"], &[], None);
    assert_eq!(bed.begin_fetches(), none());
    bed.process = None;
    bed.look();
    assert_eq!(bed.begin_fetches(), ["org/a"]);
}

#[test]
fn a_failure_is_tried_again_later_and_later_and_as_late_as_the_hub_asks() {
    let mut bed = Bed::fetching(&["org/a"]);
    bed.begin_fetches();
    bed.end_fetch("org/a", Err(not_fetched(FetchReason::HubUnreachable)));
    let told = bed.adapter("org/a");
    assert_eq!((told.state, told.attempts, told.next_try), (Failed, 1, Some(bed.now + SECOND)));
    assert_eq!(bed.reason("org/a"), "HubUnreachable");
    bed.wait(SECOND);
    bed.begin_fetches();
    let busy = FetchError { retry_after: Some(90 * SECOND), ..not_fetched(FetchReason::HubRateLimited) };
    bed.end_fetch("org/a", Err(busy));
    assert_eq!((bed.adapter("org/a").attempts, bed.adapter("org/a").next_try), (2, Some(bed.now + 90 * SECOND)));
    bed.wait(90 * SECOND);
    bed.begin_fetches();
    bed.end_fetch("org/a", Err(not_fetched(FetchReason::HubNotFound)));
    assert_eq!(bed.adapter("org/a").next_try, Some(bed.now + 240 * SECOND), "slowly: a person has to do something");
}

#[test]
fn what_the_adapter_is_to_blame_for_counts_as_if_vllm_had_said_it() {
    for (reason, fault) in [
        (FetchReason::RankTooHigh, true),
        (FetchReason::BadAdapter, true),
        (FetchReason::HubNotFound, false),
        (FetchReason::TooLarge, false),
        (FetchReason::HubUnreachable, false),
    ] {
        let mut bed = Bed::fetching(&["org/a"]);
        bed.begin_fetches();
        bed.end_fetch("org/a", Err(not_fetched(reason)));
        let error = bed.adapter("org/a").last_error.unwrap();
        assert_eq!(error.is_adapter_error(), fault, "{error:?}");
    }
}

#[test]
fn an_adapter_that_vllm_does_not_find_is_looked_for_again_before_it_is_loaded_again() {
    let mut bed = Bed::fetching(&["org/a"]);
    bed.begin_fetches();
    bed.end_fetch("org/a", Ok(fetched()));
    bed.begin();
    bed.end("org/a", Err(bad("org/a")));
    assert_eq!(bed.begin_fetches(), ["org/a"]);
    bed.wait(60 * SECOND);
    assert_eq!(bed.begin(), none());
    bed.end_fetch("org/a", Ok(fetched()));
    assert_eq!(bed.adapter("org/a").attempts, 1, "a fetch takes back no failure of a load");
    assert_eq!(bed.begin(), ["load org/a"]);
}

#[test]
fn a_fetch_that_nobody_wants_any_more_is_forgotten_and_a_late_answer_means_nothing() {
    let mut bed = Bed::fetching(&["org/a"]);
    let number = bed.memory.fetch_began(&id("org/a"), bed.now);
    bed.desire(&[], &["org/a"], None);
    assert!(!bed.memory.is_fetching(&id("org/a"), number));
    bed.desire(&["org/a"], &[], None);
    bed.memory.fetch_ended(&id("org/a"), number, Ok(fetched()), 0.0, bed.now);
    assert_eq!((bed.begin(), bed.begin_fetches()), (none(), vec!["org/a".to_owned()]));
}

#[test]
fn what_waits_for_its_admission_is_not_fetched() {
    let mut bed = Bed::fetching(&[]);
    let waiting = OperatorDirectives { managed: vec!["org/a".to_owned()], ..OperatorDirectives::default() };
    bed.desire(&["org/a"], &[], Some(waiting));
    assert_eq!((bed.begin_fetches(), bed.state("org/a")), (none(), AwaitingAdmission));
    bed.desire(&["org/a"], &[], Some(pilots(&["org/a"])));
    assert_eq!(bed.begin_fetches(), ["org/a"]);
}

#[test]
fn a_fetch_holds_readiness_as_a_load_does_and_a_failed_one_no_longer() {
    let mut bed = Bed::fetching(&["org/a", "c"]);
    bed.begin_fetches();
    bed.begin();
    bed.end("c", Ok(()));
    bed.begin();
    bed.end("c", Ok(()));
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()));
    bed.end_fetch("org/a", Err(not_fetched(FetchReason::HubUnreachable)));
    assert!(bed.readiness().0);

    let mut bed = Bed::fetching(&["org/a!"]);
    bed.begin_fetches();
    bed.end_fetch("org/a", Err(not_fetched(FetchReason::HubUnreachable)));
    bed.wait(3600 * SECOND);
    assert_eq!(bed.readiness(), (false, "AdaptersNotVerified".to_owned()));
}

#[test]
fn what_may_not_be_used_is_neither_fetched_nor_loaded_and_holds_nothing_up() {
    let mut bed = allowing(&["org/", "/adapters/a"], &["org/x", "evil/x", "a", "b"]);
    assert_eq!((bed.begin_fetches(), bed.begin()), (vec!["org/x".to_owned()], vec!["load a".to_owned()]));
    for name in ["evil/x", "b"] {
        assert_eq!((bed.state(name), bed.reason(name).as_str()), (SourceRefused, "SourceNotAllowed"));
        assert!(bed.adapter(name).last_error.unwrap().message.contains("--allow-source"));
    }
    bed.end_fetch("org/x", Ok(fetched()));
    bed.settle();
    bed.end("a", Ok(()));
    bed.settle();
    assert!(bed.readiness().0);
}

#[test]
fn what_is_loaded_already_from_where_nothing_may_come_is_left_and_said() {
    let mut bed = allowing(&["org/"], &["a"]);
    bed.table.insert("a".to_owned(), "/adapters/a".to_owned());
    bed.look();
    bed.settle();
    assert_eq!((bed.state("a"), bed.reason("a").as_str()), (Verified, "SourceNotAllowed"));
    assert!(bed.adapter("a").last_error.unwrap().message.ends_with("left as it is"));
    bed.restart("2");
    assert_eq!((bed.state("a"), bed.decided()), (SourceRefused, none()));
    bed.desire(&[], &["a"], None);
    bed.table.insert("a".to_owned(), "/adapters/a".to_owned());
    bed.look();
    assert_eq!(bed.decided(), ["unload a"], "it may go all the same");
}
