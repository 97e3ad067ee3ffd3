//! Property tests of the pure part of the sidecar against a simulation in which any event may happen at any time:
//! changed or invalid files and directives, answers that get lost before or after the call took effect, servers that
//! fail, end, hang and restart, adapters that crash them, restarts of the sidecar with or without its state, and other
//! clients that load and unload.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod simulation;

use proptest::{prelude::*, test_runner::RngSeed};
use rollora_sidecar::state::CrashHold;
use simulation::{
    EntryMembership, IDS, PersistedCopy, Simulation, SimulationConfig, SimulationStep, config_strategy,
    directives_strategy, entries_strategy, step_strategy,
};
use std::collections::BTreeSet;

/// Runs the same cases every time; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` select others.
fn proptest_config() -> ProptestConfig {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let search = ["PROPTEST_CASES", "PROPTEST_RNG_SEED"].iter().any(|name| std::env::var_os(name).is_some());
    if search { config } else { ProptestConfig { cases: 150, rng_seed: RngSeed::Fixed(1), ..config } }
}

fn settle(simulation: &mut Simulation) {
    simulation.quiesce();
    // Longer than the longest retry delay, plus a few server crashes.
    for seconds in std::iter::repeat_n(1, 40).chain(std::iter::repeat_n(10, 80)) {
        simulation.run_quiet(seconds);
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn no_forbidden_call_is_made_and_state_converges_to_the_file(
        steps in prop::collection::vec(step_strategy(), 1..80),
        last_entries in entries_strategy(),
        last_directives in directives_strategy(),
        crashing in prop::sample::subsequence(IDS.to_vec(), 0..=1),
        broken in prop::sample::subsequence(IDS.to_vec(), 0..=1),
        config in config_strategy(),
        last_file_is_bad in prop::option::of(0..4_usize),
    ) {
        let mut simulation = Simulation::new(config, &crashing, &broken);
        for step in steps {
            simulation.apply(&step);
        }
        simulation.apply(&SimulationStep::SetDesired(last_entries, last_directives));
        if let Some(which) = last_file_is_bad {
            simulation.apply(&SimulationStep::WriteBadFile(which));
        }
        settle(&mut simulation);
        simulation.assert_converged();
    }

    #[test]
    fn only_crashing_adapters_are_held_after_at_most_two_crashes(
        entries in entries_strategy(),
        later_entries in entries_strategy(),
        seconds in 0..90_u64,
        directives in directives_strategy(),
        crashing in prop::sample::subsequence(IDS.to_vec(), 1..=2),
        sidecar_restarts in prop::collection::btree_set(0..90_u64, 0..3),
    ) {
        let mut simulation = Simulation::new(SimulationConfig::with_default_policy(), &crashing, &[]);
        simulation.apply(&SimulationStep::SetDesired(entries.clone(), directives.clone()));
        simulation.quiesce();
        for second in 0..seconds {
            if sidecar_restarts.contains(&second) {
                simulation.apply(&SimulationStep::RestartSidecar(PersistedCopy::Latest));
            }
            simulation.run_quiet(1);
        }
        // List more ids; entries that exist already do not change.
        let merge = |(entry, later): (_, _)| if let (EntryMembership::Neither, _) = entry { later } else { entry };
        let merged = entries.into_iter().zip(later_entries).map(merge).collect();
        simulation.apply(&SimulationStep::SetDesired(merged, directives));
        settle(&mut simulation);
        let held = simulation.held_adapters().into_iter().filter(|(_, hold)| !matches!(hold, CrashHold::Until(_)));
        let held: BTreeSet<&str> = held.map(|(id, _)| id).collect();
        for id in held {
            prop_assert!(crashing.contains(&id), "{id} is held although it does not crash the server");
        }
        for (id, crashes) in simulation.crash_counts() {
            prop_assert!(*crashes <= 2, "{id} crashed the server {crashes} times");
        }
        simulation.assert_converged();
    }
}
