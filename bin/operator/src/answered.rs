//! Sidecars that have answered once. A server whose sidecar is silent later is none without a sidecar: what vLLM lists
//! does not say when an adapter was last used, and silence is no quiet.
//!
//! Known for as long as their pods are there, which is looked at whenever twice as many are known as were left then.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// So many pods are known at least before it is looked which of them are there.
const ROOM: usize = 1024;

/// Who has answered.
#[derive(Debug, Default)]
pub(crate) struct Answered(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// By the UID of the pod, the ports of its sidecars.
    ports: HashMap<String, BTreeSet<u16>>,
    /// How many pods were left when it was last looked which are there.
    left: usize,
}

impl Answered {
    /// Whether the sidecar at this port of the pod has ever answered.
    pub(crate) fn has(&self, uid: &str, port: u16) -> bool {
        self.known().ports.get(uid).is_some_and(|ports| ports.contains(&port))
    }

    /// It has. `there` are the UIDs of the pods that there are.
    pub(crate) fn note(&self, uid: &str, port: u16, there: impl FnOnce() -> HashSet<String>) {
        let mut known = self.known();
        if let Some(ports) = known.ports.get_mut(uid) {
            ports.insert(port);
            return;
        }
        if known.ports.len() >= ROOM.max(2 * known.left) {
            let there = there();
            known.ports.retain(|uid, _| there.contains(uid));
            known.left = known.ports.len();
        }
        known.ports.insert(uid.to_owned(), BTreeSet::from([port]));
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds this lock can panic half way: the content is good in any case.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_answered_is_known_by_pod_and_port() {
        let answered = Answered::default();
        answered.note("a", 8080, HashSet::new);
        answered.note("a", 8081, HashSet::new);
        assert!(answered.has("a", 8080) && answered.has("a", 8081));
        assert!(!answered.has("a", 8082) && !answered.has("b", 8080));
    }

    #[test]
    fn pods_that_are_gone_are_forgotten_and_those_that_are_there_are_not() {
        let answered = Answered::default();
        for number in 0..10 * ROOM {
            answered.note(&number.to_string(), 8080, || HashSet::from(["0".to_owned(), "7".to_owned()]));
        }
        assert!(answered.has("0", 8080) && answered.has("7", 8080));
        assert!(answered.known().ports.len() <= ROOM);
    }
}
