use super::*;
use proptest::prelude::*;

const HOUR: u64 = 3600;

fn cached_adapter(name: &str, size: u64, idle: u64) -> CachedAdapter {
    CachedAdapter { path: PathBuf::from(name), size, last_wanted: now() - Duration::from_secs(idle) }
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_secs(1_000_000)
}

fn names(selected: &[PathBuf]) -> Vec<&str> {
    selected.iter().filter_map(|path| path.to_str()).collect()
}

#[test]
fn adapters_past_retention_go_unless_protected() {
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
fn size_limit_removes_the_longest_unused_adapters_first() {
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
fn adapters_used_within_the_last_hour_always_stay() {
    let cached = [cached_adapter("running", 1000, HOUR - 1)];
    let policy = EvictionPolicy { retention: Duration::from_secs(1), max_bytes: Some(1) };
    assert!(select_evictions(&cached, &BTreeSet::new(), &policy, now()).is_empty());
}

proptest! {
    #[test]
    fn protected_and_recent_adapters_stay_and_limit_is_met(
        all in prop::collection::vec((0..200_u64, 0..50 * HOUR, any::<bool>()), 0..12),
        retention in 0..40_u64,
max_bytes in prop::option::of(0..800_u64),
    ) {
        let cached: Vec<_> =
            all.iter().enumerate().map(|(index, (size, idle, _))| cached_adapter(&index.to_string(), *size, *idle)).collect();
        let protected: BTreeSet<_> =
            cached.iter().zip(&all).filter(|(_, (_, _, protect))| *protect).map(|(it, _)| it.path.clone()).collect();
        let policy = EvictionPolicy { retention: Duration::from_hours(retention), max_bytes };
        let selected = select_evictions(&cached, &protected, &policy, now());
        let (removed, kept): (Vec<_>, Vec<_>) = cached.iter().partition(|it| selected.contains(&it.path));
        for adapter in removed {
            prop_assert!(!protected.contains(&adapter.path) && adapter.last_wanted + MIN_RETENTION <= now());
        }
        let size: u64 = kept.iter().map(|it| it.size).sum();
        let removable = kept.iter().any(|it| !protected.contains(&it.path) && it.last_wanted + MIN_RETENTION <= now());
        prop_assert!(max_bytes.is_none_or(|max_bytes| size <= max_bytes) || !removable);
    }
}
