//! Tests that hub adapters are fetched and then loaded by path.

use super::*;
use crate::{
    source::SourceAllowlist,
    testbed::{StateTestbed, bad_adapter_error, fetch_error, fetch_success, id, pilot_directives},
};
use rollora_api::{
    operator_directives::OperatorDirectives,
    sidecar_status::{
        AdapterState::{AwaitingAdmission, Failed, Fetching, Pending, SourceChanged, SourceRefused, Verified},
        FetchStatus,
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn no_calls() -> Vec<String> {
    Vec::new()
}

fn testbed_allowing(prefixes: &[&str], exist: &[&str]) -> StateTestbed {
    let mut testbed = StateTestbed::with_fetching(&[]);
    let prefixes = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    testbed.state.source_policy.allowed = Some(SourceAllowlist::new(prefixes));
    testbed.set_desired(exist, &[], None);
    testbed
}

#[test]
fn hub_adapter_is_fetched_then_loaded_by_path() {
    let mut testbed = StateTestbed::with_fetching(&["org/a", "org/b", "c"]);
    assert_eq!(testbed.begin_decided_calls(), ["load c"], "an adapter that is not fetched yet must not be loaded");
    assert_eq!(testbed.begin_due_fetches(), ["org/a", "org/b"]);
    assert_eq!(testbed.adapter_state("org/a"), Fetching);
    testbed.finish_fetch("org/a", Ok(fetch_success()));
    testbed.finish_fetch("org/b", Ok(fetch_success()));
    assert_eq!(
        testbed.begin_decided_calls(),
        ["load org/a", "load org/b"],
        "concurrently, because vLLM downloads nothing"
    );
    let source = |testbed: &StateTestbed, name| testbed.state.adapters[&id(name)].in_flight.clone().unwrap().source;
    assert_eq!(source(&testbed, "org/a"), "/fetched/org/a");
    testbed.finish_call("org/a", Ok(()));
    testbed.finish_call("c", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("org/a", Ok(()));
    assert_eq!(testbed.adapter_state("org/a"), Verified);
    assert_eq!(testbed.adapter_status("org/a").source.as_deref(), Some("org/a"));
    assert_eq!(testbed.adapter_status("org/a").fetch.unwrap().commit.as_deref(), Some("c0ffee"));
}

#[test]
fn status_reports_fetch_progress() {
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    assert_eq!((testbed.adapter_state("org/a"), testbed.adapter_status("org/a").fetch), (Pending, None));
    let fetch_id = testbed.state.begin_fetch(&id("org/a"), testbed.now);
    testbed.state.set_fetch_progress(&id("org/a"), fetch_id, FetchProgress { bytes: 7, total_bytes: Some(9) });
    let expected = FetchStatus { bytes: 7, total_bytes: Some(9), commit: None };
    assert_eq!(
        (testbed.adapter_state("org/a"), testbed.adapter_status("org/a").fetch),
        (Fetching, Some(Box::new(expected)))
    );
}

#[test]
fn two_fetches_run_concurrently_and_slow_ones_take_no_slot() {
    let mut testbed = StateTestbed::with_fetching(&["org/a", "org/b", "org/c", "org/d", "org/e!", "org/f"]);
    assert_eq!(testbed.begin_due_fetches(), ["org/e", "org/a"], "required adapters go first");
    assert_eq!(testbed.begin_due_fetches(), no_calls());
    testbed.advance(60 * SECOND);
    assert_eq!(testbed.begin_due_fetches(), ["org/b", "org/c"]);
    testbed.advance(60 * SECOND);
    assert_eq!(testbed.begin_due_fetches(), no_calls(), "the number of slow fetches is limited too");
    testbed.finish_fetch("org/a", Ok(fetch_success()));
    assert_eq!(testbed.begin_due_fetches(), ["org/d"]);
}

#[test]
fn fetch_and_retry_delay_continue_over_a_server_restart() {
    let mut testbed = StateTestbed::with_fetching(&["org/a", "org/b"]);
    testbed.begin_due_fetches();
    testbed.finish_fetch("org/b", Err(fetch_error(FetchReason::HubUnreachable)));
    testbed.restart_server("2");
    assert_eq!((testbed.adapter_state("org/a"), testbed.adapter_state("org/b")), (Fetching, Failed));
    assert_eq!(testbed.begin_due_fetches(), no_calls());
    testbed.finish_fetch("org/a", Ok(fetch_success()));
    assert_eq!(testbed.begin_decided_calls(), ["load org/a"]);
    testbed.advance(SECOND);
    assert_eq!(testbed.begin_due_fetches(), ["org/b"]);
}

#[test]
fn fetched_adapter_is_not_fetched_again_after_a_restart() {
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    testbed.begin_due_fetches();
    testbed.finish_fetch("org/a", Ok(fetch_success()));
    testbed.settle();
    assert_eq!(testbed.table["org/a"], "/fetched/org/a");
    testbed.restart_server("2");
    assert_eq!(
        (testbed.begin_due_fetches(), testbed.begin_decided_calls()),
        (no_calls(), vec!["load org/a".to_owned()])
    );
}

#[test]
fn registered_adapter_is_not_fetched_by_a_restarted_sidecar() {
    for root in ["/fetched/org/a", "org/a"] {
        let mut testbed = StateTestbed::with_fetching(&["org/a"]);
        testbed.table.insert("org/a".to_owned(), root.to_owned());
        testbed.poll();
        assert_eq!(
            (testbed.begin_due_fetches(), testbed.begin_decided_calls()),
            (no_calls(), vec!["probe org/a".to_owned()])
        );
    }
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    testbed.table.insert("org/a".to_owned(), "/fetched/org/a@other".to_owned());
    testbed.poll();
    assert_eq!(
        (testbed.adapter_state("org/a"), testbed.begin_due_fetches(), testbed.begin_decided_calls()),
        (SourceChanged, no_calls(), no_calls())
    );
}

#[test]
fn fetches_start_only_after_the_first_poll_even_if_down() {
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    let initial = SidecarState::new("http://server", testbed.state.policy);
    let source_policy = std::mem::replace(&mut testbed.state, initial).source_policy;
    testbed.state.source_policy = source_policy;
    testbed.set_desired(&["org/a"], &[], None);
    assert_eq!(testbed.begin_due_fetches(), no_calls());
    testbed.process_start = None;
    testbed.poll();
    assert_eq!(testbed.begin_due_fetches(), ["org/a"]);
}

#[test]
fn failed_fetch_backs_off_and_honors_retry_after() {
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    testbed.begin_due_fetches();
    testbed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubUnreachable)));
    let status = testbed.adapter_status("org/a");
    assert_eq!((status.state, status.attempts, status.next_try), (Failed, 1, Some(testbed.now + SECOND)));
    assert_eq!(testbed.error_reason("org/a"), "HubUnreachable");
    testbed.advance(SECOND);
    testbed.begin_due_fetches();
    let rate_limited = FetchError { retry_after: Some(90 * SECOND), ..fetch_error(FetchReason::HubRateLimited) };
    testbed.finish_fetch("org/a", Err(rate_limited));
    assert_eq!(
        (testbed.adapter_status("org/a").attempts, testbed.adapter_status("org/a").next_try),
        (2, Some(testbed.now + 90 * SECOND))
    );
    testbed.advance(90 * SECOND);
    testbed.begin_due_fetches();
    testbed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubNotFound)));
    assert_eq!(
        testbed.adapter_status("org/a").next_try,
        Some(testbed.now + 240 * SECOND),
        "slower, because a person must act"
    );
}

