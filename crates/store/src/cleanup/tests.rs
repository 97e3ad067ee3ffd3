use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3600;

fn held(name: &str, size: u64, idle: u64) -> Held {
    Held { path: PathBuf::from(name), size, wanted: now() - Duration::from_secs(idle) }
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn names(condemned: &[PathBuf]) -> Vec<&str> {
    condemned.iter().filter_map(|path| path.to_str()).collect()
}

#[test]
fn what_was_unwanted_for_too_long_goes_and_what_is_protected_stays() {
    let there = [held("old", 1, 25 * HOUR), held("wanted", 1, 25 * HOUR), held("young", 1, 23 * HOUR)];
    let protected = BTreeSet::from([PathBuf::from("wanted")]);
    let budget = Budget { keep: Duration::from_hours(24), largest: None };
    assert_eq!(names(&condemned(&there, &protected, &budget, now())), ["old"]);
}

#[test]
fn the_budget_takes_the_longest_unwanted_first_and_no_more_than_it_must() {
    let there = [held("a", 40, 2 * HOUR), held("b", 40, 4 * HOUR), held("c", 40, 3 * HOUR), held("now", 40, 0)];
    let budget = Budget { keep: Duration::from_hours(24), largest: Some(100) };
    assert_eq!(names(&condemned(&there, &BTreeSet::new(), &budget, now())), ["b", "c"]);
}

#[test]
fn what_was_wanted_within_the_hour_stays_whatever_the_budget_and_the_age() {
    let there = [held("running", 1000, HOUR - 1)];
    let budget = Budget { keep: Duration::from_secs(1), largest: Some(1) };
    assert!(condemned(&there, &BTreeSet::new(), &budget, now()).is_empty());
}

proptest! {
    #[test]
    fn nothing_protected_or_young_ever_goes_and_the_budget_is_met_where_it_can_be(
        all in prop::collection::vec((0..200_u64, 0..50 * HOUR, any::<bool>()), 0..12),
        keep in 0..40_u64,
        largest in prop::option::of(0..800_u64),
    ) {
        let there: Vec<_> =
            all.iter().enumerate().map(|(index, (size, idle, _))| held(&index.to_string(), *size, *idle)).collect();
        let protected: BTreeSet<_> =
            there.iter().zip(&all).filter(|(_, (_, _, kept))| *kept).map(|(held, _)| held.path.clone()).collect();
        let budget = Budget { keep: Duration::from_hours(keep), largest };
        let gone = condemned(&there, &protected, &budget, now());
        let (removed, kept): (Vec<_>, Vec<_>) = there.iter().partition(|held| gone.contains(&held.path));
        for held in removed {
            prop_assert!(!protected.contains(&held.path) && held.wanted + LEAST <= now());
        }
        let size: u64 = kept.iter().map(|held| held.size).sum();
        let movable = kept.iter().any(|held| !protected.contains(&held.path) && held.wanted + LEAST <= now());
        prop_assert!(largest.is_none_or(|largest| size <= largest) || !movable);
    }
}
