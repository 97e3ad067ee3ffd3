//! What a hub has is fetched, and then loaded as a path.

use super::*;
use crate::{
    source::SourceAllowlist,
    testbed::{StateTestbed, bad_adapter_error, fetch_error, fetch_success, id, pilot_directives},
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

fn no_calls() -> Vec<String> {
    Vec::new()
}

fn testbed_allowing(prefixes: &[&str], exist: &[&str]) -> StateTestbed {
    let mut bed = StateTestbed::with_fetching(&[]);
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    bed.state.source_policy.allowed = Some(SourceAllowlist::new(prefixes));
    bed.set_desired(exist, &[], None);
    bed
}

#[test]
fn a_hub_name_is_fetched_and_then_loaded_by_its_path_like_any_other() {
    let mut bed = StateTestbed::with_fetching(&["org/a", "org/b", "c"]);
    assert_eq!(bed.begin_decided_calls(), ["load c"], "nothing that is not there is loaded");
    assert_eq!(bed.begin_due_fetches(), ["org/a", "org/b"]);
    assert_eq!(bed.adapter_state("org/a"), Fetches);
    bed.finish_fetch("org/a", Ok(fetch_success()));
    bed.finish_fetch("org/b", Ok(fetch_success()));
    assert_eq!(bed.begin_decided_calls(), ["load org/a", "load org/b"], "at the same time: vLLM downloads nothing");
    let source = |bed: &StateTestbed, name| bed.state.adapters[&id(name)].in_flight.clone().unwrap().source;
    assert_eq!(source(&bed, "org/a"), "/fetched/org/a");
    bed.finish_call("org/a", Ok(()));
    bed.finish_call("c", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("org/a", Ok(()));
    assert_eq!(bed.adapter_state("org/a"), Verified);
    assert_eq!(bed.adapter_status("org/a").source.as_deref(), Some("org/a"));
    assert_eq!(bed.adapter_status("org/a").fetch.unwrap().commit.as_deref(), Some("c0ffee"));
}

#[test]
fn the_status_tells_how_far_it_is() {
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    assert_eq!((bed.adapter_state("org/a"), bed.adapter_status("org/a").fetch), (Pending, None));
    let number = bed.state.begin_fetch(&id("org/a"), bed.now);
    bed.state.set_fetch_progress(&id("org/a"), number, FetchProgress { bytes: 7, total_bytes: Some(9) });
    let told = FetchStatus { bytes: 7, total_bytes: Some(9), commit: None };
    assert_eq!((bed.adapter_state("org/a"), bed.adapter_status("org/a").fetch), (Fetches, Some(Box::new(told))));
}

#[test]
fn two_are_fetched_at_once_and_one_that_takes_long_keeps_no_place() {
    let mut bed = StateTestbed::with_fetching(&["org/a", "org/b", "org/c", "org/d", "org/e!", "org/f"]);
    assert_eq!(bed.begin_due_fetches(), ["org/e", "org/a"], "what is required first");
    assert_eq!(bed.begin_due_fetches(), no_calls());
    bed.advance(60 * SECOND);
    assert_eq!(bed.begin_due_fetches(), ["org/b", "org/c"]);
    bed.advance(60 * SECOND);
    assert_eq!(bed.begin_due_fetches(), no_calls(), "not without end");
    bed.finish_fetch("org/a", Ok(fetch_success()));
    assert_eq!(bed.begin_due_fetches(), ["org/d"]);
}

#[test]
fn a_fetch_goes_on_while_vllm_starts_again_and_so_does_the_wait_after_one_that_failed() {
    let mut bed = StateTestbed::with_fetching(&["org/a", "org/b"]);
    bed.begin_due_fetches();
    bed.finish_fetch("org/b", Err(fetch_error(FetchReason::HubUnreachable)));
    bed.restart_server("2");
    assert_eq!((bed.adapter_state("org/a"), bed.adapter_state("org/b")), (Fetches, Failed));
    assert_eq!(bed.begin_due_fetches(), no_calls());
    bed.finish_fetch("org/a", Ok(fetch_success()));
    assert_eq!(bed.begin_decided_calls(), ["load org/a"]);
    bed.advance(SECOND);
    assert_eq!(bed.begin_due_fetches(), ["org/b"]);
}

#[test]
fn what_was_fetched_is_not_fetched_again_for_another_process() {
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    bed.begin_due_fetches();
    bed.finish_fetch("org/a", Ok(fetch_success()));
    bed.settle();
    assert_eq!(bed.table["org/a"], "/fetched/org/a");
    bed.restart_server("2");
    assert_eq!((bed.begin_due_fetches(), bed.begin_decided_calls()), (no_calls(), vec!["load org/a".to_owned()]));
}

#[test]
fn beside_a_server_that_has_it_nothing_is_fetched_even_by_a_sidecar_that_starts_again() {
    for root in ["/fetched/org/a", "org/a"] {
        let mut bed = StateTestbed::with_fetching(&["org/a"]);
        bed.table.insert("org/a".to_owned(), root.to_owned());
        bed.poll();
        assert_eq!((bed.begin_due_fetches(), bed.begin_decided_calls()), (no_calls(), vec!["probe org/a".to_owned()]));
    }
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    bed.table.insert("org/a".to_owned(), "/fetched/org/a@other".to_owned());
    bed.poll();
    assert_eq!(
        (bed.adapter_state("org/a"), bed.begin_due_fetches(), bed.begin_decided_calls()),
        (SourceChanged, no_calls(), no_calls())
    );
}

#[test]
fn before_the_server_was_asked_nothing_is_fetched_and_while_it_is_away_everything_is() {
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    let fresh = SidecarState::new("http://server", bed.state.policy);
    let sources = std::mem::replace(&mut bed.state, fresh).source_policy;
    bed.state.source_policy = sources;
    bed.set_desired(&["org/a"], &[], None);
    assert_eq!(bed.begin_due_fetches(), no_calls());
    bed.process_start = None;
    bed.poll();
    assert_eq!(bed.begin_due_fetches(), ["org/a"]);
}

#[test]
fn a_failure_is_tried_again_later_and_later_and_as_late_as_the_hub_asks() {
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    bed.begin_due_fetches();
    bed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubUnreachable)));
    let told = bed.adapter_status("org/a");
    assert_eq!((told.state, told.attempts, told.next_try), (Failed, 1, Some(bed.now + SECOND)));
    assert_eq!(bed.error_reason("org/a"), "HubUnreachable");
    bed.advance(SECOND);
    bed.begin_due_fetches();
    let busy = FetchError { retry_after: Some(90 * SECOND), ..fetch_error(FetchReason::HubRateLimited) };
    bed.finish_fetch("org/a", Err(busy));
    assert_eq!(
        (bed.adapter_status("org/a").attempts, bed.adapter_status("org/a").next_try),
        (2, Some(bed.now + 90 * SECOND))
    );
    bed.advance(90 * SECOND);
    bed.begin_due_fetches();
    bed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubNotFound)));
    assert_eq!(
        bed.adapter_status("org/a").next_try,
        Some(bed.now + 240 * SECOND),
        "slowly: a person has to do something"
    );
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
        let mut bed = StateTestbed::with_fetching(&["org/a"]);
        bed.begin_due_fetches();
        bed.finish_fetch("org/a", Err(fetch_error(reason)));
        let error = bed.adapter_status("org/a").last_error.unwrap();
        assert_eq!(error.is_adapter_error(), fault, "{error:?}");
    }
}

