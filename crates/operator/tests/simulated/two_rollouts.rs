//! Two Rollouts with the same pool and adapters file, and with one rewrite each or a shared one. Actions of people and
//! failing calls for one of them never affect the other.

use crate::{
    guide::ROLLOUT,
    invariants::Invariant,
    schedules::{
        self, OperatorFault, SimDriver, WorldAction, any_action, any_operator_fault, apply_to_rollout,
        check_violations, config, count_listings, heal, is_at_rest, select_ids,
    },
    server::AdapterBehavior,
    two_rollouts_driver::{NAMES, TwoRollouts},
    world::{World, id},
};
use jiff::SignedDuration;
use proptest::prelude::*;
use rollora_api::{
    condition::reason,
    names::STABLE_ANNOTATION,
    rollout::{
        IntentKind,
        spec::RewriteRef,
        status::{Phase, RetirementState},
    },
};

const IDS: [[&str; 4]; 2] = [schedules::IDS, ["large-v1", "large-v2", "large-v3", "large-v4"]];

/// Maximum number of writes in half a minute without changes: each Rollout updates its counts and its observed file
/// version now and then. Two Rollouts that keep reverting each other's writes need as many in one tick.
const MAX_IDLE_WRITES: u64 = 6;

/// An action for one of the two Rollouts, or its surroundings.
#[derive(Debug, Clone)]
pub(crate) enum PairAction {
    Apply(WorldAction),
    /// The Rollout names exactly this adapter; `None` follows the highest listed version, as at the start.
    SetAdapter(Option<usize>),
    /// A person deletes the Rollout.
    DeleteRollout,
    /// A fault of one of the operators, if there are two.
    OperatorFault(OperatorFault),
}

fn pair_action() -> impl Strategy<Value = (usize, PairAction)> {
    let action = prop_oneof![
        30 => any_action().prop_map(PairAction::Apply),
        2 => prop::option::of(0..4_usize).prop_map(PairAction::SetAdapter),
        1 => Just(PairAction::DeleteRollout),
    ];
    (0..2_usize, action)
}

/// Both Rollouts, each with its first adapter listed; one rewrite for both if `shared`.
pub(crate) fn world(shared: bool, crashing: [Option<usize>; 2]) -> World {
    let mut world = schedules::schedule_world(None, None);
    let reference = shared.then(|| RewriteRef { name: "both".to_owned() });
    world.rollout.spec.rewrite_ref.clone_from(&reference);
    let pause = "{ duration: 5s }";
    let neighbor = ROLLOUT.replace(NAMES[0], NAMES[1]).replace(pause, "{ duration: 1s }");
    world.add_other_rollout(&neighbor, |rollout| rollout.spec.rewrite_ref = reference, IDS[1][0]);
    for (ids, crashing) in IDS.iter().zip(crashing) {
        world.behaviors.extend(crashing.map(|index| (id(ids[index]), AdapterBehavior::CrashesOnLoad)));
    }
    world
}

/// A person edits the entries of one Rollout, and leaves the others unchanged.
fn list_side(world: &mut World, side: usize, exist: u8, not_exist: u8) {
    let file = world.adapters_file();
    let [mut exists, mut not_exists] = [file.ensure_exist, file.ensure_not_exist].map(|entries| {
        let ids = entries.into_iter().map(|entry| entry.id.as_str().to_owned());
        ids.filter(|id| !id.starts_with(NAMES[side])).collect::<Vec<_>>()
    });
    exists.extend(select_ids(&IDS[side], exist).into_iter().map(str::to_owned));
    not_exists.extend(select_ids(&IDS[side], not_exist & !exist).into_iter().map(str::to_owned));
    let [exists, not_exists] = [&exists, &not_exists].map(|ids| ids.iter().map(String::as_str).collect::<Vec<_>>());
    world.list_adapters(&exists, &not_exists);
}

fn set_adapter(world: &mut World, adapter: Option<&str>) {
    let pattern = format!("{}-v*", world.rollout.metadata.name);
    let adapter_spec = match adapter {
        Some(id) => serde_json::json!({ "id": id }),
        None => serde_json::json!({ "follow": { "pattern": pattern } }),
    };
    world.edit_spec(|rollout| rollout.spec.adapter = serde_json::from_value(adapter_spec).unwrap());
}

