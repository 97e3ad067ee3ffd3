use super::*;
use crate::snapshot::tests::sample_snapshot;
use rollora_api::{
    operator_directives::Pilot,
    sidecar_status::{AdapterState, AdapterStatus, ReadinessStatus, ServerIdentity},
};

fn id(name: &str) -> AdapterId {
    name.parse().unwrap()
}

fn directives_with(pilots: &[(&str, &str)]) -> OperatorDirectives {
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
fn server_has_its_base_models_and_resident_adapters() {
    let status = status(&[
        ("a-verified", AdapterState::Verified),
        ("b-held", AdapterState::UnloadHeld),
        ("c-unlisted", AdapterState::Unlisted),
        ("d-loading", AdapterState::Loading),
        ("e-unloading", AdapterState::Unloading),
        ("f-failed", AdapterState::Failed),
    ]);
    let routing = routing_state(None, "a:1", &status);
    assert_eq!(routing.models, ["base", "a-verified", "b-held", "c-unlisted"]);
    assert!(routing.ready && !routing.pilot);
}

#[test]
fn adapter_on_trial_is_not_routable_before_it_is_verified() {
    let directives = directives_with(&[("v2", "a:1")]);
    let loaded = routing_state(Some(&directives), "a:1", &status(&[("v2", AdapterState::Loaded)]));
    assert_eq!((loaded.models, loaded.on_trial, loaded.pilot), (vec!["base".to_owned()], vec!["v2".to_owned()], true));
    let verified = routing_state(Some(&directives), "a:1", &status(&[("v2", AdapterState::Verified)]));
    assert_eq!((verified.models.len(), verified.on_trial.len(), verified.pilot), (2, 0, false));
    let other = routing_state(Some(&directives), "b:1", &status(&[]));
    assert_eq!((other.on_trial.len(), other.pilot), (0, false));
}

#[test]
fn server_without_identity_is_not_ready() {
    let unreachable = SidecarStatus { server: None, ..status(&[("v1", AdapterState::Verified)]) };
    assert!(!routing_state(None, "a:1", &unreachable).ready);
}

/// Seconds, requests in flight, other servers, and whether the trial has started by then.
type TrialCheck = (i64, usize, usize, bool);

#[test]
fn trial_waits_for_requests_while_other_servers_take_them() {
    let cases: [(&str, &[TrialCheck]); 5] = [
        ("nothing in flight", &[(0, 0, 2, true)]),
        ("waits until the last request has ended", &[(0, 3, 2, false), (1, 1, 2, false), (2, 0, 2, true)]),
        ("no other server", &[(0, 3, 0, true)]),
        ("the other server goes down meanwhile", &[(0, 3, 1, false), (1, 3, 0, true)]),
        ("not longer than the limit", &[(0, 3, 2, false), (59, 3, 2, false), (60, 3, 2, true), (61, 5, 2, true)]),
    ];
    for (case, steps) in cases {
        let mut trial = TrialState::default();
        for &(second, in_flight, others, started) in steps {
            let now = Timestamp::from_second(second).unwrap();
            trial.advance(&["v2".to_owned()], in_flight, others, now);
            assert_eq!(trial.is_allowed(), started, "{case} at {second} s");
            assert_eq!(trial.deadline().is_some(), !started, "{case} at {second} s");
        }
    }
}

#[test]
fn additional_trial_waits_for_requests_again() {
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
fn managed_adapters_wait_before_the_first_directives() {
    use rollora_api::operator_directives::Admission;
    let first = desired_adapters(&sample_snapshot(), "a:1", true).directives.unwrap();
    assert_eq!(first.admission(&id("alias-v1"), "a:1"), Admission::Waiting);
    assert_eq!(first.admission(&id("other"), "a:1"), Admission::Granted);
}
