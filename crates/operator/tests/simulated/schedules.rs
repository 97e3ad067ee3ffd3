//! Random schedules: people, deaths, lags and failing calls in any order. Whatever happens, what must never happen
//! does not, every state names what it waits for, and when everything is well again the rollout ends.

use crate::{
    driver::Run,
    guide::ROLLOUT,
    server::Temper,
    world::{Fault, World, id},
};
use jiff::SignedDuration;
use proptest::prelude::*;
use rollora_api::{
    condition::Condition,
    operator_key::OperatorKey,
    rollout::{Verb, status::Phase},
};

const IDS: [&str; 4] = ["small-v1", "small-v2", "small-v3", "small-v4"];

#[derive(Debug, Clone)]
enum Action {
    Wait(u8),
    /// One bit for each id.
    List {
        exist: u8,
        not_exist: u8,
    },
    Intend(Verb),
    Die {
        server: usize,
        seconds: i64,
    },
    Unreachable {
        server: usize,
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
    FleetHangs,
    Heal,
}

fn verb() -> impl Strategy<Value = Verb> {
    prop_oneof![4 => Just(Verb::Promote), 2 => Just(Verb::PromoteFull), 2 => Just(Verb::Abort), 1 => Just(Verb::Retry)]
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

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        8 => (1..60_u8).prop_map(Action::Wait),
        3 => (0..16_u8, 0..16_u8).prop_map(|(exist, not_exist)| Action::List { exist, not_exist }),
        4 => verb().prop_map(Action::Intend),
        1 => (0..3_usize, 1..20_i64).prop_map(|(server, seconds)| Action::Die { server, seconds }),
        1 => (0..3_usize).prop_map(|server| Action::Unreachable { server }),
        1 => (0..3000_i64).prop_map(|millis| Action::RouterLag { millis }),
        1 => Just(Action::RouterUnreachable),
        3 => prop::collection::vec(fault(), 1..12).prop_map(Action::Fail),
        1 => Just(Action::Pause),
        1 => Just(Action::Swap),
        1 => Just(Action::Delete),
        1 => Just(Action::LoseStatus),
        1 => (0..4_usize).prop_map(Action::Use),
        1 => Just(Action::FleetHangs),
        2 => Just(Action::Heal),
    ]
}

fn heal(world: &mut World) {
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

fn chosen(bits: u8) -> Vec<&'static str> {
    (0..IDS.len()).filter(|index| bits & (1 << index) != 0).map(|index| IDS[index]).collect()
}

fn act(run: &mut Run, action: &Action) {
    let mut world = run.world();
    world.note(format!("{action:?}"));
    let now = world.now;
    match action {
        Action::Wait(ticks) => {
            drop(world);
            for _ in 0..*ticks {
                run.tick();
            }
        }
        Action::List { exist, not_exist } => world.list(&chosen(*exist), &chosen(*not_exist & !exist)),
        Action::Intend(verb) => world.intend(*verb),
        Action::Die { server, seconds } => world.servers[*server].die(now, SignedDuration::from_secs(*seconds)),
        Action::Unreachable { server } => world.servers[*server].reachable ^= true,
        Action::RouterLag { millis } => world.routers[0].lag = SignedDuration::from_millis(*millis),
        Action::RouterUnreachable => world.routers[0].reachable ^= true,
        Action::Fail(faults) => world.faults.extend(faults),
        Action::Pause => world.edit_spec(|rollout| rollout.spec.paused ^= true),
        Action::Swap if world.rewrites.is_empty() => {}
        Action::Swap => world.edit_rewrite(|rewrite| {
            let targets = &mut rewrite.spec.rules[0].targets;
            let weights: Vec<_> = targets.iter().rev().map(|target| target.weight).collect();
            targets.iter_mut().zip(weights).for_each(|(target, weight)| target.weight = weight);
        }),
        Action::Delete => {
            world.rewrites.clear();
            world.rewrites_changed();
        }
        Action::LoseStatus => world.lose_status(),
        Action::Use(index) => {
            let key = OperatorKey::parse(world.adapters.key_text.as_deref().unwrap()).unwrap();
            let used = id(IDS[*index]);
            if key.serving.contains(&used) {
                world.use_directly(&used);
            }
        }
        Action::FleetHangs => world.fleet_hangs = true,
        Action::Heal => heal(&mut world),
    }
}

/// How often an id was listed that was not before.
fn listings(actions: &[Action], index: usize) -> usize {
    let lists = actions.iter().filter_map(|action| match action {
        Action::List { exist, .. } => Some(exist & (1 << index) != 0),
        _ => None,
    });
    lists.fold((false, 0), |(was, count), is| (is, count + usize::from(is && !was))).1
}

/// Whether the rollout is where only a person, or nobody, has to do something.
fn is_at_rest(world: &World) -> bool {
    let status = world.status();
    let unlisted = |condition: &Condition| condition.kind == "Progressing" && condition.reason == "NotListed";
    // Servers that restart wait for what serves, and cannot load it while nobody lists it.
    let beyond_help = status.message.contains("list it again") && world.servers.iter().all(|server| !server.ready);
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

fn names_what_it_waits_for(world: &World) -> Result<(), TestCaseError> {
    let status = world.status();
    prop_assert!(world.rollout.status.is_none() || !status.message.is_empty(), "{status:#?}");
    Ok(())
}

fn nobody_is_hurt(run: &Run) -> Result<(), TestCaseError> {
    let broken = run.world().broken.clone();
    prop_assert!(broken.is_empty(), "{broken:#?}\n{}", run.story());
    Ok(())
}

/// Each schedule is minutes of virtual time: a short run tries few, a long one as many as it is told.
fn config() -> ProptestConfig {
    let told = std::env::var("PROPTEST_CASES").is_ok();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if told { config } else { ProptestConfig { cases: 48, ..config } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn whatever_happens_nobody_is_hurt_and_the_rollout_ends(
        actions in prop::collection::vec(action(), 1..40),
        deadly in prop::option::of(1..4_usize),
        broken in prop::option::of(1..4_usize),
    ) {
        let rollout = ROLLOUT.replace("{ duration: 5s }", "{ duration: 1s }");
        let mut world = World::new(&rollout, 3, &IDS[..1]);
        world.bad.extend(broken.map(|index| (id(IDS[index]), Temper::Broken)));
        world.bad.extend(deadly.map(|index| (id(IDS[index]), Temper::Deadly)));
        let mut run = Run::new(world);
        for action in &actions {
            act(&mut run, action);
            run.tick();
            names_what_it_waits_for(&run.world())?;
            nobody_is_hurt(&run)?;
        }
        heal(&mut run.world());
        for _ in 0..3000 {
            run.tick();
            if is_at_rest(&run.world()) {
                break;
            }
        }
        run.run_for(SignedDuration::from_secs(10));
        nobody_is_hurt(&run)?;
        let status = run.world().status();
        let rests = is_at_rest(&run.world());
        prop_assert!(rests, "{status:#?}\n{}", run.story());
        if let Some(index) = deadly {
            // `retry` hurts the same server again, and no other. Only who takes the entry out and lists it once more asks
            // for another trial.
            let listings = listings(&actions, index);
            let hurt = run.world().servers.iter().filter(|server| server.deaths.contains(&id(IDS[index]))).count();
            prop_assert!(hurt <= listings, "{hurt} servers died\n{}", run.story());
        }
    }
}
