use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3600;

fn cached_adapter(name: &str, size: u64, idle: u64) -> CachedAdapter {
    CachedAdapter { path: PathBuf::from(name), size, last_wanted: now() - Duration::from_secs(idle) }
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn names(evicted: &[PathBuf]) -> Vec<&str> {
    evicted.iter().filter_map(|path| path.to_str()).collect()
}

#[test]
fn expired_adapters_are_evicted_unless_protected() {
    let cached = [
        cached_adapter("old", 1, 25 * HOUR),
        cached_adapter("wanted", 1, 25 * HOUR),
        cached_adapter("young", 1, 23 * HOUR),
    ];
    let protected = BTreeSet::from([PathBuf::from("wanted")]);
    let policy = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: None };
    assert_eq!(names(&select_evictions(&cached, &protected, &policy, now())), ["old"]);
}

#[test]
fn size_limit_evicts_longest_unwanted_first_and_no_more() {
    let cached = [
        cached_adapter("a", 40, 2 * HOUR),
        cached_adapter("b", 40, 4 * HOUR),
        cached_adapter("c", 40, 3 * HOUR),
        cached_adapter("now", 40, 0),
    ];
    let policy = EvictionPolicy { retention: Duration::from_hours(24), max_bytes: Some(100) };
    assert_eq!(names(&select_evictions(&cached, &BTreeSet::new(), &policy, now())), ["b", "c"]);
}

#[test]
fn adapters_wanted_within_an_hour_stay_whatever_the_policy() {
    let cached = [cached_adapter("running", 1000, HOUR - 1)];
    let policy = EvictionPolicy { retention: Duration::from_secs(1), max_bytes: Some(1) };
    assert!(select_evictions(&cached, &BTreeSet::new(), &policy, now()).is_empty());
}

proptest! {
    #[test]
    fn eviction_spares_protected_and_recent_and_meets_the_limit(
        all in prop::collection::vec((0..200_u64, 0..50 * HOUR, any::<bool>()), 0..12),
        retention_hours in 0..40_u64,
        max_bytes in prop::option::of(0..800_u64),
    ) {
        let cached: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(index, (size, idle, _))| cached_adapter(&index.to_string(), *size, *idle))
            .collect();
        let protected: BTreeSet<_> =
            cached.iter().zip(&all).filter(|(_, (.., keep))| *keep).map(|(adapter, _)| adapter.path.clone()).collect();
        let policy = EvictionPolicy { retention: Duration::from_hours(retention_hours), max_bytes };
        let evicted = select_evictions(&cached, &protected, &policy, now());
        let (removed, kept): (Vec<_>, Vec<_>) = cached.iter().partition(|adapter| evicted.contains(&adapter.path));
        for adapter in removed {
            prop_assert!(!protected.contains(&adapter.path) && adapter.last_wanted + MIN_RETENTION <= now());
        }
        let size: u64 = kept.iter().map(|adapter| adapter.size).sum();
        let removable =
            |it: &&CachedAdapter| !protected.contains(&it.path) && it.last_wanted + MIN_RETENTION <= now();
        let more_removable = kept.iter().any(removable);
        prop_assert!(max_bytes.is_none_or(|max_bytes| size <= max_bytes) || !more_removable);
    }
}