/// Deletes the Rollout. Its ids are not managed afterwards, so people may cause their loss.
fn delete_rollout(world: &mut World, ids: &[&str]) {
    world.delete_rollout();
    for name in ids {
        world.allow_loss(&id(name));
    }
}

pub(crate) fn apply_pair_action(pair: &mut TwoRollouts, side: usize, action: &PairAction) {
    let (name, ids) = (NAMES[side], &IDS[side]);
    let mut world = pair.world();
    world.log_event(format!("{name}: {action:?}"));
    let deleted = world.with_rollout(name, |world| world.deleted);
    match action {
        PairAction::Apply(WorldAction::Wait(ticks)) => {
            drop(world);
            (0..*ticks).for_each(|_| pair.tick());
        }
        PairAction::Apply(WorldAction::ListAdapters { exist, not_exist }) => {
            list_side(&mut world, side, *exist, *not_exist);
        }
        PairAction::Apply(_) | PairAction::SetAdapter(_) | PairAction::DeleteRollout if deleted => {}
        PairAction::OperatorFault(fault) => {
            drop(world);
            apply_operator_fault(pair, fault);
        }
        PairAction::Apply(action) => world.with_rollout(name, |world| apply_to_rollout(world, action, ids)),
        PairAction::SetAdapter(adapter) => {
            world.with_rollout(name, |world| set_adapter(world, adapter.map(|index| ids[index])));
        }
        PairAction::DeleteRollout => world.with_rollout(name, |world| delete_rollout(world, ids)),
    }
}

fn apply_operator_fault(pair: &mut TwoRollouts, fault: &OperatorFault) {
    match *fault {
        OperatorFault::ToggleStopped(operator) => pair.toggle_stopped(operator),
        OperatorFault::Kill(operator) => pair.restart_operator(operator),
        OperatorFault::SetLags(operator, lags) => pair.set_lags(operator, lags.map(SignedDuration::from_millis)),
        OperatorFault::RunAlone(operator, polls) => (0..polls).for_each(|poll| {
            pair.step(operator, usize::from(poll % 2));
        }),
    }
}

/// Returns for both Rollouts whether only a person can continue, or nothing is left to do.
fn both_at_rest(world: &mut World) -> [bool; 2] {
    let statuses = world.with_each_rollout(|world| world.status().message);
    // Servers wait for every serving adapter, of either Rollout.
    let beyond_help = statuses.iter().any(|message| message.contains("list it again"))
        && world.servers.iter().all(|server| server.in_other_pool || !server.ready);
    let rest = world.with_each_rollout(|world| world.deleted || beyond_help || is_at_rest(world));
    [rest[0], rest[1]]
}

/// Heals all faults, and checks that both Rollouts come to rest and that hardly anything is written afterwards.
fn run_to_rest(pair: &mut TwoRollouts) {
    pair.resume_all();
    pair.world().with_each_rollout(heal);
    for _ in 0..3000 {
        pair.tick();
        if both_at_rest(&mut pair.world()) == [true; 2] {
            break;
        }
    }
    pair.run_for(SignedDuration::from_secs(15));
    let rest = both_at_rest(&mut pair.world());
    for (name, is_at_rest_now) in NAMES.iter().zip(rest) {
        pair.world().with_rollout(name, |world| {
            world.check_end_state(is_at_rest_now);
            world.check_entries_finalized();
        });
    }
    check_idle_writes(pair);
}

/// Checks that hardly anything is written while nothing changes.
fn check_idle_writes(pair: &mut TwoRollouts) {
    let before = pair.world().versions;
    pair.run_for(SignedDuration::from_secs(30));
    let mut world = pair.world();
    let writes = world.versions - before;
    if writes > MAX_IDLE_WRITES {
        world.record_violation(Invariant::IdleWritesNothing, format!("{writes} writes in half a minute"));
    }
}

/// Checks that only edits and deletions of a rewrite by people are reported as such.
fn check_overwrite_events(world: &mut World, actions: &[(usize, PairAction)]) {
    let is_edit = |(_, action): &&(usize, PairAction)| {
        matches!(action, PairAction::Apply(WorldAction::SwapWeights | WorldAction::DeleteRewrite))
    };
    let edits = actions.iter().filter(is_edit).count();
    world.with_each_rollout(|world| {
        let reported = world.events.iter().filter(|event| event.reason == reason::REWRITE_OVERWRITTEN).count();
        if reported > edits {
            let how =
                format!("{}: {reported} edits were reported, but people made {edits}", world.rollout.metadata.name);
            world.record_violation(Invariant::NoFalseOverwriteEvent, how);
        }
    });
}

