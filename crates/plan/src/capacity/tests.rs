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
fn what_fits_is_what_serves_and_the_pilot_on_its_own_server() {
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
fn both_versions_in_the_room_of_one_are_told_with_the_flag_that_helps() {
    let one = [server("a", true, Some(1)), server("b", true, Some(1)), server("c", true, Some(4))];
    let found = evaluate(&directives(&["v1", "v2"], &[]), &one, &[&id("v1"), &id("v2")]);
    assert_eq!(
        found,
        Capacity::TooSmall(
            "a, b: max_loras is 1, and 2 adapters are in use (v1 and v2 among them): vLLM refuses none, but swaps them \
             between requests and gets slow; start vLLM with --max-loras 2, or let fewer serve"
                .to_owned()
        )
    );
}

#[test]
fn a_trial_that_does_not_fit_is_told_of_its_pilot_alone() {
    let servers = [server("a", true, Some(2)), server("b", true, Some(2))];
    let found = evaluate(&directives(&["other-v1", "v1"], &[("v2", "b")]), &servers, &[&id("v1"), &id("v2")]);
    let Capacity::TooSmall(words) = found else { panic!("{found:?}") };
    assert!(words.starts_with("b: max_loras is 2, and 3 adapters are in use"), "{words}");
}

#[test]
fn one_version_is_not_called_both() {
    let found = evaluate(&directives(&["v1", "other"], &[]), &[server("a", true, Some(1))], &[&id("v1"), &id("v1")]);
    let Capacity::TooSmall(words) = found else { panic!("{found:?}") };
    assert!(words.contains("2 adapters are in use: vLLM"), "{words}");
}

#[test]
fn who_does_not_say_or_is_not_ready_counts_for_nothing() {
    let away = ObservedServer { status: Err("no answer".to_owned()), ..server("away", true, None) };
    let silent = [server("a", true, None), server("b", false, Some(1)), away];
    assert_eq!(evaluate(&directives(&["v1", "v2"], &[]), &silent, &[]), Capacity::Unknown);
}

#[test]
fn what_nobody_has_told_is_asked_for_again_where_somebody_could_tell() {
    let untold = server("a", true, None);
    let told = server("b", true, Some(2));
    let away = ObservedServer { status: Err("no answer".to_owned()), ..untold.clone() };
    let mut alone = untold.clone();
    if let Ok(status) = alone.status.as_mut().map(std::sync::Arc::make_mut) {
        status.readiness.reason = NO_SIDECAR.to_owned();
    }
    let unready = ObservedServer { ready: false, ..untold.clone() };
    for (servers, expected) in [
        (vec![untold.clone()], true),
        (vec![untold.clone(), alone.clone()], true),
        (vec![untold, told], false),
        (vec![away], false),
        (vec![alone], false),
        (vec![unready], false),
        (Vec::new(), false),
    ] {
        assert_eq!(is_unreported(&servers), expected, "{servers:?}");
    }
}
