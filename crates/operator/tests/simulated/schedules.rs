//! Random schedules: actions of people, crashes, lags and failing calls in any order. The invariants hold at all times,
//! every state names what it waits for, and after all faults are healed the rollout comes to rest.

use crate::{
    driver::SimRun,
    guide::ROLLOUT,
    other_rollout::matches_model,
    server::AdapterBehavior,
    two_operators_driver::TwoOperators,
    world::{Fault, World, id},
};
use jiff::SignedDuration;
use proptest::prelude::*;
use rollora_api::{
    condition::Condition,
    rollout::{IntentKind, status::Phase},
};
use std::sync::MutexGuard;

/// Three servers of the pool, and one of another pool.
const SERVERS: usize = 4;
pub(crate) const IDS: [&str; 4] = ["small-v1", "small-v2", "small-v3", "small-v4"];

#[derive(Debug, Clone)]
pub(crate) enum WorldAction {
    Wait(u8),
    /// One bit per id.
    ListAdapters {
        exist: u8,
        not_exist: u8,
    },
    SetIntent(IntentKind),
    CrashServer {
        server: usize,
        seconds: i64,
    },
    ToggleServerReachable {
        server: usize,
    },
    /// The server is not Ready for this time, but keeps its adapters.
    FailProbe {
        server: usize,
        millis: i64,
        silent: bool,
    },
    SetRouterLag {
        millis: i64,
    },
    ToggleRouterReachable,
    InjectFaults(Vec<Fault>),
    TogglePaused,
    SwapWeights,
    DeleteRewrite,
    DeleteStatus,
    UseAdapter(usize),
    UseInOtherPool(usize),
    HangFleet,
    Heal,
}

fn any_intent() -> impl Strategy<Value = IntentKind> {
    prop_oneof![
        4 => Just(IntentKind::Promote),
        2 => Just(IntentKind::PromoteFull),
        2 => Just(IntentKind::Abort),
        1 => Just(IntentKind::Retry),
    ]
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        1 => Just(Fault::Unavailable),
        1 => Just(Fault::Hang),
        1 => Just(Fault::LostResponse),
        1 => Just(Fault::CrashBefore),
        1 => Just(Fault::CrashAfter),
    ]
}

