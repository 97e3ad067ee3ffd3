//! Sidecars that have answered once. A server whose sidecar is silent later is none without a sidecar: what vLLM lists
//! does not say when an adapter was last used, and silence is no quiet.
//!
//! Known for as long as their pods are there, which is looked at whenever twice as many are known as were left then.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// So many pods are known at least before it is looked which of them are there.
const MIN_PRUNE_SIZE: usize = 1024;

/// Who has answered.
#[derive(Debug, Default)]
pub(crate) struct KnownSidecars(Mutex<SidecarPorts>);

#[derive(Debug, Default)]
struct SidecarPorts {
    /// By the UID of the pod, the ports of its sidecars.
    by_pod: HashMap<String, BTreeSet<u16>>,
    /// How many pods were left when it was last looked which are there.
    size_after_prune: usize,
}

impl KnownSidecars {
    /// Whether the sidecar at this port of the pod has ever answered.
    pub(crate) fn contains(&self, uid: &str, port: u16) -> bool {
        self.lock().by_pod.get(uid).is_some_and(|ports| ports.contains(&port))
    }

    /// It has. `there` are the UIDs of the pods that there are.
    pub(crate) fn insert(&self, uid: &str, port: u16, there: impl FnOnce() -> HashSet<String>) {
        let mut known = self.lock();
        if let Some(ports) = known.by_pod.get_mut(uid) {
            ports.insert(port);
            return;
        }
        if known.by_pod.len() >= MIN_PRUNE_SIZE.max(2 * known.size_after_prune) {
            let there = there();
            known.by_pod.retain(|uid, _| there.contains(uid));
            known.size_after_prune = known.by_pod.len();
        }
        known.by_pod.insert(uid.to_owned(), BTreeSet::from([port]));
    }

    fn lock(&self) -> MutexGuard<'_, SidecarPorts> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_answered_is_known_by_pod_and_port() {
        let answered = KnownSidecars::default();
        answered.insert("a", 8080, HashSet::new);
        answered.insert("a", 8081, HashSet::new);
        assert!(answered.contains("a", 8080) && answered.contains("a", 8081));
        assert!(!answered.contains("a", 8082) && !answered.contains("b", 8080));
    }

    #[test]
    fn pods_that_are_gone_are_forgotten_and_those_that_are_there_are_not() {
        let answered = KnownSidecars::default();
        for number in 0..10 * MIN_PRUNE_SIZE {
            answered.insert(&number.to_string(), 8080, || HashSet::from(["0".to_owned(), "7".to_owned()]));
        }
        assert!(answered.contains("0", 8080) && answered.contains("7", 8080));
        assert!(answered.lock().by_pod.len() <= MIN_PRUNE_SIZE);
    }
}
