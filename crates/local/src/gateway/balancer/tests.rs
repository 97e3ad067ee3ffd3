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

/// Name of the case, servers, requirement, loads, and the chosen server.
type ChoiceCase<'a> =
    (&'a str, Vec<ServerRoutingState>, ServerRequirement<'a>, Vec<Option<usize>>, Result<usize, NoServer>);

#[test]
fn server_choice_depends_on_requirement_state_and_load() {
    use NoServer::{NotReady, NotResident, OnTrial};
    use ServerRequirement::{Any, Model, Target};
    let both = || vec![server(&["base", "v1"]), server(&["base", "v1"])];
    let cases: Vec<ChoiceCase<'_>> = vec![
        ("the least loaded", both(), Target("v1"), vec![Some(3), Some(1)], Ok(1)),
        (
            "only a server with the target",
            vec![server(&["base"]), server(&["base", "v1"])],
            Target("v1"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        ("not an excluded server", both(), Target("v1"), vec![None, Some(9)], Ok(1)),
        (
            "not a server that is not ready",
            vec![not_ready(&["v1"]), server(&["v1"])],
            Target("v1"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        (
            "a pilot only as the last resort",
            vec![pilot(&["v1"], "v2"), server(&["v1"])],
            Target("v1"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        (
            "a pilot if no other server has the target",
            vec![pilot(&["v1"], "v2"), server(&[])],
            Target("v1"),
            vec![Some(0), Some(0)],
            Ok(0),
        ),
        ("a target that no server has", both(), Target("v2"), vec![Some(0), Some(0)], Err(NotResident)),
        ("a target, and no server is ready", vec![not_ready(&["v1"])], Target("v1"), vec![Some(0)], Err(NotReady)),
        ("no servers at all", vec![], Any, vec![], Err(NotReady)),
        ("all servers are excluded", both(), Model("v1"), vec![None, None], Err(NotReady)),
        ("an unknown model goes to any server", both(), Model("v9"), vec![Some(1), Some(0)], Ok(1)),
        ("no model goes to any server", both(), Any, vec![Some(1), Some(0)], Ok(1)),
        (
            "a base model goes to a server with it",
            vec![server(&["a"]), server(&["b"])],
            Model("b"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        (
            "a model on trial goes to a server other than its pilot",
            vec![pilot(&["v1"], "v2"), server(&["v1"])],
            Model("v2"),
            vec![Some(0), Some(9)],
            Ok(1),
        ),
        ("a model on trial on the only server", vec![pilot(&["v1"], "v2")], Model("v2"), vec![Some(0)], Err(OnTrial)),
    ];
    for (case, servers, requirement, loads, expected) in cases {
        assert_eq!(RoutingTable::new(&servers).choose(requirement, 0, |index| loads[index]), expected, "{case}");
    }
}

#[test]
fn equal_servers_are_chosen_round_robin() {
    let table = RoutingTable::new(&[server(&["v1"]), server(&["v1"]), server(&["v1"])]);
    let chosen: Vec<_> = (0..6)
        .filter_map(|round_robin| table.choose(ServerRequirement::Target("v1"), round_robin, |_| Some(0)).ok())
        .collect();
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
}

proptest! {
    #[test]
    fn chosen_server_is_ready_included_and_has_the_target(
        servers in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), proptest::option::of(0..4_usize)), 0..5),
        round_robin in any::<usize>(),
    ) {
        let states: Vec<_> = servers.iter().map(|&(ready, pilot, has, _)| ServerRoutingState {
            ready,
            pilot,
            models: if has { vec!["v1".to_owned()] } else { vec![] },
            on_trial: vec![],
        }).collect();
        let eligible = |index: usize| servers[index].0 && servers[index].2 && servers[index].3.is_some();
        let table = RoutingTable::new(&states);
        match table.choose(ServerRequirement::Target("v1"), round_robin, |index| servers[index].3) {
            Ok(chosen) => {
                prop_assert!(eligible(chosen));
                for other in (0..servers.len()).filter(|&other| eligible(other)) {
                    let rank = |index: usize| (servers[index].1, servers[index].3);
                    prop_assert!(rank(chosen) <= rank(other));
                }
            }
            Err(_) => prop_assert!(!(0..servers.len()).any(eligible)),
        }
    }
}
