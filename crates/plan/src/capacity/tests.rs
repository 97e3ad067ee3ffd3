//! Tests of the capacity check: which servers lack slots, and the message about them.

use super::*;
use rollora_api::{operator_directives::Pilot, sidecar_status::SidecarStatus};

fn id(name: &str) -> AdapterId {
    AdapterId::new(name).unwrap()
}

fn server(name: &str, ready: bool, max_loras: Option<u32>) -> ObservedServer {
    ObservedServer { ready, ..ObservedServer::ready(name, SidecarStatus { max_loras, ..SidecarStatus::default() }) }
}

fn directives(serving: &[&str], pilots: &[(&str, &str)]) -> OperatorDirectives {
    let pilot = |(name, pod): &(&str, &str)| Pilot { id: id(name), pod: (*pod).to_owned() };
    OperatorDirectives {
        serving: serving.iter().map(|name| id(name)).collect(),
        pilots: pilots.iter().map(pilot).collect(),
        ..OperatorDirectives::default()
    }
}

#[test]
fn pilot_needs_a_slot_only_on_its_own_server() {
    let two = [server("a", true, Some(2)), server("b", true, Some(3))];
    for (serving, pilots) in [
        (&["v1"][..], &[][..]),
        (&["v1"], &[("v2", "a")]),
        (&["v1", "v2"], &[("v2", "a")]),
        (&["v1", "v2"], &[("v3", "elsewhere")]),
        (&["v1", "v2"], &[("v3", "b")]),
    ] {
        assert_eq!(
            evaluate(&directives(serving, pilots), &two, &[]),
            Capacity::Fits { slots: 2 },
            "{serving:?} {pilots:?}"
        );
    }
    let more = evaluate(&directives(&["v1", "v2"], &[("v3", "a")]), &two, &[]);
    assert!(matches!(more, Capacity::TooSmall(_)), "{more:?}");
}

#[test]
fn too_few_slots_names_versions_and_flag() {
    let one = [server("a", true, Some(1)), server("b", true, Some(1)), server("c", true, Some(4))];
    let found = evaluate(&directives(&["v1", "v2"], &[]), &one, &[&id("v1"), &id("v2")]);
    assert_eq!(
        found,
        Capacity::TooSmall(
            "a, b: max_loras is 1, and 2 adapters are in use (v1 and v2 among them): vLLM swaps them between \
             requests and gets slow; start vLLM with --max-loras 2, or serve fewer adapters"
                .to_owned()
        )
    );
}

#[test]
fn trial_without_a_slot_names_only_its_pilot() {
    let servers = [server("a", true, Some(2)), server("b", true, Some(2))];
    let found = evaluate(&directives(&["other-v1", "v1"], &[("v2", "b")]), &servers, &[&id("v1"), &id("v2")]);
    let Capacity::TooSmall(message) = found else { panic!("{found:?}") };
    assert!(message.starts_with("b: max_loras is 2, and 3 adapters are in use"), "{message}");
}

#[test]
fn single_version_is_not_listed_twice() {
    let found = evaluate(&directives(&["v1", "other"], &[]), &[server("a", true, Some(1))], &[&id("v1"), &id("v1")]);
    let Capacity::TooSmall(message) = found else { panic!("{found:?}") };
    assert!(message.contains("2 adapters are in use: vLLM"), "{message}");
}

#[test]
fn unready_or_unreporting_servers_are_ignored() {
    let unreachable = ObservedServer { status: Err("no answer".to_owned()), ..server("away", true, None) };
    let silent = [server("a", true, None), server("b", false, Some(1)), unreachable];
    assert_eq!(evaluate(&directives(&["v1", "v2"], &[]), &silent, &[]), Capacity::Unknown);
}

#[test]
fn unreported_slots_are_polled_if_a_sidecar_exists() {
    let unreported = server("a", true, None);
    let reported = server("b", true, Some(2));
    let unreachable = ObservedServer { status: Err("no answer".to_owned()), ..unreported.clone() };
    let mut without_sidecar = unreported.clone();
    if let Ok(status) = without_sidecar.status.as_mut().map(std::sync::Arc::make_mut) {
        status.readiness.reason = NO_SIDECAR.to_owned();
    }
    let unready = ObservedServer { ready: false, ..unreported.clone() };
    for (servers, expected) in [
        (vec![unreported.clone()], true),
        (vec![unreported.clone(), without_sidecar.clone()], true),
        (vec![unreported, reported], false),
        (vec![unreachable], false),
        (vec![without_sidecar], false),
        (vec![unready], false),
        (Vec::new(), false),
    ] {
        assert_eq!(is_unreported(&servers), expected, "{servers:?}");
    }
}
