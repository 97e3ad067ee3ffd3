//! Random schedules: people, deaths, lags and failing calls in any order. Whatever happens, what must never happen
//! does not, every state names what it waits for, and when everything is well again the rollout ends.

use crate::{
    driver::Run,
    duo::Duo,
    guide::ROLLOUT,
    neighbour::is_for,
    server::Temper,
    world::{Fault, World, id},
};
use jiff::SignedDuration;
use proptest::prelude::*;
use rollora_api::{
    condition::Condition,
    rollout::{IntentKind, status::Phase},
};
use std::sync::MutexGuard;

/// Three of the pool, and one beside it.
const SERVERS: usize = 4;
pub(crate) const IDS: [&str; 4] = ["small-v1", "small-v2", "small-v3", "small-v4"];

#[derive(Debug, Clone)]
pub(crate) enum Action {
    Wait(u8),
    /// One bit for each id.
    List {
        exist: u8,
        not_exist: u8,
    },
    Intend(IntentKind),
    Die {
        server: usize,
        seconds: i64,
    },
    Unreachable {
        server: usize,
    },
    /// Not Ready for a moment, with what it has.
    Blip {
        server: usize,
        millis: i64,
        silent: bool,
    },
    RouterLag {
        millis: i64,
    },
    RouterUnreachable,
    Fail(Vec<Fault>),
    Pause,
    Swap,
    Delete,
    LoseStatus,
    Use(usize),
    UseBeside(usize),
    FleetHangs,
    Heal,
}

fn verb() -> impl Strategy<Value = IntentKind> {
    prop_oneof![4 => Just(IntentKind::Promote), 2 => Just(IntentKind::PromoteFull), 2 => Just(IntentKind::Abort), 1 => Just(IntentKind::Retry)]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Unavailable),
        1 => Just(Fault::Hang),
        1 => Just(Fault::LostAnswer),
        1 => Just(Fault::CrashBefore),
        1 => Just(Fault::CrashAfter),
    ]
}

pub(crate) fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (1..60_u8).prop_map(Action::Wait),
        3 => (0..16_u8, 0..16_u8).prop_map(|(exist, not_exist)| Action::List { exist, not_exist }),
        4 => verb().prop_map(Action::Intend),
        1 => (0..SERVERS, 1..20_i64).prop_map(|(server, seconds)| Action::Die { server, seconds }),
        1 => (0..SERVERS).prop_map(|server| Action::Unreachable { server }),
        2 => (0..SERVERS, 1..5000_i64, any::<bool>())
            .prop_map(|(server, millis, silent)| Action::Blip { server, millis, silent }),
        1 => (0..3000_i64).prop_map(|millis| Action::RouterLag { millis }),
        1 => Just(Action::RouterUnreachable),
        3 => prop::collection::vec(fault(), 1..12).prop_map(Action::Fail),
        1 => Just(Action::Pause),
        1 => Just(Action::Swap),
        1 => Just(Action::Delete),
        1 => Just(Action::LoseStatus),
        1 => (0..4_usize).prop_map(Action::Use),
        1 => (0..4_usize).prop_map(Action::UseBeside),
        1 => Just(Action::FleetHangs),
        2 => Just(Action::Heal),
    ]
}

pub(crate) fn heal(world: &mut World) {
    world.faults.clear();
    world.fleet_hangs = false;
    for server in &mut world.servers {
        server.reachable = true;
    }
    for router in &mut world.routers {
        router.reachable = true;
        router.lag = SignedDuration::ZERO;
    }
    if world.rollout.spec.paused {
        world.edit_spec(|rollout| rollout.spec.paused = false);
    }
    world.changed = true;
}