#[test]
fn an_adapter_that_vllm_does_not_find_is_looked_for_again_before_it_is_loaded_again() {
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    bed.begin_due_fetches();
    bed.finish_fetch("org/a", Ok(fetch_success()));
    bed.begin_decided_calls();
    bed.finish_call("org/a", Err(bad_adapter_error("org/a")));
    assert_eq!(bed.begin_due_fetches(), ["org/a"]);
    bed.advance(60 * SECOND);
    assert_eq!(bed.begin_decided_calls(), no_calls());
    bed.finish_fetch("org/a", Ok(fetch_success()));
    assert_eq!(bed.adapter_status("org/a").attempts, 1, "a fetch takes back no failure of a load");
    assert_eq!(bed.begin_decided_calls(), ["load org/a"]);
}

#[test]
fn a_fetch_that_nobody_wants_any_more_is_forgotten_and_a_late_answer_means_nothing() {
    let mut bed = StateTestbed::with_fetching(&["org/a"]);
    let number = bed.state.begin_fetch(&id("org/a"), bed.now);
    bed.set_desired(&[], &["org/a"], None);
    assert!(!bed.state.is_current_fetch(&id("org/a"), number));
    bed.set_desired(&["org/a"], &[], None);
    bed.state.finish_fetch(&id("org/a"), number, Ok(fetch_success()), 0.0, bed.now);
    assert_eq!((bed.begin_decided_calls(), bed.begin_due_fetches()), (no_calls(), vec!["org/a".to_owned()]));
}

