//! Conditions as Kubernetes has them, and the reasons that Rollora gives. Reasons are an open-ended list: tools
//! must accept new ones.

use serde::{Deserialize, Serialize};

/// `metav1.Condition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "kube", schemars(length(max = 316)))]
    pub type_: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, as one CamelCase word. An open-ended list.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    pub reason: String,
    /// Why, in words a person can act on.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub message: String,
    /// When `status` last changed.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub last_transition_time: jiff::Timestamp,
    /// The generation of the spec that this speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    Unknown,
}

/// The types of conditions of a Rollout.
pub mod condition_type {
    /// The desired adapter has 100 % and is resident.
    pub const READY: &str = "Ready";
    /// The name is served by resident adapters.
    pub const AVAILABLE: &str = "Available";
    /// A rollout is under way.
    pub const PROGRESSING: &str = "Progressing";
    /// Every Ready server of the pool has every adapter that has weight, or is about to get it.
    pub const ADAPTER_RESIDENT: &str = "AdapterResident";
    /// The weights that were decided are in force at every router.
    pub const TRAFFIC_APPLIED: &str = "TrafficApplied";
    /// Nothing is left of retired adapters.
    pub const CLEANED_UP: &str = "CleanedUp";
    /// Every server has room on its GPU for all adapters that are in use at once. Blocks nothing.
    pub const ADAPTERS_FIT: &str = "AdaptersFit";
    /// Needs a person (kstatus): rolled back, invalid, conflict, contested.
    pub const STALLED: &str = "Stalled";
}

/// Sets `condition` among `conditions`, sorted by type. The time of the last transition stays when the status does.
/// Returns whether anything but that time changed.
pub fn set_condition(conditions: &mut Vec<Condition>, mut condition: Condition) -> bool {
    match conditions.binary_search_by(|old| old.type_.cmp(&condition.type_)) {
        Ok(index) => {
            let old = &mut conditions[index];
            if old.status == condition.status {
                condition.last_transition_time = old.last_transition_time;
            }
            let changed = *old != condition;
            *old = condition;
            changed
        }
        Err(index) => {
            conditions.insert(index, condition);
            true
        }
    }
}

