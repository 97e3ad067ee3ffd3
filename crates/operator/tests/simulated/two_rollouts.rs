//! Two Rollouts beside each other, of one pool and one adapters file, with a rewrite each or with one for both. What people
//! and failing calls do to either is no matter of the other's.

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

/// So many documents may be written in half a minute in which nothing happens: each Rollout says now and then what it
/// counted, and which version of the file it has seen. Two that take something back from each other write as many in a tick.
const MAX_IDLE_WRITES: u64 = 6;

/// What happens to one of the two, or around it.
#[derive(Debug, Clone)]
pub(crate) enum PairAction {
    Apply(WorldAction),
    /// Exactly this adapter is wanted; none means the highest that is listed, as in the beginning.
    SetAdapter(Option<usize>),
    /// Somebody deletes the Rollout.
    DeleteRollout,
    /// What becomes of one of the operators, where there are two.
    OperatorFault(OperatorFault),
}

fn pair_action() -> impl Strategy<Value = (usize, PairAction)> {
    let deed = prop_oneof![
        30 => any_action().prop_map(PairAction::Apply),
        2 => prop::option::of(0..4_usize).prop_map(PairAction::SetAdapter),
        1 => Just(PairAction::DeleteRollout),
    ];
    (0..2_usize, deed)
}

/// Both Rollouts, each with its first adapter listed, and one rewrite for both if it is `shared`.
pub(crate) fn world(shared: bool, deadly: [Option<usize>; 2]) -> World {
    let mut world = schedules::schedule_world(None, None);
    let reference = shared.then(|| RewriteRef { name: "both".to_owned() });
    world.rollout.spec.rewrite_ref.clone_from(&reference);
    let pause = "{ duration: 5s }";
    let neighbour = ROLLOUT.replace(NAMES[0], NAMES[1]).replace(pause, "{ duration: 1s }");
    world.add_other_rollout(&neighbour, |rollout| rollout.spec.rewrite_ref = reference, IDS[1][0]);
    for (ids, deadly) in IDS.iter().zip(deadly) {
        world.behaviors.extend(deadly.map(|index| (id(ids[index]), AdapterBehavior::CrashesOnLoad)));
    }
    world
}

/// A person edits the entries of one side, and leaves the others where they are.
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

fn set_adapter(world: &mut World, wanted: Option<&str>) {
    let pattern = format!("{}-v*", world.rollout.metadata.name);
    let choice = match wanted {
        Some(id) => serde_json::json!({ "id": id }),
        None => serde_json::json!({ "follow": { "pattern": pattern } }),
    };
    world.edit_spec(|rollout| rollout.spec.adapter = serde_json::from_value(choice).unwrap());
}

/// Nobody looks after its ids from then on: what people do to them is their own affair.
fn delete_rollout(world: &mut World, ids: &[&str]) {
    world.delete_rollout();
    for name in ids {
        world.allow_loss(&id(name));
    }
}

pub(crate) fn apply_pair_action(pair: &mut TwoRollouts, side: usize, deed: &PairAction) {
    let (name, ids) = (NAMES[side], &IDS[side]);
    let mut world = pair.world();
    world.log_event(format!("{name}: {deed:?}"));
    let gone = world.with_rollout(name, |world| world.deleted);
    match deed {
        PairAction::Apply(WorldAction::Wait(ticks)) => {
            drop(world);
            (0..*ticks).for_each(|_| pair.tick());
        }
        PairAction::Apply(WorldAction::ListAdapters { exist, not_exist }) => {
            list_side(&mut world, side, *exist, *not_exist)
        }
        PairAction::Apply(_) | PairAction::SetAdapter(_) | PairAction::DeleteRollout if gone => {}
        PairAction::OperatorFault(fate) => {
            drop(world);
            apply_operator_fault(pair, fate);
        }
        PairAction::Apply(action) => world.with_rollout(name, |world| apply_to_rollout(world, action, ids)),
        PairAction::SetAdapter(wanted) => {
            world.with_rollout(name, |world| set_adapter(world, wanted.map(|index| ids[index])))
        }
        PairAction::DeleteRollout => world.with_rollout(name, |world| delete_rollout(world, ids)),
    }
}

