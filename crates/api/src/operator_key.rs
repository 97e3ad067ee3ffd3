//! The operator's own key, `rollora.yaml`, beside the user's in the adapters ConfigMap: what the operator tells the
//! sidecars. It travels by the same mount, watch and hash as the user's file. Without it a sidecar is the plain drop-in.

use crate::names::AdapterId;
use serde::{Deserialize, Serialize};

/// What the operator tells the sidecars. Lists are sorted, so that equal content has equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OperatorKey {
    /// Patterns (`*` once) and ids that Rollouts govern: such ids wait for their admission.
    pub managed: Vec<String>,
    /// Governed ids that every server may load.
    pub admitted: Vec<AdapterId>,
    /// Governed ids that one server each may load, to prove them.
    pub pilots: Vec<Pilot>,
    /// Ids that have weight, or that a rollback could need: never unloaded, loaded again after a restart.
    pub serving: Vec<AdapterId>,
    /// Ids that failed: not loaded anywhere, unloaded when idle.
    pub rejected: Vec<AdapterId>,
}

/// One id on trial on one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pilot {
    /// The adapter on trial.
    pub id: AdapterId,
    /// The pod (on one machine: the server's name) that tries it.
    pub pod: String,
}

/// Whether one server may load an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// No Rollout governs the id, or it is admitted, or this server is its pilot.
    Granted,
    /// Governed, and not admitted yet.
    Waiting,
    /// It failed before.
    Rejected,
}

impl OperatorKey {
    /// Whether the server `pod` may load `id`.
    pub fn admission(&self, id: &AdapterId, pod: &str) -> Admission {
        if self.rejected.contains(id) {
            return Admission::Rejected;
        }
        let governed = self.managed.iter().any(|pattern| matches_pattern(pattern, id.as_str()));
        let pilot = self.pilots.iter().any(|pilot| pilot.id == *id && pilot.pod == pod);
        if !governed || pilot || self.admitted.contains(id) { Admission::Granted } else { Admission::Waiting }
    }
}

/// Whether `name` matches `pattern`, in which the first `*` stands for any text, also none.
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
    }
}
