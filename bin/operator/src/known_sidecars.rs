//! Sidecars that have responded once. If such a sidecar stops responding, its server must not be treated as one without
//! a sidecar: vLLM's model list does not show when an adapter was last used, and no response does not mean that the
//! adapter is idle.
//!
//! Entries of deleted pods are pruned whenever the number of entries has doubled since the last pruning.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Number of pods below which nothing is pruned.
const MIN_PRUNE_SIZE: usize = 1024;

/// Sidecars that have responded, by pod and port.
#[derive(Debug, Default)]
pub(crate) struct KnownSidecars(Mutex<SidecarPorts>);

#[derive(Debug, Default)]
struct SidecarPorts {
    /// Ports of the sidecars, by the UID of the pod.
    by_pod: HashMap<String, BTreeSet<u16>>,
    /// Number of pods after the last pruning.
    size_after_prune: usize,
}

impl KnownSidecars {
    /// Returns whether the sidecar at this port of the pod has ever responded.
    pub(crate) fn contains(&self, uid: &str, port: u16) -> bool {
        self.lock().by_pod.get(uid).is_some_and(|ports| ports.contains(&port))
    }

    /// Records that a sidecar has responded. `existing_uids` returns the UIDs of all pods, for pruning.
    pub(crate) fn insert(&self, uid: &str, port: u16, existing_uids: impl FnOnce() -> HashSet<String>) {
        let mut known = self.lock();
        if let Some(ports) = known.by_pod.get_mut(uid) {
            ports.insert(port);
            return;
        }
        if known.by_pod.len() >= MIN_PRUNE_SIZE.max(2 * known.size_after_prune) {
            let existing = existing_uids();
            known.by_pod.retain(|uid, _| existing.contains(uid));
            known.size_after_prune = known.by_pod.len();
        }
        known.by_pod.insert(uid.to_owned(), BTreeSet::from([port]));
    }

    fn lock(&self) -> MutexGuard<'_, SidecarPorts> {
        // No code that holds this lock can panic halfway, so the content of a poisoned lock is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecars_are_known_by_pod_and_port() {
        let sidecars = KnownSidecars::default();
        sidecars.insert("a", 8080, HashSet::new);
        sidecars.insert("a", 8081, HashSet::new);
        assert!(sidecars.contains("a", 8080) && sidecars.contains("a", 8081));
        assert!(!sidecars.contains("a", 8082) && !sidecars.contains("b", 8080));
    }

    #[test]
    fn only_deleted_pods_are_pruned() {
        let sidecars = KnownSidecars::default();
        for number in 0..10 * MIN_PRUNE_SIZE {
            sidecars.insert(&number.to_string(), 8080, || HashSet::from(["0".to_owned(), "7".to_owned()]));
        }
        assert!(sidecars.contains("0", 8080) && sidecars.contains("7", 8080));
        assert!(sidecars.lock().by_pod.len() <= MIN_PRUNE_SIZE);
    }
}