fn apply_operator_fault(pair: &mut TwoRollouts, fate: &OperatorFault) {
    match *fate {
        OperatorFault::ToggleStopped(hand) => pair.toggle_stopped(hand),
        OperatorFault::Kill(hand) => pair.restart_operator(hand),
        OperatorFault::SetLags(hand, lags) => pair.set_lags(hand, lags.map(SignedDuration::from_millis)),
        OperatorFault::RunAlone(hand, turns) => (0..turns).for_each(|turn| {
            pair.step(hand, usize::from(turn % 2));
        }),
    }
}

/// Whether both are where only people, or nobody, has to do something.
fn both_at_rest(world: &mut World) -> [bool; 2] {
    let statuses = world.with_each_rollout(|world| world.status().message);
    // Servers wait for what serves, whoever it serves.
    let beyond_help = statuses.iter().any(|message| message.contains("list it again"))
        && world.servers.iter().all(|server| server.in_other_pool || !server.ready);
    let rest = world.with_each_rollout(|world| world.deleted || beyond_help || is_at_rest(world));
    [rest[0], rest[1]]
}

/// Everything is well again: both end, or only people can do something, and then nothing is written any more.
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
    for (name, rests) in NAMES.iter().zip(rest) {
        pair.world().with_rollout(name, |world| {
            world.check_end_state(rests);
            world.check_entries_finalized();
        });
    }
    check_idle_writes(pair);
}

/// Where nothing happens, hardly anything is written.
fn check_idle_writes(pair: &mut TwoRollouts) {
    let before = pair.world().versions;
    pair.run_for(SignedDuration::from_secs(30));
    let mut world = pair.world();
    let writes = world.versions - before;
    if writes > MAX_IDLE_WRITES {
        world.record_violation(Invariant::IdleWritesNothing, format!("{writes} writes in half a minute"));
    }
}

/// Only people's edits and deletions of a rewrite are taken for such.
fn check_overwrite_events(world: &mut World, deeds: &[(usize, PairAction)]) {
    let is_edit = |(_, deed): &&(usize, PairAction)| {
        matches!(deed, PairAction::Apply(WorldAction::SwapWeights | WorldAction::DeleteRewrite))
    };
    let edits = deeds.iter().filter(is_edit).count();
    world.with_each_rollout(|world| {
        let taken = world.events.iter().filter(|event| event.reason == reason::REWRITE_OVERWRITTEN).count();
        if taken > edits {
            let how = format!("{}: {taken} edits were seen, and people made {edits}", world.rollout.metadata.name);
            world.record_violation(Invariant::NoFalseOverwriteEvent, how);
        }
    });
}

/// A bad adapter of one hurts one server, whatever the other one writes; not where nobody governed it for a while.
fn check_crash_counts(world: &mut World, deeds: &[(usize, PairAction)], deadly: [Option<usize>; 2]) {
    for (side, deadly) in deadly.into_iter().enumerate() {
        let own = deeds.iter().filter(|(by, _)| *by == side).map(|(_, deed)| deed);
        let is_free = own.clone().any(|deed| matches!(deed, PairAction::DeleteRollout | PairAction::SetAdapter(_)));
        let actions: Vec<WorldAction> = own
            .filter_map(|deed| if let PairAction::Apply(action) = deed { Some(action.clone()) } else { None })
            .collect();
        if let Some(index) = deadly.filter(|_| !is_free) {
            world.check_crash_count(&id(IDS[side][index]), count_listings(&actions, index));
        }
    }
}

