//! Rollouts that would work against each other: the older one works, the other says so.

use rollora_api::{operator_directives::matches_pattern, rollout::Rollout};
use std::borrow::Borrow;

/// How an older Rollout would be worked against.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Conflict {
    /// By the same rule.
    SameModel(String),
    /// By entries of the same adapters; the rule is one's own.
    SameAdapters(String),
}

impl Conflict {
    /// In words.
    pub(crate) fn into_message(self) -> String {
        match self {
            Self::SameModel(words) | Self::SameAdapters(words) => words,
        }
    }
}

/// The older Rollout that works on the same model or the same ids.
pub(crate) fn find_conflict(rollout: &Rollout, others: &[impl Borrow<Rollout>]) -> Option<Conflict> {
    let older = others
        .iter()
        .map(Borrow::borrow)
        .filter(|other: &&Rollout| !is_same_rollout(rollout, other) && is_older(other, rollout));
    older.filter_map(|other| conflict_between(rollout, other)).min()
}

/// Whether these are one object.
pub(crate) fn is_same_rollout(one: &Rollout, other: &Rollout) -> bool {
    one.metadata.namespace == other.metadata.namespace && one.metadata.name == other.metadata.name
}

/// Ages are known to the second. Of two of the same second the one that works already goes on, else the name decides.
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
    // By another key of the ConfigMap, too: the operator's key is one for all.
    (one.adapters_ref.name == other.adapters_ref.name && patterns_overlap(ours, theirs)).then(|| {
        Conflict::SameAdapters(format!(
            "Rollout {name} is older and governs {theirs}, which overlaps with {ours}: give them patterns that share no \
             id"
        ))
    })
}

/// Whether some id matches both patterns.
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

    /// The name of the one that yields.
    fn yielding(one: &Rollout, other: &Rollout) -> String {
        let all = [one.clone(), other.clone()];
        let yielding: Vec<&str> =
            all.iter().filter(|it| find_conflict(it, &all).is_some()).map(|it| it.metadata.name.as_str()).collect();
        yielding.join(", ")
    }

    #[test]
    fn the_older_one_works_and_of_the_same_second_the_one_that_has_begun_else_the_first_by_name() {
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
    fn the_same_pool_and_the_same_map_are_known_however_they_are_written() {
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