#[test]
fn fetch_error_of_a_bad_adapter_counts_as_adapter_error() {
    for (reason, is_adapter_error) in [
        (FetchReason::RankTooHigh, true),
        (FetchReason::BadAdapter, true),
        (FetchReason::HubNotFound, false),
        (FetchReason::TooLarge, false),
        (FetchReason::HubUnreachable, false),
    ] {
        let mut testbed = StateTestbed::with_fetching(&["org/a"]);
        testbed.begin_due_fetches();
        testbed.finish_fetch("org/a", Err(fetch_error(reason)));
        let error = testbed.adapter_status("org/a").last_error.unwrap();
        assert_eq!(error.is_adapter_error(), is_adapter_error, "{error:?}");
    }
}

#[test]
fn adapter_that_fails_to_load_is_fetched_again_first() {
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    testbed.begin_due_fetches();
    testbed.finish_fetch("org/a", Ok(fetch_success()));
    testbed.begin_decided_calls();
    testbed.finish_call("org/a", Err(bad_adapter_error("org/a")));
    assert_eq!(testbed.begin_due_fetches(), ["org/a"]);
    testbed.advance(60 * SECOND);
    assert_eq!(testbed.begin_decided_calls(), no_calls());
    testbed.finish_fetch("org/a", Ok(fetch_success()));
    assert_eq!(testbed.adapter_status("org/a").attempts, 1, "a fetch must not clear load failures");
    assert_eq!(testbed.begin_decided_calls(), ["load org/a"]);
}

