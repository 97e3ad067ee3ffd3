use super::*;
use crate::snapshot::tests::sample_snapshot;
use rollora_api::{
    operator_directives::Pilot,
    sidecar_status::{AdapterState, AdapterStatus, ReadinessStatus, ServerIdentity},
};

fn id(name: &str) -> AdapterId {
    name.parse().unwrap()
}

fn directives(pilots: &[(&str, &str)]) -> OperatorDirectives {
    let pilots = pilots.iter().map(|(adapter, pod)| Pilot { id: id(adapter), pod: (*pod).to_owned() }).collect();
    OperatorDirectives { pilots, ..OperatorDirectives::default() }
}

fn status(adapters: &[(&str, AdapterState)]) -> SidecarStatus {
    let adapter = |(name, state): &(&str, AdapterState)| AdapterStatus::new(id(name), *state);
    SidecarStatus {
        server: Some(ServerIdentity { endpoint: "http://a".to_owned(), start: "1".to_owned() }),
        readiness: ReadinessStatus { ready: true, ..ReadinessStatus::default() },
        base_models: vec!["base".to_owned()],
        adapters: adapters.iter().map(adapter).collect(),
        ..SidecarStatus::default()
    }
}

#[test]
fn a_server_answers_to_base_models_and_what_is_resident() {
    let status = status(&[
        ("a-verified", AdapterState::Verified),
        ("b-held", AdapterState::UnloadHeld),
        ("c-unlisted", AdapterState::Unlisted),
        ("d-loading", AdapterState::Loading),
        ("e-unloading", AdapterState::Unloading),
        ("f-failed", AdapterState::Failed),
    ]);
    let facts = routing_state(None, "a:1", &status);
    assert_eq!(facts.models, ["base", "a-verified", "b-held", "c-unlisted"]);
    assert!(facts.ready && !facts.pilot);
}

#[test]
fn what_is_on_trial_is_not_offered_before_it_is_proven() {
    let key = directives(&[("v2", "a:1")]);
    let loaded = routing_state(Some(&key), "a:1", &status(&[("v2", AdapterState::Loaded)]));
    assert_eq!((loaded.models, loaded.on_trial, loaded.pilot), (vec!["base".to_owned()], vec!["v2".to_owned()], true));
    let proven = routing_state(Some(&key), "a:1", &status(&[("v2", AdapterState::Verified)]));
    assert_eq!((proven.models.len(), proven.on_trial.len(), proven.pilot), (2, 0, false));
    let other = routing_state(Some(&key), "b:1", &status(&[]));
    assert_eq!((other.on_trial.len(), other.pilot), (0, false));
}

#[test]
fn a_server_that_is_away_is_not_ready_whatever_was_said_of_it() {
    let away = SidecarStatus { server: None, ..status(&[("v1", AdapterState::Verified)]) };
    assert!(!routing_state(None, "a:1", &away).ready);
}

/// Seconds, requests in flight, other servers; and whether the trial has begun then.
type TrialCheck = (i64, usize, usize, bool);

#[test]
fn trials_wait_for_requests_as_long_as_there_are_others_to_take_them() {
    let cases: [(&str, &[TrialCheck]); 5] = [
        ("nothing in flight", &[(0, 0, 2, true)]),
        ("waits until the last has ended", &[(0, 3, 2, false), (1, 1, 2, false), (2, 0, 2, true)]),
        ("nobody else", &[(0, 3, 0, true)]),
        ("the others went away meanwhile", &[(0, 3, 1, false), (1, 3, 0, true)]),
        ("not for ever", &[(0, 3, 2, false), (59, 3, 2, false), (60, 3, 2, true), (61, 5, 2, true)]),
    ];
    for (case, steps) in cases {
        let mut trial = TrialState::default();
        for &(second, in_flight, others, begun) in steps {
            let now = Timestamp::from_second(second).unwrap();
            trial.advance(&["v2".to_owned()], in_flight, others, now);
            assert_eq!(trial.is_allowed(), begun, "{case} at {second} s");
            assert_eq!(trial.deadline().is_some(), !begun, "{case} at {second} s");
        }
    }
}

#[test]
fn another_trial_waits_again() {
    let (mut trial, now) = (TrialState::default(), Timestamp::UNIX_EPOCH);
    trial.advance(&["v2".to_owned()], 0, 1, now);
    trial.advance(&["v2".to_owned(), "w2".to_owned()], 5, 1, now);
    assert!(trial.is_draining());
    trial.advance(&[], 5, 1, now);
    assert_eq!(trial, TrialState::Inactive);
    trial.advance(&["v2".to_owned()], 5, 1, now);
    assert!(trial.is_draining());
}

#[test]
fn before_the_operator_spoke_first_no_server_may_load_what_one_of_them_has_to_try() {
    use rollora_api::operator_directives::Admission;
    let first = desired_adapters(&sample_snapshot(), "a:1", true).directives.unwrap();
    assert_eq!(first.admission(&id("alias-v1"), "a:1"), Admission::Waiting);
    assert_eq!(first.admission(&id("other"), "a:1"), Admission::Granted);
}
