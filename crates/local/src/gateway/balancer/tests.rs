use super::*;
use proptest::prelude::*;

fn server(names: &[&str]) -> ServerRoutingState {
    ServerRoutingState {
        ready: true,
        models: names.iter().map(ToString::to_string).collect(),
        ..ServerRoutingState::default()
    }
}

fn pilot(names: &[&str], on_trial: &str) -> ServerRoutingState {
    ServerRoutingState { pilot: true, on_trial: vec![on_trial.to_owned()], ..server(names) }
}

fn not_ready(names: &[&str]) -> ServerRoutingState {
    ServerRoutingState { ready: false, ..server(names) }
}

/// What it shows, the servers, what is needed, their loads, and who is chosen.
type ChoiceCase<'a> =
    (&'a str, Vec<ServerRoutingState>, ServerRequirement<'a>, Vec<Option<usize>>, Result<usize, NoServer>);

#[test]
fn choices_as_a_table() {
    use NoServer::{NotReady, NotResident, OnTrial};
    use ServerRequirement::{Any, Model, Target};
    let both = || vec![server(&["base", "v1"]), server(&["base", "v1"])];
    let cases: Vec<ChoiceCase<'_>> = vec![
        ("the least loaded", both(), Target("v1"), vec![Some(3), Some(1)], Ok(1)),
        (
            "only who has it",
            vec![server(&["base"]), server(&["base", "v1"])],
            Target("v1"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        ("not one that is out", both(), Target("v1"), vec![None, Some(9)], Ok(1)),
        (
            "not one that is not ready",
            vec![not_ready(&["v1"]), server(&["v1"])],
            Target("v1"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        ("a pilot last", vec![pilot(&["v1"], "v2"), server(&["v1"])], Target("v1"), vec![Some(0), Some(9)], Ok(1)),
        (
            "a pilot rather than nobody",
            vec![pilot(&["v1"], "v2"), server(&[])],
            Target("v1"),
            vec![Some(0), Some(0)],
            Ok(0),
        ),
        ("a target that nobody has", both(), Target("v2"), vec![Some(0), Some(0)], Err(NotResident)),
        ("a target, and nobody is ready", vec![not_ready(&["v1"])], Target("v1"), vec![Some(0)], Err(NotReady)),
        ("no servers at all", vec![], Any, vec![], Err(NotReady)),
        ("all are out", both(), Model("v1"), vec![None, None], Err(NotReady)),
        ("an unknown name goes anywhere", both(), Model("v9"), vec![Some(1), Some(0)], Ok(1)),
        ("no model goes anywhere", both(), Any, vec![Some(1), Some(0)], Ok(1)),
        (
            "a base model goes where it is",
            vec![server(&["a"]), server(&["b"])],
            Model("b"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        (
            "a name on trial goes past its pilot",
            vec![pilot(&["v1"], "v2"), server(&["v1"])],
            Model("v2"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        ("a name on trial on the only server", vec![pilot(&["v1"], "v2")], Model("v2"), vec![Some(0)], Err(OnTrial)),
    ];
    for (case, servers, need, loads, expected) in cases {
        assert_eq!(RoutingTable::new(&servers).choose(need, 0, |index| loads[index]), expected, "{case}");
    }
}

#[test]
fn equals_take_turns() {
    let table = RoutingTable::new(&[server(&["v1"]), server(&["v1"]), server(&["v1"])]);
    let chosen: Vec<_> =
        (0..6).filter_map(|turn| table.choose(ServerRequirement::Target("v1"), turn, |_| Some(0)).ok()).collect();
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
}

proptest! {
    #[test]
    fn whoever_is_chosen_is_ready_in_and_has_the_target(
        servers in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(0..4_usize)), 0..5),
        turn in any::<usize>(),
    ) {
        let facts: Vec<_> = servers.iter().map(|&(ready, pilot, has, _)| ServerRoutingState {
            ready,
            pilot,
            models: if has { vec!["v1".to_owned()] } else { vec![] },
            on_trial: vec![],
        }).collect();
        let able = |index: usize| servers[index].0 && servers[index].2 && servers[index].3.is_some();
        match RoutingTable::new(&facts).choose(ServerRequirement::Target("v1"), turn, |index| servers[index].3) {
            Ok(chosen) => {
                prop_assert!(able(chosen));
                for other in (0..servers.len()).filter(|&other| able(other)) {
                    let rank = |index: usize| (servers[index].1, servers[index].3);
                    prop_assert!(rank(chosen) <= rank(other));
                }
            }
            Err(_) => prop_assert!(!(0..servers.len()).any(able)),
        }
    }
}