#[test]
fn result_of_an_unwanted_fetch_is_ignored() {
    let mut testbed = StateTestbed::with_fetching(&["org/a"]);
    let fetch_id = testbed.state.begin_fetch(&id("org/a"), testbed.now);
    testbed.set_desired(&[], &["org/a"], None);
    assert!(!testbed.state.is_current_fetch(&id("org/a"), fetch_id));
    testbed.set_desired(&["org/a"], &[], None);
    testbed.state.finish_fetch(&id("org/a"), fetch_id, Ok(fetch_success()), 0.0, testbed.now);
    assert_eq!((testbed.begin_decided_calls(), testbed.begin_due_fetches()), (no_calls(), vec!["org/a".to_owned()]));
}

#[test]
fn adapter_awaiting_admission_is_not_fetched() {
    let mut testbed = StateTestbed::with_fetching(&[]);
    let not_admitted = OperatorDirectives { managed: vec!["org/a".to_owned()], ..OperatorDirectives::default() };
    testbed.set_desired(&["org/a"], &[], Some(not_admitted));
    assert_eq!((testbed.begin_due_fetches(), testbed.adapter_state("org/a")), (no_calls(), AwaitingAdmission));
    testbed.set_desired(&["org/a"], &[], Some(pilot_directives(&["org/a"])));
    assert_eq!(testbed.begin_due_fetches(), ["org/a"]);
}

#[test]
fn fetch_blocks_readiness_until_it_fails_unless_required() {
    let mut testbed = StateTestbed::with_fetching(&["org/a", "c"]);
    testbed.begin_due_fetches();
    testbed.begin_decided_calls();
    testbed.finish_call("c", Ok(()));
    testbed.begin_decided_calls();
    testbed.finish_call("c", Ok(()));
    assert_eq!(testbed.readiness(), (false, "Settling".to_owned()));
    testbed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubUnreachable)));
    assert!(testbed.readiness().0);

    let mut testbed = StateTestbed::with_fetching(&["org/a!"]);
    testbed.begin_due_fetches();
    testbed.finish_fetch("org/a", Err(fetch_error(FetchReason::HubUnreachable)));
    testbed.advance(3600 * SECOND);
    assert_eq!(testbed.readiness(), (false, "AdaptersNotVerified".to_owned()));
}

#[test]
fn refused_source_is_not_used_and_does_not_block_readiness() {
    let mut testbed = testbed_allowing(&["org/", "/adapters/a"], &["org/x", "evil/x", "a", "b"]);
    assert_eq!(
        (testbed.begin_due_fetches(), testbed.begin_decided_calls()),
        (vec!["org/x".to_owned()], vec!["load a".to_owned()])
    );
    for name in ["evil/x", "b"] {
        assert_eq!(
            (testbed.adapter_state(name), testbed.error_reason(name).as_str()),
            (SourceRefused, "SourceNotAllowed")
        );
        assert!(testbed.adapter_status(name).last_error.unwrap().message.contains("--allow-source"));
    }
    testbed.finish_fetch("org/x", Ok(fetch_success()));
    testbed.settle();
    testbed.finish_call("a", Ok(()));
    testbed.settle();
    assert!(testbed.readiness().0);
}

#[test]
fn loaded_adapter_with_refused_source_is_kept_and_reported() {
    let mut testbed = testbed_allowing(&["org/"], &["a"]);
    testbed.table.insert("a".to_owned(), "/adapters/a".to_owned());
    testbed.poll();
    testbed.settle();
    assert_eq!((testbed.adapter_state("a"), testbed.error_reason("a").as_str()), (Verified, "SourceNotAllowed"));
    assert!(testbed.adapter_status("a").last_error.unwrap().message.ends_with("left as it is"));
    testbed.restart_server("2");
    assert_eq!((testbed.adapter_state("a"), testbed.decided_calls()), (SourceRefused, no_calls()));
    testbed.set_desired(&[], &["a"], None);
    testbed.table.insert("a".to_owned(), "/adapters/a".to_owned());
    testbed.poll();
    assert_eq!(testbed.decided_calls(), ["unload a"], "an unload does not depend on the source");
}