#[test]
fn what_waits_for_its_admission_is_not_fetched() {
    let mut bed = StateTestbed::with_fetching(&[]);
    let waiting = OperatorDirectives { managed: vec!["org/a".to_owned()], ..OperatorDirectives::default() };
    bed.set_desired(&["org/a"], &[], Some(waiting));
    assert_eq!((bed.begin_due_fetches(), bed.adapter_state("org/a")), (no_calls(), AwaitingAdmission));
    bed.set_desired(&["org/a"], &[], Some(pilot_directives(&["org/a"])));
    assert_eq!(bed.begin_due_fetches(), ["org/a"]);
}

#[test]
fn a_fetch_holds_readiness_as_a_load_does_and_a_failed_one_no_longer() {
    let mut bed = StateTestbed::with_fetching(&["org/a", "c"]);
    bed.begin_due_fetches();
    bed.begin_decided_calls();
    bed.finish_call("c", Ok(()));
    bed.begin_decided_calls();
    bed.finish_call("c", Ok(()));
    assert_eq!(bed.readiness(), (false, "Settling".to_owned()));
    bed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubUnreachable)));
    assert!(bed.readiness().0);

    let mut bed = StateTestbed::with_fetching(&["org/a!"]);
    bed.begin_due_fetches();
    bed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubUnreachable)));
    bed.advance(3600 * SECOND);
    assert_eq!(bed.readiness(), (false, "AdaptersNotVerified".to_owned()));
}

#[test]
fn what_may_not_be_used_is_neither_fetched_nor_loaded_and_holds_nothing_up() {
    let mut bed = testbed_allowing(&["org/", "/adapters/a"], &["org/x", "evil/x", "a", "b"]);
    assert_eq!(
        (bed.begin_due_fetches(), bed.begin_decided_calls()),
        (vec!["org/x".to_owned()], vec!["load a".to_owned()])
    );
    for name in ["evil/x", "b"] {
        assert_eq!((bed.adapter_state(name), bed.error_reason(name).as_str()), (SourceRefused, "SourceNotAllowed"));
        assert!(bed.adapter_status(name).last_error.unwrap().message.contains("--allow-source"));
    }
    bed.finish_fetch("org/x", Ok(fetch_success()));
    bed.settle();
    bed.finish_call("a", Ok(()));
    bed.settle();
    assert!(bed.readiness().0);
}

#[test]
fn what_is_loaded_already_from_where_nothing_may_come_is_left_and_said() {
    let mut bed = testbed_allowing(&["org/"], &["a"]);
    bed.table.insert("a".to_owned(), "/adapters/a".to_owned());
    bed.poll();
    bed.settle();
    assert_eq!((bed.adapter_state("a"), bed.error_reason("a").as_str()), (Verified, "SourceNotAllowed"));
    assert!(bed.adapter_status("a").last_error.unwrap().message.ends_with("left as it is"));
    bed.restart_server("2");
    assert_eq!((bed.adapter_state("a"), bed.decided_calls()), (SourceRefused, no_calls()));
    bed.set_desired(&[], &["a"], None);
    bed.table.insert("a".to_owned(), "/adapters/a".to_owned());
    bed.poll();
    assert_eq!(bed.decided_calls(), ["unload a"], "it may go all the same");
}
