use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3600;

fn cached_adapter(name: &str, size: u64, idle: u64) -> CachedAdapter {
    CachedAdapter { path: PathBuf::from(name), size, last_wanted: now() - Duration::from_secs(idle) }
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn names(condemned: &[PathBuf]) -> Vec<&str> {
    condemned.iter().filter_map(|path| path.to_str()).collect()
}

#[test]
fn what_was_unwanted_for_too_long_goes_and_what_is_protected_stays() {
    let there = [
        cached_adapter("old", 1, 25 * HOUR),
        cached_adapter("wanted", 1, 25 * HOUR),
        cached_adapter("young", 1, 23 * HOUR),
    ];
    let protected = BTreeSet::from([PathBuf::from("wanted")]);
    let budget = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: None };
    assert_eq!(names(&select_evictions(&there, &protected, &budget, now())), ["old"]);
}

#[test]
fn the_budget_takes_the_longest_unwanted_first_and_no_more_than_it_must() {
    let there = [
        cached_adapter("a", 40, 2 * HOUR),
        cached_adapter("b", 40, 4 * HOUR),
        cached_adapter("c", 40, 3 * HOUR),
        cached_adapter("now", 40, 0),
    ];
    let budget = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: Some(100) };
    assert_eq!(names(&select_evictions(&there, &BTreeSet::new(), &budget, now())), ["b", "c"]);
}

#[test]
fn what_was_wanted_within_the_hour_stays_whatever_the_budget_and_the_age() {
    let there = [cached_adapter("running", 1000, HOUR - 1)];
    let budget = EvictionPolicy { retention: Duration::from_secs(1), max_bytes: Some(1) };
    assert!(select_evictions(&there, &BTreeSet::new(), &budget, now()).is_empty());
}

proptest! {
    #[test]
    fn nothing_protected_or_young_ever_goes_and_the_budget_is_met_where_it_can_be(
        all in prop::collection::vec((0..200_u64, 0..50 * HOUR, any::<bool>()), 0..12),
        keep in 0..40_u64,
        largest in prop::option::of(0..800_u64),
    ) {
        let there: Vec<_> =
            all.iter().enumerate().map(|(index, (size, idle, _))| cached_adapter(&index.to_string(), *size, *idle)).collect();
        let protected: BTreeSet<_> =
            there.iter().zip(&all).filter(|(_, (_, _, kept))| *kept).map(|(held, _)| held.path.clone()).collect();
        let budget = EvictionPolicy { retention: Duration::from_hours(keep), max_bytes: largest };
        let gone = select_evictions(&there, &protected, &budget, now());
        let (removed, kept): (Vec<_>, Vec<_>) = there.iter().partition(|held| gone.contains(&held.path));
        for held in removed {
            prop_assert!(!protected.contains(&held.path) && held.last_wanted + MIN_RETENTION <= now());
        }
        let size: u64 = kept.iter().map(|held| held.size).sum();
        let movable = kept.iter().any(|held| !protected.contains(&held.path) && held.last_wanted + MIN_RETENTION <= now());
        prop_assert!(largest.is_none_or(|largest| size <= largest) || !movable);
    }
}
