//! Laws of the deciding half, held against a world in which anything may happen between any two events: files and
//! operators that change their mind, files that cannot be read, answers that get lost before or after they took effect,
//! servers that fail, end, hang and come back, adapters that end them, sidecars that start again with what they kept or
//! without, and strangers who load and unload.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says by a panic what is wrong")]

mod simulation;

use proptest::{prelude::*, test_runner::RngSeed};
use rollora_sidecar::state::CrashHold;
use simulation::{
    EntryMembership, IDS, PersistedCopy, Simulation, SimulationConfig, SimulationStep, config_strategy,
    directives_strategy, entries_strategy, step_strategy,
};
use std::collections::BTreeSet;

/// The same cases in every run; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` search further.
fn proptest_config() -> ProptestConfig {
    let asked = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let search = ["PROPTEST_CASES", "PROPTEST_RNG_SEED"].iter().any(|name| std::env::var_os(name).is_some());
    if search { asked } else { ProptestConfig { cases: 150, rng_seed: RngSeed::Fixed(1), ..asked } }
}

fn settle(world: &mut Simulation) {
    world.quiesce();
    // Long enough for the longest wait after a failure, and for a server that dies a few times on the way.
    for seconds in std::iter::repeat_n(1, 40).chain(std::iter::repeat_n(10, 80)) {
        world.run_quiet(seconds);
    }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn whatever_happens_no_forbidden_call_is_made_and_the_end_is_what_the_file_says(
        steps in prop::collection::vec(step_strategy(), 1..80),
        last_entries in entries_strategy(),
        last_key in directives_strategy(),
        deadly in prop::sample::subsequence(IDS.to_vec(), 0..=1),
        broken in prop::sample::subsequence(IDS.to_vec(), 0..=1),
        manner in config_strategy(),
        last_file_is_bad in prop::option::of(0..4_usize),
    ) {
        let mut world = Simulation::new(manner, &deadly, &broken);
        for step in steps {
            world.apply(&step);
        }
        world.apply(&SimulationStep::SetDesired(last_entries, last_key));
        if let Some(which) = last_file_is_bad {
            world.apply(&SimulationStep::WriteBadFile(which));
        }
        settle(&mut world);
        world.assert_converged();
    }

    #[test]
    fn only_the_adapter_that_ends_the_server_is_held_and_it_does_so_twice_at_most(
        entries in entries_strategy(),
        later_entries in entries_strategy(),
        seconds in 0..90_u64,
        key in directives_strategy(),
        deadly in prop::sample::subsequence(IDS.to_vec(), 1..=2),
        sidecar_restarts in prop::collection::btree_set(0..90_u64, 0..3),
    ) {
        let mut world = Simulation::new(SimulationConfig::with_default_policy(), &deadly, &[]);
        world.apply(&SimulationStep::SetDesired(entries.clone(), key.clone()));
        world.quiesce();
        for second in 0..seconds {
            if sidecar_restarts.contains(&second) {
                world.apply(&SimulationStep::RestartSidecar(PersistedCopy::Latest));
            }
            world.run_quiet(1);
        }
        // More ids are listed; those that stood somewhere stay where they are.
        let is_new = |(entry, later): (_, _)| if let (EntryMembership::Neither, _) = entry { later } else { entry };
        world.apply(&SimulationStep::SetDesired(entries.into_iter().zip(later_entries).map(is_new).collect(), key));
        settle(&mut world);
        let held: BTreeSet<&str> =
            world.held_adapters().into_iter().filter(|(_, hold)| !matches!(hold, CrashHold::Until(_))).map(|(id, _)| id).collect();
        for id in held {
            prop_assert!(deadly.contains(&id), "{id} is held although it is harmless");
        }
        for (id, deaths) in world.crash_counts() {
            prop_assert!(*deaths <= 2, "{id} ended the server {deaths} times");
        }
        world.assert_converged();
    }
}