/// The reasons of conditions and events.
pub mod reason {
    /// No id in the adapters file matches, or the file cannot be read.
    pub const NO_MATCH: &str = "NoMatch";
    /// The adapters file or the Rollout is not valid.
    pub const INVALID: &str = "Invalid";
    /// The adapter is not under `ensureExist`.
    pub const NOT_LISTED: &str = "NotListed";
    /// The pilot server has not verified the adapter yet.
    pub const PILOT_PENDING: &str = "PilotPending";
    /// Some Ready server does not have the adapter yet.
    pub const NOT_RESIDENT: &str = "NotResident";
    /// The pool has no Ready server.
    pub const NO_READY_PODS: &str = "NoReadyPods";
    /// No router could be asked.
    pub const NO_ROUTERS: &str = "NoRouters";
    /// Some router does not have the rule yet.
    pub const ROUTERS_PENDING: &str = "RoutersPending";
    /// A timed pause.
    pub const PAUSE_STEP: &str = "PauseStep";
    /// A pause that waits for `promote`.
    pub const AWAITING_PROMOTION: &str = "AwaitingPromotion";
    /// `spec.paused`.
    pub const PAUSED: &str = "Paused";
    /// A Ready server lost the adapter; its weight is 0 until it is back.
    pub const RESIDENCY_LOST: &str = "ResidencyLost";
    /// Steps go on.
    pub const PROGRESSING: &str = "Progressing";
    /// The desired adapter has 100 %.
    pub const SUCCEEDED: &str = "Succeeded";
    /// Somebody asked to take it back.
    pub const ABORTED: &str = "Aborted";
    /// All traffic is back on stable.
    pub const ROLLED_BACK: &str = "RolledBack";
    /// A step took longer than `progressDeadline`.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The adapter could not be loaded on the pilot.
    pub const ADAPTER_REJECTED: &str = "AdapterRejected";
    /// A newer version was listed before this one was done.
    pub const SUPERSEDED: &str = "Superseded";
    /// The candidate was unlisted before it was done.
    pub const UNLISTED: &str = "Unlisted";
    /// Stable is not resident: rolling back would send requests to nobody.
    pub const STABLE_NOT_RESIDENT: &str = "StableNotResident";
    /// Two targets, and nothing says which is stable.
    pub const STABLE_UNKNOWN: &str = "StableUnknown";
    /// Somebody else edited or deleted the rewrite; it is put back.
    pub const REWRITE_OVERWRITTEN: &str = "RewriteOverwritten";
    /// Somebody else keeps editing the rewrite.
    pub const CONTESTED: &str = "Contested";
    /// Another Rollout works on the same model or ids.
    pub const CONFLICT: &str = "Conflict";
    /// Another object's rule is in force for the model.
    pub const SHADOWED_BY: &str = "ShadowedBy";
    /// A generic rule, or one for an adapter's own name: an endpoint picker behind ext-proc would rewrite once more.
    pub const DOUBLE_REWRITE: &str = "DoubleRewrite";
    /// A write was refused: a permission is missing, or what is written is not allowed as it is.
    pub const WRITE_REFUSED: &str = "WriteRefused";
    /// An answer by the world that stops this Rollout, in the message.
    pub const UNAVAILABLE: &str = "Unavailable";
    /// A retired id waits for quiet, its delay, or routers.
    pub const DRAINING: &str = "Draining";
    /// Somebody still uses a retired id.
    pub const STILL_IN_USE: &str = "StillInUse";
    /// A retired id was put back into the file by a person.
    pub const RELISTED: &str = "Relisted";
    /// The edit is left to a person.
    pub const SUGGESTED: &str = "Suggested";
    /// The policy keeps retired ids.
    pub const KEPT: &str = "Kept";
    /// No server has a retired id any more.
    pub const GONE: &str = "Gone";
    /// Nothing is left to clean up.
    pub const CLEAN: &str = "Clean";
    /// All adapters in use can be on the GPU at once.
    pub const FITS: &str = "Fits";
    /// vLLM's `max_loras` is less than the adapters in use.
    pub const TOO_FEW_SLOTS: &str = "TooFewSlots";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(kind: &str, status: ConditionStatus, second: i64) -> Condition {
        Condition {
            type_: kind.to_owned(),
            status,
            reason: reason::PROGRESSING.to_owned(),
            message: "step 1 of 3".to_owned(),
            last_transition_time: jiff::Timestamp::from_second(second).unwrap(),
            observed_generation: Some(1),
        }
    }

    #[test]
    fn conditions_stay_sorted_and_each_type_stands_once() {
        let mut conditions = Vec::new();
        for kind in [condition_type::READY, condition_type::AVAILABLE, condition_type::STALLED, condition_type::READY] {
            set_condition(&mut conditions, condition(kind, ConditionStatus::True, 0));
        }
        let kinds: Vec<_> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, [condition_type::AVAILABLE, condition_type::READY, condition_type::STALLED]);
    }

    #[test]
    fn the_time_changes_with_the_status_only() {
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, condition(condition_type::READY, ConditionStatus::False, 1)));
        assert!(
            !set_condition(&mut conditions, condition(condition_type::READY, ConditionStatus::False, 2)),
            "nothing changed"
        );
        let other_words = Condition {
            message: "step 2 of 3".to_owned(),
            ..condition(condition_type::READY, ConditionStatus::False, 3)
        };
        assert!(set_condition(&mut conditions, other_words));
        assert_eq!(conditions[0].last_transition_time.as_second(), 1);
        assert!(set_condition(&mut conditions, condition(condition_type::READY, ConditionStatus::True, 4)));
        assert_eq!(conditions[0].last_transition_time.as_second(), 4);
    }

    #[test]
    fn a_condition_is_written_as_kubernetes_writes_it() {
        let written = serde_json::to_value(condition(condition_type::READY, ConditionStatus::Unknown, 0)).unwrap();
        let expected = serde_json::json!({
            "type": "Ready",
            "status": "Unknown",
            "reason": "Progressing",
            "message": "step 1 of 3",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
            "observedGeneration": 1,
        });
        assert_eq!(written, expected);
    }
}