pub(crate) fn chosen(ids: &[&'static str; 4], bits: u8) -> Vec<&'static str> {
    (0..ids.len()).filter(|index| bits & (1 << index) != 0).map(|index| ids[index]).collect()
}

/// One operator, or two at once.
pub(crate) trait Drive {
    fn world(&self) -> MutexGuard<'_, World>;
    fn tick(&mut self);
    fn story(&self) -> String;
}

impl Drive for Run {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    fn tick(&mut self) {
        Self::tick(self);
    }

    fn story(&self) -> String {
        Self::story(self)
    }
}

impl Drive for Duo {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    fn tick(&mut self) {
        Self::tick(self);
    }

    fn story(&self) -> String {
        Self::story(self)
    }
}

pub(crate) fn act<D: Drive>(run: &mut D, action: &Action) {
    run.world().note(format!("{action:?}"));
    match action {
        Action::Wait(ticks) => (0..*ticks).for_each(|_| run.tick()),
        action => happen(&mut run.world(), action, &IDS),
    }
}

/// What happens to the Rollout of these ids, or around it.
pub(crate) fn happen(world: &mut World, action: &Action, ids: &[&'static str; 4]) {
    let now = world.now;
    match action {
        Action::List { exist, not_exist } => world.list(&chosen(ids, *exist), &chosen(ids, *not_exist & !exist)),
        Action::Intend(verb) => world.intend(*verb),
        Action::Die { server, seconds } => world.servers[*server].die(now, SignedDuration::from_secs(*seconds)),
        Action::Blip { server, millis, silent } => {
            world.servers[*server].blip(now + SignedDuration::from_millis(*millis), *silent);
        }
        Action::Unreachable { server } => world.servers[*server].reachable ^= true,
        Action::RouterLag { millis } => world.routers[0].lag = SignedDuration::from_millis(*millis),
        Action::RouterUnreachable => world.routers[0].reachable ^= true,
        Action::Fail(faults) => world.faults.extend(faults),
        Action::Pause => world.edit_spec(|rollout| rollout.spec.paused ^= true),
        Action::Swap if world.own_rewrite().is_none() => {}
        Action::Swap => swap(world),
        Action::Delete => {
            if let Some(own) = world.own_rewrite() {
                world.rewrites.remove(own);
            }
            world.rewrites_changed();
        }
        Action::LoseStatus => world.lose_status(),
        Action::Use(index) if is_serving(world, ids[*index]) => world.use_directly(&id(ids[*index])),
        Action::UseBeside(index) if is_serving(world, ids[*index]) => world.use_beside(&id(ids[*index])),
        // Whoever waits does not come here.
        Action::Wait(_) | Action::Use(_) | Action::UseBeside(_) => {}
        Action::FleetHangs => world.fleet_hangs = true,
        Action::Heal => heal(world),
    }
}

/// Somebody gives to each target what another one had.
fn swap(world: &mut World) {
    let model = world.rollout.spec.model.clone();
    world.edit_rewrite(|rewrite| {
        let Some(rule) = rewrite.spec.rules.iter_mut().find(|rule| is_for(&model, rule)) else { return };
        let weights: Vec<_> = rule.targets.iter().rev().map(|target| target.weight).collect();
        rule.targets.iter_mut().zip(weights).for_each(|(target, weight)| target.weight = weight);
    });
}

/// Whether the operator has not let go of it yet: a use after that comes too late to be heard of.
fn is_serving(world: &World, name: &str) -> bool {
    world.key().serving.contains(&id(name))
}

/// How often an id was listed that was not before.
pub(crate) fn listings(actions: &[Action], index: usize) -> usize {
    let lists = actions.iter().filter_map(|action| match action {
        Action::List { exist, .. } => Some(exist & (1 << index) != 0),
        _ => None,
    });
    lists.fold((false, 0), |(was, count), is| (is, count + usize::from(is && !was))).1
}

/// Whether the rollout is where only a person, or nobody, has to do something.
pub(crate) fn is_at_rest(world: &World) -> bool {
    let status = world.status();
    let unlisted = |condition: &Condition| condition.type_ == "Progressing" && condition.reason == "NotListed";
    // Servers that restart wait for what serves, and cannot load it while nobody lists it.
    let beyond_help =
        status.message.contains("list it again") && world.servers.iter().all(|server| server.beside || !server.ready);
    match status.phase {
        _ if beyond_help || status.conditions.iter().any(unlisted) => true,
        Phase::Succeeded | Phase::RolledBack => true,
        Phase::Paused => status.message.contains("waits for promotion"),
        Phase::Held => status.message.contains("was rejected"),
        Phase::Invalid => status.message.contains("write the annotation"),
        Phase::Pending => status.message.contains("no id under ensureExist matches"),
        _ => false,
    }
}

pub(crate) fn nobody_is_hurt<D: Drive>(run: &D) -> Result<(), TestCaseError> {
    let broken = run.world().broken.clone();
    prop_assert!(broken.is_empty(), "{broken:#?}\n{}", run.story());
    Ok(())
}

/// Each schedule is minutes of virtual time: a short run tries few, one with `--long` about a million ticks of them, and
/// `PROPTEST_CASES` as many as it says.
pub(crate) fn config(few: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match (std::env::var_os("PROPTEST_CASES"), is_long()) {
        (Some(_), _) => config,
        (None, true) => ProptestConfig { cases: 2000, ..config },
        (None, false) => ProptestConfig { cases: few, ..config },
    }
}

/// Whether this is a run with the long schedules.
pub(crate) fn is_long() -> bool {
    std::env::var_os("ROLLORA_LONG").is_some()
}

pub(crate) fn world(deadly: Option<usize>, broken: Option<usize>) -> World {
    let rollout = ROLLOUT.replace("{ duration: 5s }", "{ duration: 1s }");
    let mut world = World::new(&rollout, SERVERS - 1, &IDS[..1]);
    world.share();
    world.bad.extend(broken.map(|index| (id(IDS[index]), Temper::Broken)));
    world.bad.extend(deadly.map(|index| (id(IDS[index]), Temper::Deadly)));
    world
}

/// The same where one of the adapters, if it is good otherwise, ends servers that have to read it again.
fn rotting(mut world: World, rotten: Option<usize>) -> World {
    if let Some(index) = rotten {
        world.bad.entry(id(IDS[index])).or_insert(Temper::Rotten);
    }
    world
}

/// Everything is well again: the rollout ends, or only a person can do something.
pub(crate) fn come_to_rest<D: Drive>(run: &mut D, actions: &[Action], deadly: Option<usize>) {
    heal(&mut run.world());
    for _ in 0..3000 {
        run.tick();
        if is_at_rest(&run.world()) {
            break;
        }
    }
    for _ in 0..100 {
        run.tick();
    }
    let rests = is_at_rest(&run.world());
    run.world().check_rest(rests);
    if let Some(index) = deadly {
        // `retry` hurts the same server again, and no other. Only who takes the entry out and lists it once more asks for
        // another trial.
        let listings = listings(actions, index);
        run.world().check_hurt(&id(IDS[index]), listings);
    }
}

/// What becomes of one of two operators.
#[derive(Debug, Clone)]
pub(crate) enum Fate {
    /// It stops where it is, or goes on.
    Stop(usize),
    /// It is killed, and another takes its place.
    Kill(usize),
    /// It hears of documents so late.
    Lag(usize, [i64; 3]),
    /// It is moved alone, for so many turns.
    Alone(usize, u8),
}

pub(crate) fn fate() -> impl Strategy<Value = Fate> {
    let side = || 0..2_usize;
    prop_oneof![
        5 => side().prop_map(Fate::Stop),
        1 => side().prop_map(Fate::Kill),
        2 => (side(), [0..3000_i64, 0..3000, 0..3000]).prop_map(|(side, lags)| Fate::Lag(side, lags)),
        4 => (side(), 1..40_u8).prop_map(|(side, turns)| Fate::Alone(side, turns)),
    ]
}

fn befall(duo: &mut Duo, fate: &Fate) {
    duo.world().note(format!("{fate:?}"));
    match *fate {
        Fate::Stop(side) => {
            let stopped = duo.is_stopped(side);
            duo.stop(side, !stopped);
        }
        Fate::Kill(side) => duo.kill(side),
        Fate::Lag(side, lags) => duo.lag(side, lags.map(SignedDuration::from_millis)),
        Fate::Alone(side, turns) => drop((0..turns).map(|_| duo.move_on(side)).collect::<Vec<_>>()),
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn whatever_happens_nobody_is_hurt_and_the_rollout_ends(
        actions in prop::collection::vec(action(), 1..40),
        deadly in prop::option::of(1..4_usize),
        broken in prop::option::of(1..4_usize),
        rotten in prop::option::of(0..4_usize),
    ) {
        one_alone(rotting(world(deadly, broken), rotten), &actions, deadly)?;
    }
}

pub(crate) fn one_alone(world: World, actions: &[Action], deadly: Option<usize>) -> Result<(), TestCaseError> {
    let mut run = Run::new(world);
    for action in actions {
        act(&mut run, action);
        run.tick();
        run.world().check_words();
        nobody_is_hurt(&run)?;
    }
    come_to_rest(&mut run, actions, deadly);
    nobody_is_hurt(&run)
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn two_operators_at_once_hurt_nobody_either(
        actions in prop::collection::vec(prop_oneof![
            3 => action().prop_map(Ok),
            4 => fate().prop_map(Err),
        ], 1..60),
        deadly in prop::option::of(1..4_usize),
        broken in prop::option::of(1..4_usize),
        rotten in prop::option::of(0..4_usize),
        seed: u64,
    ) {
        two_at_once(rotting(world(deadly, broken), rotten), seed, &actions, deadly)?;
    }
}

pub(crate) fn two_at_once(
    world: World,
    seed: u64,
    actions: &[Result<Action, Fate>],
    deadly: Option<usize>,
) -> Result<(), TestCaseError> {
    let mut duo = Duo::new(world, seed);
    for action in actions {
        match action {
            Ok(action) => {
                act(&mut duo, action);
                duo.tick();
            }
            Err(fate) => befall(&mut duo, fate),
        }
        duo.world().check_words();
        nobody_is_hurt(&duo)?;
    }
    for side in 0..2 {
        duo.go_on(side);
        duo.lag(side, [SignedDuration::ZERO; 3]);
    }
    let actions: Vec<Action> = actions.iter().filter_map(|action| action.clone().ok()).collect();
    come_to_rest(&mut duo, &actions, deadly);
    nobody_is_hurt(&duo)
}
