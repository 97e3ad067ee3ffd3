//! Conflicts between Rollouts. The older Rollout proceeds, the other one reports the conflict.

use rollora_api::{operator_directives::matches_pattern, rollout::Rollout};
use std::borrow::Borrow;

/// The kind of conflict with an older Rollout, with its message.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conflict {
    /// Both would write the same rule: the same model in the same pool.
    SameModel(String),
    /// Both would govern the same adapters; each has its own rule.
    SameAdapters(String),
}

impl Conflict {
    /// Returns the message of the condition.
    pub(crate) fn into_message(self) -> String {
        match self {
            Self::SameModel(message) | Self::SameAdapters(message) => message,
        }
    }
}

/// Returns the conflict with an older Rollout of the same model or the same ids.
pub(crate) fn find_conflict(rollout: &Rollout, others: &[impl Borrow<Rollout>]) -> Option<Conflict> {
    let older = others
        .iter()
        .map(Borrow::borrow)
        .filter(|other: &&Rollout| !is_same_rollout(rollout, other) && is_older(other, rollout));
    older.filter_map(|other| conflict_between(rollout, other)).min()
}

/// Returns whether both are the same object.
pub(crate) fn is_same_rollout(one: &Rollout, other: &Rollout) -> bool {
    one.metadata.namespace == other.metadata.namespace && one.metadata.name == other.metadata.name
}

/// Returns whether `one` is older. Creation times have a resolution of one second: within a second, a Rollout that has
/// begun is older, else the name decides.
fn is_older(one: &Rollout, other: &Rollout) -> bool {
    let age =
        |rollout: &Rollout| (rollout.metadata.creation_timestamp, !has_begun(rollout), rollout.metadata.name.clone());
    one.metadata.deletion_timestamp.is_none() && age(one) < age(other)
}

fn has_begun(rollout: &Rollout) -> bool {
    rollout.status.as_ref().is_some_and(|status| status.revision.number > 0)
}

fn conflict_between(one: &Rollout, other: &Rollout) -> Option<Conflict> {
    if one.metadata.namespace != other.metadata.namespace {
        return None;
    }
    let name = &other.metadata.name;
    let (one, other) = (&one.spec, &other.spec);
    if one.model == other.model && one.pool_ref.is_same(&other.pool_ref) {
        return Some(Conflict::SameModel(format!(
            "Rollout {name} is older and has the same model {} in the same pool: delete one of the two",
            one.model
        )));
    }
    let (ours, theirs) = (one.adapter.managed_pattern()?, other.adapter.managed_pattern()?);
    // Also with different keys of the ConfigMap: all share one key with the directives.
    (one.adapters_ref.name == other.adapters_ref.name && patterns_overlap(ours, theirs)).then(|| {
        Conflict::SameAdapters(format!(
            "Rollout {name} is older and manages {theirs}, which overlaps with {ours}: use patterns that share no id"
        ))
    })
}

/// Returns whether some id matches both patterns.
fn patterns_overlap(one: &str, other: &str) -> bool {
    match (one.split_once('*'), other.split_once('*')) {
        (None, _) => matches_pattern(other, one),
        (_, None) => matches_pattern(one, other),
        (Some((before, after)), Some((other_before, other_after))) => {
            let starts = before.starts_with(other_before) || other_before.starts_with(before);
            let ends = after.ends_with(other_after) || other_after.ends_with(after);
            starts && ends
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rollout(name: &str, second: &str, revision: i64) -> Rollout {
        serde_json::from_value(json!({
            "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "creationTimestamp": format!("2026-01-01T00:00:{second}Z")},
            "spec": {
                "model": "chat", "poolRef": {"name": "pool"}, "adapter": {"id": "chat-v1"},
                "adaptersRef": {"name": "map"},
            },
            "status": {"revision": {"number": revision}},
        }))
        .unwrap()
    }

    /// Returns the name of the Rollout that reports a conflict.
    fn yielding(one: &Rollout, other: &Rollout) -> String {
        let all = [one.clone(), other.clone()];
        let yielding: Vec<&str> =
            all.iter().filter(|it| find_conflict(it, &all).is_some()).map(|it| it.metadata.name.as_str()).collect();
        yielding.join(", ")
    }

    #[test]
    fn older_rollout_proceeds_then_the_begun_then_by_name() {
        for (one, other, expected) in [
            (("b", "01", 0), ("a", "02", 0), "a"),
            (("b", "01", 0), ("a", "02", 3), "a"),
            (("b", "01", 0), ("a", "01", 0), "b"),
            (("b", "01", 3), ("a", "01", 0), "a"),
            (("b", "01", 3), ("a", "01", 1), "b"),
        ] {
            let [one, other] = [one, other].map(|(name, second, revision)| rollout(name, second, revision));
            assert_eq!(yielding(&one, &other), expected);
            assert_eq!(yielding(&other, &one), expected);
        }
    }

    #[test]
    fn pools_and_config_maps_are_compared_by_identity() {
        let one = rollout("a", "01", 0);
        let changed = |change: &dyn Fn(&mut rollora_api::rollout::RolloutSpec)| {
            let mut other = rollout("b", "02", 0);
            change(&mut other.spec);
            find_conflict(&other, &[one.clone(), other.clone()])
        };
        let named = changed(&|spec| spec.pool_ref.kind = Some("InferencePool".to_owned()));
        assert!(matches!(named, Some(Conflict::SameModel(_))), "{named:?}");
        let other_model = |spec: &mut rollora_api::rollout::RolloutSpec| {
            spec.model = rollora_api::names::ModelName::new("other").unwrap();
        };
        let other_key = changed(&|spec| {
            other_model(spec);
            spec.adapters_ref.key = "other.yaml".to_owned();
        });
        assert!(matches!(other_key, Some(Conflict::SameAdapters(_))), "{other_key:?}");
        let other_map = changed(&|spec| {
            other_model(spec);
            spec.adapters_ref.name = "another".to_owned();
        });
        assert_eq!(other_map, None);
    }
}