/// Checks that a bad adapter of one Rollout crashes one server, unless its id was not managed for a while.
fn check_crash_counts(world: &mut World, actions: &[(usize, PairAction)], crashing: [Option<usize>; 2]) {
    for (side, crashing) in crashing.into_iter().enumerate() {
        let own = actions.iter().filter(|(owner, _)| *owner == side).map(|(_, action)| action);
        let unmanaged =
            own.clone().any(|action| matches!(action, PairAction::DeleteRollout | PairAction::SetAdapter(_)));
        let actions: Vec<WorldAction> = own
            .filter_map(|action| if let PairAction::Apply(action) = action { Some(action.clone()) } else { None })
            .collect();
        if let Some(index) = crashing.filter(|_| !unmanaged) {
            world.check_crash_count(&id(IDS[side][index]), count_listings(&actions, index));
        }
    }
}

pub(crate) fn run_two_rollouts(
    world: World,
    operators: u64,
    seed: u64,
    actions: &[(usize, PairAction)],
    crashing: [Option<usize>; 2],
) -> Result<(), TestCaseError> {
    let mut pair = TwoRollouts::new(world, operators, seed);
    for (side, action) in actions {
        apply_pair_action(&mut pair, *side, action);
        pair.tick();
        pair.world().with_each_rollout(World::check_message);
        check_violations(&pair)?;
    }
    run_to_rest(&mut pair);
    if operators == 1 {
        // An operator that reads a rewrite late takes the other operator's write for one by another writer.
        check_overwrite_events(&mut pair.world(), actions);
    }
    check_crash_counts(&mut pair.world(), actions, crashing);
    check_violations(&pair)
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn random_schedules_of_two_rollouts_keep_the_invariants(
        actions in prop::collection::vec(pair_action(), 1..50),
        crashing in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        seed: u64,
    ) {
        run_two_rollouts(world(false, crashing), 1, seed, &actions, crashing)?;
    }

    #[test]
    fn random_schedules_with_shared_rewrite_keep_the_invariants(
        actions in prop::collection::vec(pair_action(), 1..50),
        crashing in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        seed: u64,
    ) {
        run_two_rollouts(world(true, crashing), 1, seed, &actions, crashing)?;
    }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn two_operators_and_two_rollouts_keep_the_invariants(
        actions in prop::collection::vec(prop_oneof![
            3 => pair_action(),
            2 => any_operator_fault().prop_map(|fault| (0, PairAction::OperatorFault(fault))),
        ], 1..60),
        crashing in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        shared: bool,
        seed: u64,
    ) {
        run_two_rollouts(world(shared, crashing), 2, seed, &actions, crashing)?;
    }
}

fn both_installed(shared: bool) -> TwoRollouts {
    let mut pair = TwoRollouts::new(world(shared, [None; 2]), 1, 7);
    for (name, ids) in NAMES.iter().zip(IDS) {
        pair.run_until(name, "it is installed", |world| world.phase() == Phase::Succeeded);
        assert_eq!(
            pair.world().with_rollout(name, |world| world.weights()),
            [(ids[0].to_owned(), 100)],
            "{}",
            pair.log_text()
        );
    }
    pair
}

fn both_at_half(shared: bool) -> TwoRollouts {
    let mut pair = both_installed(shared);
    for side in 0..2 {
        list_side(&mut pair.world(), side, 3, 0);
    }
    for (name, ids) in NAMES.iter().zip(IDS) {
        let half = ids[..2].iter().map(|id| ((*id).to_owned(), 50)).collect::<Vec<_>>();
        pair.run_until(name, "it is at half", |world| world.phase() == Phase::Paused && world.weights() == half);
    }
    pair
}

fn set_intent(pair: &TwoRollouts, side: usize, verb: IntentKind) {
    pair.world().with_rollout(NAMES[side], |world| world.set_intent(verb));
}

