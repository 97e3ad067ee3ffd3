//! Two Rollouts beside each other, of one pool and one adapters file, with a rewrite each or with one for both. What people
//! and failing calls do to either is no matter of the other's.

use crate::{
    guide::ROLLOUT,
    invariants::Invariant,
    pair::{NAMES, Pair},
    schedules::{
        self, Action, Drive, Fate, action, chosen, config, fate, happen, heal, is_at_rest, listings, nobody_is_hurt,
    },
    server::Temper,
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
const WRITES_AT_REST: u64 = 6;

/// What happens to one of the two, or around it.
#[derive(Debug, Clone)]
pub(crate) enum Deed {
    Act(Action),
    /// Exactly this adapter is wanted; none means the highest that is listed, as in the beginning.
    Want(Option<usize>),
    /// Somebody deletes the Rollout.
    Depart,
    /// What becomes of one of the operators, where there are two.
    Befall(Fate),
}

fn deed() -> impl Strategy<Value = (usize, Deed)> {
    let deed = prop_oneof![
        30 => action().prop_map(Deed::Act),
        2 => prop::option::of(0..4_usize).prop_map(Deed::Want),
        1 => Just(Deed::Depart),
    ];
    (0..2_usize, deed)
}

/// Both Rollouts, each with its first adapter listed, and one rewrite for both if it is `shared`.
pub(crate) fn world(shared: bool, deadly: [Option<usize>; 2]) -> World {
    let mut world = schedules::world(None, None);
    let reference = shared.then(|| RewriteRef { name: "both".to_owned() });
    world.rollout.spec.rewrite_ref.clone_from(&reference);
    let pause = "{ duration: 5s }";
    let neighbour = ROLLOUT.replace(NAMES[0], NAMES[1]).replace(pause, "{ duration: 1s }");
    world.add_neighbour(&neighbour, |rollout| rollout.spec.rewrite_ref = reference, IDS[1][0]);
    for (ids, deadly) in IDS.iter().zip(deadly) {
        world.bad.extend(deadly.map(|index| (id(ids[index]), Temper::Deadly)));
    }
    world
}

/// A person edits the entries of one side, and leaves the others where they are.
fn list(world: &mut World, side: usize, exist: u8, not_exist: u8) {
    let file = world.file();
    let [mut exists, mut not_exists] = [file.ensure_exist, file.ensure_not_exist].map(|entries| {
        let ids = entries.into_iter().map(|entry| entry.id.as_str().to_owned());
        ids.filter(|id| !id.starts_with(NAMES[side])).collect::<Vec<_>>()
    });
    exists.extend(chosen(&IDS[side], exist).into_iter().map(str::to_owned));
    not_exists.extend(chosen(&IDS[side], not_exist & !exist).into_iter().map(str::to_owned));
    let [exists, not_exists] = [&exists, &not_exists].map(|ids| ids.iter().map(String::as_str).collect::<Vec<_>>());
    world.list(&exists, &not_exists);
}

fn want(world: &mut World, wanted: Option<&str>) {
    let pattern = format!("{}-v*", world.rollout.metadata.name);
    let choice = match wanted {
        Some(id) => serde_json::json!({ "id": id }),
        None => serde_json::json!({ "follow": { "pattern": pattern } }),
    };
    world.edit_spec(|rollout| rollout.spec.adapter = serde_json::from_value(choice).unwrap());
}

/// Nobody looks after its ids from then on: what people do to them is their own affair.
fn depart(world: &mut World, ids: &[&str]) {
    world.delete();
    for name in ids {
        world.allow_loss(&id(name));
    }
}

pub(crate) fn act(pair: &mut Pair, side: usize, deed: &Deed) {
    let (name, ids) = (NAMES[side], &IDS[side]);
    let mut world = pair.world();
    world.note(format!("{name}: {deed:?}"));
    let gone = world.of(name, |world| world.gone);
    match deed {
        Deed::Act(Action::Wait(ticks)) => {
            drop(world);
            (0..*ticks).for_each(|_| pair.tick());
        }
        Deed::Act(Action::List { exist, not_exist }) => list(&mut world, side, *exist, *not_exist),
        Deed::Act(_) | Deed::Want(_) | Deed::Depart if gone => {}
        Deed::Befall(fate) => {
            drop(world);
            befall(pair, fate);
        }
        Deed::Act(action) => world.of(name, |world| happen(world, action, ids)),
        Deed::Want(wanted) => world.of(name, |world| want(world, wanted.map(|index| ids[index]))),
        Deed::Depart => world.of(name, |world| depart(world, ids)),
    }
}

fn befall(pair: &mut Pair, fate: &Fate) {
    match *fate {
        Fate::Stop(hand) => pair.stop(hand),
        Fate::Kill(hand) => pair.kill(hand),
        Fate::Lag(hand, lags) => pair.lag(hand, lags.map(SignedDuration::from_millis)),
        Fate::Alone(hand, turns) => (0..turns).for_each(|turn| {
            pair.move_on(hand, usize::from(turn % 2));
        }),
    }
}

/// Whether both are where only people, or nobody, has to do something.
fn both_rest(world: &mut World) -> [bool; 2] {
    let statuses = world.of_each(|world| world.status().message);
    // Servers wait for what serves, whoever it serves.
    let beyond_help = statuses.iter().any(|message| message.contains("list it again"))
        && world.servers.iter().all(|server| server.beside || !server.ready);
    let rest = world.of_each(|world| world.gone || beyond_help || is_at_rest(world));
    [rest[0], rest[1]]
}

/// Everything is well again: both end, or only people can do something, and then nothing is written any more.
fn come_to_rest(pair: &mut Pair) {
    pair.go_on();
    pair.world().of_each(heal);
    for _ in 0..3000 {
        pair.tick();
        if both_rest(&mut pair.world()) == [true; 2] {
            break;
        }
    }
    pair.run_for(SignedDuration::from_secs(15));
    let rest = both_rest(&mut pair.world());
    for (name, rests) in NAMES.iter().zip(rest) {
        pair.world().of(name, |world| {
            world.check_rest(rests);
            world.check_left();
        });
    }
    check_quiet(pair);
}

/// Where nothing happens, hardly anything is written.
fn check_quiet(pair: &mut Pair) {
    let before = pair.world().versions;
    pair.run_for(SignedDuration::from_secs(30));
    let mut world = pair.world();
    let writes = world.versions - before;
    if writes > WRITES_AT_REST {
        world.violate(Invariant::RestIsQuiet, format!("{writes} writes in half a minute"));
    }
}

/// Only people's edits and deletions of a rewrite are taken for such.
fn check_rivals(world: &mut World, deeds: &[(usize, Deed)]) {
    let is_edit = |(_, deed): &&(usize, Deed)| matches!(deed, Deed::Act(Action::Swap | Action::Delete));
    let edits = deeds.iter().filter(is_edit).count();
    world.of_each(|world| {
        let taken = world.events.iter().filter(|event| event.reason == reason::REWRITE_OVERWRITTEN).count();
        if taken > edits {
            let how = format!("{}: {taken} edits were seen, and people made {edits}", world.rollout.metadata.name);
            world.violate(Invariant::NobodyIsTakenForARival, how);
        }
    });
}

/// A bad adapter of one hurts one server, whatever the other one writes; not where nobody governed it for a while.
fn check_hurt(world: &mut World, deeds: &[(usize, Deed)], deadly: [Option<usize>; 2]) {
    for (side, deadly) in deadly.into_iter().enumerate() {
        let own = deeds.iter().filter(|(by, _)| *by == side).map(|(_, deed)| deed);
        let is_free = own.clone().any(|deed| matches!(deed, Deed::Depart | Deed::Want(_)));
        let actions: Vec<Action> =
            own.filter_map(|deed| if let Deed::Act(action) = deed { Some(action.clone()) } else { None }).collect();
        if let Some(index) = deadly.filter(|_| !is_free) {
            world.check_hurt(&id(IDS[side][index]), listings(&actions, index));
        }
    }
}

pub(crate) fn two_beside(
    world: World,
    operators: u64,
    seed: u64,
    deeds: &[(usize, Deed)],
    deadly: [Option<usize>; 2],
) -> Result<(), TestCaseError> {
    let mut pair = Pair::new(world, operators, seed);
    for (side, deed) in deeds {
        act(&mut pair, *side, deed);
        pair.tick();
        pair.world().of_each(World::check_words);
        nobody_is_hurt(&pair)?;
    }
    come_to_rest(&mut pair);
    if operators == 1 {
        // Who reads a rewrite late takes another operator's write for somebody's.
        check_rivals(&mut pair.world(), deeds);
    }
    check_hurt(&mut pair.world(), deeds, deadly);
    nobody_is_hurt(&pair)
}

proptest! {
    #![proptest_config(config(8))]

    #[test]
    fn what_happens_to_one_of_two_rollouts_harms_neither(
        deeds in prop::collection::vec(deed(), 1..50),
        deadly in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        seed: u64,
    ) {
        two_beside(world(false, deadly), 1, seed, &deeds, deadly)?;
    }

    #[test]
    fn what_happens_to_one_of_two_rollouts_that_share_a_rewrite_harms_neither(
        deeds in prop::collection::vec(deed(), 1..50),
        deadly in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        seed: u64,
    ) {
        two_beside(world(true, deadly), 1, seed, &deeds, deadly)?;
    }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn two_operators_at_once_harm_neither_of_two_rollouts(
        deeds in prop::collection::vec(prop_oneof![
            3 => deed(),
            2 => fate().prop_map(|fate| (0, Deed::Befall(fate))),
        ], 1..60),
        deadly in [prop::option::of(1..4_usize), prop::option::of(1..4_usize)],
        shared: bool,
        seed: u64,
    ) {
        two_beside(world(shared, deadly), 2, seed, &deeds, deadly)?;
    }
}

fn both_installed(shared: bool) -> Pair {
    let mut pair = Pair::new(world(shared, [None; 2]), 1, 7);
    for (name, ids) in NAMES.iter().zip(IDS) {
        pair.until(name, "it is installed", |world| world.phase() == Phase::Succeeded);
        assert_eq!(pair.world().of(name, |world| world.weights()), [(ids[0].to_owned(), 100)], "{}", pair.story());
    }
    pair
}

fn both_at_half(shared: bool) -> Pair {
    let mut pair = both_installed(shared);
    for side in 0..2 {
        list(&mut pair.world(), side, 3, 0);
    }
    for (name, ids) in NAMES.iter().zip(IDS) {
        let half = ids[..2].iter().map(|id| ((*id).to_owned(), 50)).collect::<Vec<_>>();
        pair.until(name, "it is at half", |world| world.phase() == Phase::Paused && world.weights() == half);
    }
    pair
}

fn intend(pair: &Pair, side: usize, verb: IntentKind) {
    pair.world().of(NAMES[side], |world| world.intend(verb));
}

#[test]
fn both_go_from_v1_to_v2_at_once_and_clean_up() {
    for shared in [false, true] {
        let mut pair = both_at_half(shared);
        assert_eq!(pair.world().rewrites.len(), if shared { 1 } else { 2 });
        intend(&pair, 0, IntentKind::Promote);
        intend(&pair, 1, IntentKind::Promote);
        for (name, ids) in NAMES.iter().zip(IDS) {
            let gone = |world: &World| world.status().retired.iter().all(|entry| entry.state == RetirementState::Gone);
            pair.until(name, "v1 is gone", |world| {
                gone(world) && world.phase() == Phase::Succeeded && world.holders(&id(ids[0])) == 0
            });
        }
        pair.run_for(SignedDuration::from_secs(15));
        check_quiet(&mut pair);
        check_rivals(&mut pair.world(), &[]);
        pair.check();
    }
}

#[test]
fn one_is_aborted_and_the_other_stays_at_half() {
    for shared in [false, true] {
        let mut pair = both_at_half(shared);
        let others = pair.world().of(NAMES[1], |world| world.weights());
        intend(&pair, 0, IntentKind::Abort);
        pair.until(NAMES[0], "it is back", |world| world.phase() == Phase::RolledBack);
        pair.run_for(SignedDuration::from_secs(20));
        assert_eq!(pair.world().weights(), [(IDS[0][0].to_owned(), 100)], "{}", pair.story());
        assert_eq!(pair.world().of(NAMES[1], |world| world.weights()), others, "{}", pair.story());
        pair.check();
    }
}

#[test]
fn one_leaves_with_its_entries_and_the_other_s_stay() {
    for shared in [false, true] {
        for side in 0..2 {
            let mut pair = both_at_half(shared);
            act(&mut pair, side, &Deed::Depart);
            pair.until(NAMES[side], "it is gone", |world| world.gone);
            pair.run_for(SignedDuration::from_secs(20));
            let key = pair.world().key();
            let (ids, other) = (IDS[1 - side], NAMES[1 - side]);
            assert_eq!(key.managed, [ids[0].replace("v1", "v*")], "{}", pair.story());
            assert_eq!(key.serving, [id(ids[0]), id(ids[1])], "{}", pair.story());
            assert_eq!(pair.world().of(other, |world| world.phase()), Phase::Paused, "{}", pair.story());
            pair.check();
        }
    }
}

/// Only its lost status said that v1 is its own: the neighbour wrote the key without it, and servers unloaded what had weight.
#[test]
fn what_serves_one_that_has_lost_its_status_is_not_let_go_by_the_other() {
    let mut pair = both_installed(false);
    act(&mut pair, 1, &Deed::Want(Some(1)));
    list(&mut pair.world(), 1, 3, 0);
    pair.until(NAMES[1], "it is at half", |world| world.phase() == Phase::Paused && world.weights().len() == 2);
    list(&mut pair.world(), 1, 2, 1);
    pair.run_for(SignedDuration::from_secs(3));
    for (rewrite, _) in pair.world().rewrites.iter_mut().filter(|(rewrite, _)| rewrite.metadata.name == NAMES[1]) {
        // So it waits for a person.
        rewrite.metadata.annotations.remove(STABLE_ANNOTATION);
    }
    pair.world().of(NAMES[1], World::lose_status);
    pair.run_for(SignedDuration::from_secs(5));
    let now = pair.world().now;
    pair.world().servers[1].die(now, SignedDuration::from_secs(1));
    pair.run_for(SignedDuration::from_secs(20));
    assert!(pair.world().key().serving.contains(&id(IDS[1][0])), "{}", pair.story());
    pair.check();
}

/// Found with a rewrite for both.
#[test]
fn what_is_on_its_way_with_one_is_not_let_go_by_the_other_when_its_status_is_lost() {
    let deeds = [
        (0, Deed::Act(Action::Wait(28))),
        (1, Deed::Want(Some(1))),
        (0, Deed::Act(Action::Wait(1))),
        (1, Deed::Act(Action::List { exist: 6, not_exist: 0 })),
        (0, Deed::Act(Action::Wait(3))),
        (1, Deed::Act(Action::LoseStatus)),
    ];
    two_beside(world(true, [None; 2]), 1, 11_039_627_307_342_750_555, &deeds, [None; 2]).unwrap();
}