pub(crate) fn any_action() -> impl Strategy<Value = WorldAction> {
    prop_oneof![
        8 => (1..60_u8).prop_map(WorldAction::Wait),
        3 => (0..16_u8, 0..16_u8).prop_map(|(exist, not_exist)| WorldAction::ListAdapters { exist, not_exist }),
        4 => any_intent().prop_map(WorldAction::SetIntent),
        1 => (0..SERVERS, 1..20_i64).prop_map(|(server, seconds)| WorldAction::CrashServer { server, seconds }),
        1 => (0..SERVERS).prop_map(|server| WorldAction::ToggleServerReachable { server }),
        2 => (0..SERVERS, 1..5000_i64, any::<bool>())
            .prop_map(|(server, millis, silent)| WorldAction::FailProbe { server, millis, silent }),
        1 => (0..3000_i64).prop_map(|millis| WorldAction::SetRouterLag { millis }),
        1 => Just(WorldAction::ToggleRouterReachable),
        3 => prop::collection::vec(any_fault(), 1..12).prop_map(WorldAction::InjectFaults),
        1 => Just(WorldAction::TogglePaused),
        1 => Just(WorldAction::SwapWeights),
        1 => Just(WorldAction::DeleteRewrite),
        1 => Just(WorldAction::DeleteStatus),
        1 => (0..4_usize).prop_map(WorldAction::UseAdapter),
        1 => (0..4_usize).prop_map(WorldAction::UseInOtherPool),
        1 => Just(WorldAction::HangFleet),
        2 => Just(WorldAction::Heal),
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

pub(crate) fn select_ids(ids: &[&'static str; 4], bits: u8) -> Vec<&'static str> {
    (0..ids.len()).filter(|index| bits & (1 << index) != 0).map(|index| ids[index]).collect()
}

/// Driver of one operator, or of two concurrent ones.
pub(crate) trait SimDriver {
    fn world(&self) -> MutexGuard<'_, World>;
    fn tick(&mut self);
    fn log_text(&self) -> String;
}

impl SimDriver for SimRun {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    fn tick(&mut self) {
        Self::tick(self);
    }

    fn log_text(&self) -> String {
        Self::log_text(self)
    }
}

impl SimDriver for TwoOperators {
    fn world(&self) -> MutexGuard<'_, World> {
        Self::world(self)
    }

    fn tick(&mut self) {
        Self::tick(self);
    }

    fn log_text(&self) -> String {
        Self::log_text(self)
    }
}

pub(crate) fn apply_action<D: SimDriver>(run: &mut D, action: &WorldAction) {
    run.world().log_event(format!("{action:?}"));
    match action {
        WorldAction::Wait(ticks) => (0..*ticks).for_each(|_| run.tick()),
        action => apply_to_rollout(&mut run.world(), action, &IDS),
    }
}

/// Applies an action to the Rollout of these ids, or to its surroundings.
pub(crate) fn apply_to_rollout(world: &mut World, action: &WorldAction, ids: &[&'static str; 4]) {
    let now = world.now;
    match action {
        WorldAction::ListAdapters { exist, not_exist } => {
            world.list_adapters(&select_ids(ids, *exist), &select_ids(ids, *not_exist & !exist));
        }
        WorldAction::SetIntent(verb) => world.set_intent(*verb),
        WorldAction::CrashServer { server, seconds } => {
            world.servers[*server].crash(now, SignedDuration::from_secs(*seconds));
        }
        WorldAction::FailProbe { server, millis, silent } => {
            world.servers[*server].fail_probe(now + SignedDuration::from_millis(*millis), *silent);
        }
        WorldAction::ToggleServerReachable { server } => world.servers[*server].reachable ^= true,
        WorldAction::SetRouterLag { millis } => world.routers[0].lag = SignedDuration::from_millis(*millis),
        WorldAction::ToggleRouterReachable => world.routers[0].reachable ^= true,
        WorldAction::InjectFaults(faults) => world.faults.extend(faults),
        WorldAction::TogglePaused => world.edit_spec(|rollout| rollout.spec.paused ^= true),
        WorldAction::SwapWeights if world.rewrite_index().is_none() => {}
        WorldAction::SwapWeights => swap_weights(world),
        WorldAction::DeleteRewrite => {
            if let Some(own) = world.rewrite_index() {
                world.rewrites.remove(own);
            }
            world.rewrites_changed();
        }
        WorldAction::DeleteStatus => world.delete_status(),
        WorldAction::UseAdapter(index) if is_serving(world, ids[*index]) => world.use_on_all_servers(&id(ids[*index])),
        WorldAction::UseInOtherPool(index) if is_serving(world, ids[*index]) => {
            world.use_in_other_pool(&id(ids[*index]));
        }
        // Waiting is done by the driver.
        WorldAction::Wait(_) | WorldAction::UseAdapter(_) | WorldAction::UseInOtherPool(_) => {}
        WorldAction::HangFleet => world.fleet_hangs = true,
        WorldAction::Heal => heal(world),
    }
}

/// Another writer reverses the order of the weights.
fn swap_weights(world: &mut World) {
    let model = world.rollout.spec.model.clone();
    world.edit_rewrite(|rewrite| {
        let Some(rule) = rewrite.spec.rules.iter_mut().find(|rule| matches_model(&model, rule)) else { return };
        let weights: Vec<_> = rule.targets.iter().rev().map(|target| target.weight).collect();
        rule.targets.iter_mut().zip(weights).for_each(|(target, weight)| target.weight = weight);
    });
}

/// Returns whether the operator still declares the id as serving: a later use is observed too late.
fn is_serving(world: &World, name: &str) -> bool {
    world.directives().serving.contains(&id(name))
}

/// Returns how often an id was newly listed.
pub(crate) fn count_listings(actions: &[WorldAction], index: usize) -> usize {
    let lists = actions.iter().filter_map(|action| match action {
        WorldAction::ListAdapters { exist, .. } => Some(exist & (1 << index) != 0),
        _ => None,
    });
    lists.fold((false, 0), |(was, count), is| (is, count + usize::from(is && !was))).1
}

/// Returns whether only a person can continue the rollout, or nothing is left to do.
pub(crate) fn is_at_rest(world: &World) -> bool {
    let status = world.status();
    let unlisted = |condition: &Condition| condition.type_ == "Progressing" && condition.reason == "NotListed";
    // Restarted servers wait for every serving adapter, and cannot load one that the file does not list.
    let beyond_help = status.message.contains("list it again")
        && world.servers.iter().all(|server| server.in_other_pool || !server.ready);
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

pub(crate) fn check_violations<D: SimDriver>(run: &D) -> Result<(), TestCaseError> {
    let violations = run.world().violations.clone();
    prop_assert!(violations.is_empty(), "{violations:#?}\n{}", run.log_text());
    Ok(())
}

/// Each schedule is minutes of virtual time: a short run tries few, one with `--long` about a million ticks, and
/// `PROPTEST_CASES` sets the number of cases.
pub(crate) fn config(few: u32) -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    match (std::env::var_os("PROPTEST_CASES"), is_long()) {
        (Some(_), _) => config,
        (None, true) => ProptestConfig { cases: 2000, ..config },
        (None, false) => ProptestConfig { cases: few, ..config },
    }
}

/// Returns whether long schedules were requested.
pub(crate) fn is_long() -> bool {
    std::env::var_os("ROLLORA_LONG").is_some()
}

pub(crate) fn schedule_world(crashing: Option<usize>, broken: Option<usize>) -> World {
    let rollout = ROLLOUT.replace("{ duration: 5s }", "{ duration: 1s }");
    let mut world = World::new(&rollout, SERVERS - 1, &IDS[..1]);
    world.add_other_pool_server();
    world.behaviors.extend(broken.map(|index| (id(IDS[index]), AdapterBehavior::FailsToLoad)));
    world.behaviors.extend(crashing.map(|index| (id(IDS[index]), AdapterBehavior::CrashesOnLoad)));
    world
}

/// Makes one adapter crash servers that have to read it again, unless it is bad otherwise.
fn with_reload_crash(mut world: World, crashing_on_reload: Option<usize>) -> World {
    if let Some(index) = crashing_on_reload {
        world.behaviors.entry(id(IDS[index])).or_insert(AdapterBehavior::CrashesOnReload);
    }
    world
}

/// Heals all faults, and checks that the rollout comes to rest.
pub(crate) fn run_to_rest<D: SimDriver>(run: &mut D, actions: &[WorldAction], crashing: Option<usize>) {
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
    let is_at_rest_now = is_at_rest(&run.world());
    run.world().check_end_state(is_at_rest_now);
    if let Some(index) = crashing {
        // `retry` crashes the same server again, and no other one. Only removing the entry and listing it again starts
        // another trial.
        let listings = count_listings(actions, index);
        run.world().check_crash_count(&id(IDS[index]), listings);
    }
}

/// A fault of one of two operators.
#[derive(Debug, Clone)]
pub(crate) enum OperatorFault {
    /// The operator stops where it is, or resumes.
    ToggleStopped(usize),
    /// The operator is killed, and another one starts in its place.
    Kill(usize),
    /// The operator reads documents with these lags, in milliseconds.
    SetLags(usize, [i64; 3]),
    /// Only this operator is polled, this number of times.
    RunAlone(usize, u8),
}

pub(crate) fn any_operator_fault() -> impl Strategy<Value = OperatorFault> {
    let side = || 0..2_usize;
    prop_oneof![
        5 => side().prop_map(OperatorFault::ToggleStopped),
        1 => side().prop_map(OperatorFault::Kill),
        2 => (side(), [0..3000_i64, 0..3000, 0..3000]).prop_map(|(side, lags)| OperatorFault::SetLags(side, lags)),
        4 => (side(), 1..40_u8).prop_map(|(side, polls)| OperatorFault::RunAlone(side, polls)),
    ]
}

fn apply_operator_fault(operators: &mut TwoOperators, fault: &OperatorFault) {
    operators.world().log_event(format!("{fault:?}"));
    match *fault {
        OperatorFault::ToggleStopped(side) => {
            let stopped = operators.is_stopped(side);
            operators.set_stopped(side, !stopped);
        }
        OperatorFault::Kill(side) => operators.kill(side),
        OperatorFault::SetLags(side, lags) => operators.set_lags(side, lags.map(SignedDuration::from_millis)),
        OperatorFault::RunAlone(side, polls) => drop((0..polls).map(|_| operators.step(side)).collect::<Vec<_>>()),
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn random_schedules_keep_the_invariants(
        actions in prop::collection::vec(any_action(), 1..40),
        crashing in prop::option::of(1..4_usize),
        broken in prop::option::of(1..4_usize),
        crashing_on_reload in prop::option::of(0..4_usize),
    ) {
        run_one_operator(with_reload_crash(schedule_world(crashing, broken), crashing_on_reload), &actions, crashing)?;
    }
}

pub(crate) fn run_one_operator(
    world: World,
    actions: &[WorldAction],
    crashing: Option<usize>,
) -> Result<(), TestCaseError> {
    let mut run = SimRun::new(world);
    for action in actions {
        apply_action(&mut run, action);
        run.tick();
        run.world().check_message();
        check_violations(&run)?;
    }
    run_to_rest(&mut run, actions, crashing);
    check_violations(&run)
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn concurrent_operators_keep_the_invariants(
        actions in prop::collection::vec(prop_oneof![
            3 => any_action().prop_map(Ok),
            4 => any_operator_fault().prop_map(Err),
        ], 1..60),
        crashing in prop::option::of(1..4_usize),
        broken in prop::option::of(1..4_usize),
        crashing_on_reload in prop::option::of(0..4_usize),
        seed: u64,
    ) {
        let world = with_reload_crash(schedule_world(crashing, broken), crashing_on_reload);
        run_two_operators(world, seed, &actions, crashing)?;
    }
}

pub(crate) fn run_two_operators(
    world: World,
    seed: u64,
    actions: &[Result<WorldAction, OperatorFault>],
    crashing: Option<usize>,
) -> Result<(), TestCaseError> {
    let mut operators = TwoOperators::new(world, seed);
    for action in actions {
        match action {
            Ok(action) => {
                apply_action(&mut operators, action);
                operators.tick();
            }
            Err(fault) => apply_operator_fault(&mut operators, fault),
        }
        operators.world().check_message();
        check_violations(&operators)?;
    }
    for side in 0..2 {
        operators.resume(side);
        operators.set_lags(side, [SignedDuration::ZERO; 3]);
    }
    let actions: Vec<WorldAction> = actions.iter().filter_map(|action| action.clone().ok()).collect();
    run_to_rest(&mut operators, &actions, crashing);
    check_violations(&operators)
}