#[test]
fn both_rollouts_reach_v2_concurrently_and_unload_v1() {
    for shared in [false, true] {
        let mut pair = both_at_half(shared);
        assert_eq!(pair.world().rewrites.len(), if shared { 1 } else { 2 });
        set_intent(&pair, 0, IntentKind::Promote);
        set_intent(&pair, 1, IntentKind::Promote);
        for (name, ids) in NAMES.iter().zip(IDS) {
            let gone = |world: &World| world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone);
            pair.run_until(name, "v1 is unloaded", |world| {
                gone(world) && world.phase() == Phase::Succeeded && world.loaded_count(&id(ids[0])) == 0
            });
        }
        pair.run_for(SignedDuration::from_secs(15));
        check_idle_writes(&mut pair);
        check_overwrite_events(&mut pair.world(), &[]);
        pair.check_violations();
    }
}

#[test]
fn abort_of_one_rollout_leaves_the_other_at_half() {
    for shared in [false, true] {
        let mut pair = both_at_half(shared);
        let other_weights = pair.world().with_rollout(NAMES[1], |world| world.weights());
        set_intent(&pair, 0, IntentKind::Abort);
        pair.run_until(NAMES[0], "it is rolled back", |world| world.phase() == Phase::RolledBack);
        pair.run_for(SignedDuration::from_secs(20));
        assert_eq!(pair.world().weights(), [(IDS[0][0].to_owned(), 100)], "{}", pair.log_text());
        assert_eq!(pair.world().with_rollout(NAMES[1], |world| world.weights()), other_weights, "{}", pair.log_text());
        pair.check_violations();
    }
}

#[test]
fn deletion_of_one_rollout_keeps_the_entries_of_the_other() {
    for shared in [false, true] {
        for side in 0..2 {
            let mut pair = both_at_half(shared);
            apply_pair_action(&mut pair, side, &PairAction::DeleteRollout);
            pair.run_until(NAMES[side], "it is deleted", |world| world.deleted);
            pair.run_for(SignedDuration::from_secs(20));
            let directives = pair.world().directives();
            let (ids, other) = (IDS[1 - side], NAMES[1 - side]);
            assert_eq!(directives.managed, [ids[0].replace("v1", "v*")], "{}", pair.log_text());
            assert_eq!(directives.serving, [id(ids[0]), id(ids[1])], "{}", pair.log_text());
            assert_eq!(pair.world().with_rollout(other, |world| world.phase()), Phase::Paused, "{}", pair.log_text());
            pair.check_violations();
        }
    }
}

/// Regression: only the lost status recorded that v1 belongs to the Rollout. The other Rollout wrote the directives
/// without it, and servers unloaded an adapter with weight.
#[test]
fn serving_id_of_a_lost_status_is_kept_by_the_other_rollout() {
    let mut pair = both_installed(false);
    apply_pair_action(&mut pair, 1, &PairAction::SetAdapter(Some(1)));
    list_side(&mut pair.world(), 1, 3, 0);
    pair.run_until(NAMES[1], "it is at half", |world| world.phase() == Phase::Paused && world.weights().len() == 2);
    list_side(&mut pair.world(), 1, 2, 1);
    pair.run_for(SignedDuration::from_secs(3));
    for (rewrite, _) in pair.world().rewrites.iter_mut().filter(|(rewrite, _)| rewrite.metadata.name == NAMES[1]) {
        // Adoption then waits for a person.
        rewrite.metadata.annotations.remove(STABLE_ANNOTATION);
    }
    pair.world().with_rollout(NAMES[1], World::delete_status);
    pair.run_for(SignedDuration::from_secs(5));
    let now = pair.world().now;
    pair.world().servers[1].crash(now, SignedDuration::from_secs(1));
    pair.run_for(SignedDuration::from_secs(20));
    assert!(pair.world().directives().serving.contains(&id(IDS[1][0])), "{}", pair.log_text());
    pair.check_violations();
}

/// Regression, found with a shared rewrite.
#[test]
fn candidate_of_a_lost_status_is_kept_by_the_other_rollout() {
    let actions = [
        (0, PairAction::Apply(WorldAction::Wait(28))),
        (1, PairAction::SetAdapter(Some(1))),
        (0, PairAction::Apply(WorldAction::Wait(1))),
        (1, PairAction::Apply(WorldAction::ListAdapters { exist: 6, not_exist: 0 })),
        (0, PairAction::Apply(WorldAction::Wait(3))),
        (1, PairAction::Apply(WorldAction::DeleteStatus)),
    ];
    run_two_rollouts(world(true, [None; 2]), 1, 11_039_627_307_342_750_555, &actions, [None; 2]).unwrap();
}
