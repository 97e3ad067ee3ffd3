//! Kubernetes conditions, and the condition types and reasons that Rollora uses. The list of reasons is open-ended:
//! tools must accept new ones.

use serde::{Deserialize, Serialize};

/// Condition with the fields of `metav1.Condition`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition, for example `Ready`.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "kube", schemars(length(max = 316)))]
    pub type_: String,
    /// Whether the condition holds: True, False or Unknown.
    pub status: ConditionStatus,
    /// Reason of the status, one word in CamelCase. More values may be added.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 1024)))]
    pub reason: String,
    /// Details for people: what happened, on which object, and what to do.
    #[cfg_attr(feature = "kube", schemars(length(max = 32768)))]
    pub message: String,
    /// When `status` last changed.
    #[cfg_attr(feature = "kube", schemars(with = "crate::schema::Time"))]
    pub last_transition_time: jiff::Timestamp,
    /// `metadata.generation` that the condition was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
pub enum ConditionStatus {
    /// The condition holds at the observed generation.
    True,
    /// The condition does not hold.
    False,
    /// The operator could not determine whether the condition holds.
    Unknown,
}

/// Condition types of a Rollout.
pub mod condition_type {
    /// The desired adapter has 100 % of the traffic and is resident.
    pub const READY: &str = "Ready";
    /// Every adapter that gets traffic for the model name is resident.
    pub const AVAILABLE: &str = "Available";
    /// A rollout is in progress.
    pub const PROGRESSING: &str = "Progressing";
    /// Every Ready server of the pool has loaded every adapter that has weight or gets it next.
    pub const ADAPTER_RESIDENT: &str = "AdapterResident";
    /// Every router applies the decided weights.
    pub const TRAFFIC_APPLIED: &str = "TrafficApplied";
    /// The cleanup of all retired adapters is complete.
    pub const CLEANED_UP: &str = "CleanedUp";
    /// Every Ready server has enough GPU slots (`max_loras`) for all adapters that are in use. Informational: a rollout
    /// goes on without it.
    pub const ADAPTERS_FIT: &str = "AdaptersFit";
    /// A person must act (kstatus): the Rollout is rolled back, invalid, in conflict or contested.
    pub const STALLED: &str = "Stalled";
}

/// Inserts or replaces `condition` in `conditions`, which are sorted by type. Keeps the time of the last transition if
/// the status is unchanged. Returns whether anything else changed.
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