pub(crate) fn run_two_rollouts(
    world: World,
    operators: u64,
    seed: u64,
    deeds: &[(usize, PairAction)],
    deadly: [Option<usize>; 2],
) -> Result<(), TestCaseError> {
    let mut pair = TwoRollouts::new(world, operators, seed);
    for (side, deed) in deeds {
        apply_pair_action(&mut pair, *side, deed);
        pair.tick();
        pair.world().with_each_rollout(World::check_message);
        check_violations(&pair)?;
    }
    run_to_rest(&mut pair);
    if operators == 1 {
        // Who reads a rewrite late takes another operator's write for somebody's.
        check_overwrite_events(&mut pair.world(), deeds);
    }
    check_crash_counts(&mut pair.world(), deeds, deadly);
    check_violations(&pair)
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn what_happens_to_one_of_two_rollouts_harms_neither(
        deeds in prop::collection::vec(pair_action(), 1..50),
        deadly in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        seed: u64,
    ) {
        run_two_rollouts(world(false, deadly), 1, seed, &deeds, deadly)?;
    }

    #[test]
    fn what_happens_to_one_of_two_rollouts_that_share_a_rewrite_harms_neither(
        deeds in prop::collection::vec(pair_action(), 1..50),
        deadly in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        seed: u64,
    ) {
        run_two_rollouts(world(true, deadly), 1, seed, &deeds, deadly)?;
    }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn two_operators_at_once_harm_neither_of_two_rollouts(
        deeds in prop::collection::vec(prop_oneof![
            3 => pair_action(),
            2 => any_operator_fault().prop_map(|fate| (0, PairAction::OperatorFault(fate))),
        ], 1..60),
        deadly in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        shared: bool,
        seed: u64,
    ) {
        run_two_rollouts(world(shared, deadly), 2, seed, &deeds, deadly)?;
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
fn both_go_from_v1_to_v2_at_once_and_clean_up() {
    for shared in [false, true] {
        let mut pair = both_at_half(shared);
        assert_eq!(pair.world().rewrites.len(), if shared { 1 } else { 2 });
        set_intent(&pair, 0, IntentKind::Promote);
        set_intent(&pair, 1, IntentKind::Promote);
        for (name, ids) in NAMES.iter().zip(IDS) {
            let gone = |world: &World| world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone);
            pair.run_until(name, "v1 is gone", |world| {
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
fn one_is_aborted_and_the_other_stays_at_half() {
    for shared in [false, true] {
        let mut pair = both_at_half(shared);
        let others = pair.world().with_rollout(NAMES[1], |world| world.weights());
        set_intent(&pair, 0, IntentKind::Abort);
        pair.run_until(NAMES[0], "it is back", |world| world.phase() == Phase::RolledBack);
        pair.run_for(SignedDuration::from_secs(20));
        assert_eq!(pair.world().weights(), [(IDS[0][0].to_owned(), 100)], "{}", pair.log_text());
        assert_eq!(pair.world().with_rollout(NAMES[1], |world| world.weights()), others, "{}", pair.log_text());
        pair.check_violations();
    }
}

#[test]
fn one_leaves_with_its_entries_and_the_other_s_stay() {
    for shared in [false, true] {
        for side in 0..2 {
            let mut pair = both_at_half(shared);
            apply_pair_action(&mut pair, side, &PairAction::DeleteRollout);
            pair.run_until(NAMES[side], "it is gone", |world| world.deleted);
            pair.run_for(SignedDuration::from_secs(20));
            let key = pair.world().directives();
            let (ids, other) = (IDS[1 - side], NAMES[1 - side]);
            assert_eq!(key.managed, [ids[0].replace("v1", "v*")], "{}", pair.log_text());
            assert_eq!(key.serving, [id(ids[0]), id(ids[1])], "{}", pair.log_text());
            assert_eq!(pair.world().with_rollout(other, |world| world.phase()), Phase::Paused, "{}", pair.log_text());
            pair.check_violations();
        }
    }
}

/// Only its lost status said that v1 is its own: the neighbour wrote the key without it, and servers unloaded what had weight.
#[test]
fn what_serves_one_that_has_lost_its_status_is_not_let_go_by_the_other() {
    let mut pair = both_installed(false);
    apply_pair_action(&mut pair, 1, &PairAction::SetAdapter(Some(1)));
    list_side(&mut pair.world(), 1, 3, 0);
    pair.run_until(NAMES[1], "it is at half", |world| world.phase() == Phase::Paused && world.weights().len() == 2);
    list_side(&mut pair.world(), 1, 2, 1);
    pair.run_for(SignedDuration::from_secs(3));
    for (rewrite, _) in pair.world().rewrites.iter_mut().filter(|(rewrite, _)| rewrite.metadata.name == NAMES[1]) {
        // So it waits for a person.
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

/// Found with a rewrite for both.
#[test]
fn what_is_on_its_way_with_one_is_not_let_go_by_the_other_when_its_status_is_lost() {
    let deeds = [
        (0, PairAction::Apply(WorldAction::Wait(28))),
        (1, PairAction::SetAdapter(Some(1))),
        (0, PairAction::Apply(WorldAction::Wait(1))),
        (1, PairAction::Apply(WorldAction::ListAdapters { exist: 6, not_exist: 0 })),
        (0, PairAction::Apply(WorldAction::Wait(3))),
        (1, PairAction::Apply(WorldAction::DeleteStatus)),
    ];
    run_two_rollouts(world(true, [None; 2]), 1, 11_039_627_307_342_750_555, &deeds, [None; 2]).unwrap();
}