/// Reasons of conditions and events of a Rollout.
pub mod reason {
    /// No id in the adapters file matches the pattern, or the file cannot be read.
    pub const NO_MATCH: &str = "NoMatch";
    /// The Rollout, or an object that it refers to, is not valid or does not exist.
    pub const INVALID: &str = "Invalid";
    /// `spec.adapter.id` is not listed under `ensureExist`.
    pub const NOT_LISTED: &str = "NotListed";
    /// The pilot server has not verified the adapter yet.
    pub const PILOT_PENDING: &str = "PilotPending";
    /// At least one Ready server has not loaded the adapter yet.
    pub const NOT_RESIDENT: &str = "NotResident";
    /// The pool has no Ready server.
    pub const NO_READY_PODS: &str = "NoReadyPods";
    /// No router could be queried.
    pub const NO_ROUTERS: &str = "NoRouters";
    /// At least one router does not apply the rule yet.
    pub const ROUTERS_PENDING: &str = "RoutersPending";
    /// The current step is a timed pause.
    pub const PAUSE_STEP: &str = "PauseStep";
    /// The current step is a pause without a duration, which waits for `promote`.
    pub const AWAITING_PROMOTION: &str = "AwaitingPromotion";
    /// `spec.paused` is true, which stops steps and cleanup.
    pub const PAUSED: &str = "Paused";
    /// A Ready server lost the adapter; its weight is 0 until it is back.
    pub const RESIDENCY_LOST: &str = "ResidencyLost";
    /// The rollout advances through its steps.
    pub const PROGRESSING: &str = "Progressing";
    /// The desired adapter has 100 % of the traffic.
    pub const SUCCEEDED: &str = "Succeeded";
    /// A person aborted the rollout.
    pub const ABORTED: &str = "Aborted";
    /// All traffic is back on stable.
    pub const ROLLED_BACK: &str = "RolledBack";
    /// A step took longer than `progressDeadline`.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The adapter failed on the pilot, or crashed a server.
    pub const ADAPTER_REJECTED: &str = "AdapterRejected";
    /// A newer version was listed before this rollout was complete.
    pub const SUPERSEDED: &str = "Superseded";
    /// The candidate was unlisted before its rollout was complete.
    pub const UNLISTED: &str = "Unlisted";
    /// Stable is not resident: a rollback would send requests to servers that lack it.
    pub const STABLE_NOT_RESIDENT: &str = "StableNotResident";
    /// The adopted rule has several targets and nothing says which one is stable, or it has more than 16 targets.
    pub const STABLE_UNKNOWN: &str = "StableUnknown";
    /// Another writer edited or deleted the rewrite; the operator restored it.
    pub const REWRITE_OVERWRITTEN: &str = "RewriteOverwritten";
    /// Another writer keeps editing the rewrite.
    pub const CONTESTED: &str = "Contested";
    /// Another Rollout manages the same model or ids, or the rewrite belongs to another pool.
    pub const CONFLICT: &str = "Conflict";
    /// Another object's rule is active for the model.
    pub const SHADOWED_BY: &str = "ShadowedBy";
    /// An endpoint picker behind ext-proc would apply a generic rule, or a rule for an adapter's own name, to requests
    /// that are already rewritten.
    pub const DOUBLE_REWRITE: &str = "DoubleRewrite";
    /// The API server refused a write: a permission is missing, or the content is not allowed.
    pub const WRITE_REFUSED: &str = "WriteRefused";
    /// A read or write failed, which stops this Rollout; the message says which.
    pub const UNAVAILABLE: &str = "Unavailable";
    /// A retired id waits for routers, for the end of its use, or for its delay.
    pub const DRAINING: &str = "Draining";
    /// Requests still use a retired id, or an object still names it.
    pub const STILL_IN_USE: &str = "StillInUse";
    /// A person moved a retired id back to `ensureExist`.
    pub const RELISTED: &str = "Relisted";
    /// A person must make the edit of the adapters file; the message suggests it.
    pub const SUGGESTED: &str = "Suggested";
    /// The cleanup policy keeps retired ids.
    pub const KEPT: &str = "Kept";
    /// No server has a retired id loaded any more.
    pub const GONE: &str = "Gone";
    /// No retired id is left to clean up.
    pub const CLEAN: &str = "Clean";
    /// Every Ready server has enough GPU slots for all adapters in use.
    pub const FITS: &str = "Fits";
    /// At least one server's `max_loras` is less than the number of adapters in use.
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
    fn conditions_stay_sorted_with_one_per_type() {
        let mut conditions = Vec::new();
        for kind in [condition_type::READY, condition_type::AVAILABLE, condition_type::STALLED, condition_type::READY] {
            set_condition(&mut conditions, condition(kind, ConditionStatus::True, 0));
        }
        let kinds: Vec<_> = conditions.iter().map(|condition| condition.type_.as_str()).collect();
        assert_eq!(kinds, [condition_type::AVAILABLE, condition_type::READY, condition_type::STALLED]);
    }

    #[test]
    fn transition_time_changes_only_with_the_status() {
        let mut conditions = Vec::new();
        assert!(set_condition(&mut conditions, condition(condition_type::READY, ConditionStatus::False, 1)));
        assert!(
            !set_condition(&mut conditions, condition(condition_type::READY, ConditionStatus::False, 2)),
            "nothing changed"
        );
        let other_message = Condition {
            message: "step 2 of 3".to_owned(),
            ..condition(condition_type::READY, ConditionStatus::False, 3)
        };
        assert!(set_condition(&mut conditions, other_message));
        assert_eq!(conditions[0].last_transition_time.as_second(), 1);
        assert!(set_condition(&mut conditions, condition(condition_type::READY, ConditionStatus::True, 4)));
        assert_eq!(conditions[0].last_transition_time.as_second(), 4);
    }

    #[test]
    fn condition_serializes_like_metav1_condition() {
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
