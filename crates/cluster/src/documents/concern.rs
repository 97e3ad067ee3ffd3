//! Whom a change concerns.

use crate::shelf::ObjectName;
use jiff::Timestamp;
use rollora_api::{rewrite::InferenceModelRewrite, rollout::Rollout};

/// A Rollout, as little of it as is needed to know whom a change of it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    namespace: String,
    pool: String,
    map: String,
    generation: Option<i64>,
    deletion: Option<Timestamp>,
}

impl Shape {
    pub(super) fn of(rollout: &Rollout) -> Self {
        let (metadata, spec) = (&rollout.metadata, &rollout.spec);
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            pool: spec.pool_ref.name.clone(),
            map: spec.adapters_ref.name.clone(),
            generation: metadata.generation,
            deletion: metadata.deletion_timestamp,
        }
    }
}

/// What was changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change<'a> {
    /// A Rollout was made, deleted, or its spec was changed.
    Rollout(&'a Shape),
    /// A rewrite of any group.
    Rewrite(&'a ObjectName, Option<&'a InferenceModelRewrite>),
    /// A ConfigMap, or who reads it.
    ConfigMap(&'a ObjectName),
    /// A pool, one of its pods, or one of its routers.
    Pool(&'a ObjectName),
}

impl Change<'_> {
    /// Where those are that it may matter to.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Rollout(shape) => &shape.namespace,
            Self::Rewrite(name, _) | Self::ConfigMap(name) | Self::Pool(name) => &name.namespace,
        }
    }
}

/// Whether the change may matter to this Rollout.
pub(super) fn concerns(change: &Change<'_>, name: &ObjectName, rollout: &Rollout) -> bool {
    let spec = &rollout.spec;
    match change {
        // Another one that works on the same: one of them yields, and goes on when the other is gone.
        Change::Rollout(other) => {
            let same_pool = other.pool == spec.pool_ref.name;
            other.namespace == name.namespace && (same_pool || other.map == spec.adapters_ref.name)
        }
        Change::Rewrite(changed, rewrite) => {
            let reference = spec.rewrite_ref.as_ref().map_or(name.name.as_str(), |reference| &reference.name);
            let same_pool = |rewrite: &&InferenceModelRewrite| rewrite.spec.pool_ref.name == spec.pool_ref.name;
            // Of one that is gone only the name is known: whoever it shadowed goes on.
            let touched = changed.name == reference || rewrite.as_ref().is_none_or(same_pool);
            changed.namespace == name.namespace && touched
        }
        Change::ConfigMap(changed) => changed.namespace == name.namespace && changed.name == spec.adapters_ref.name,
        Change::Pool(changed) => changed.namespace == name.namespace && changed.name == spec.pool_ref.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rollout(namespace: &str, name: &str, pool: &str, map: &str) -> Rollout {
        serde_json::from_value(json!({
            "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "model": "chat", "poolRef": {"name": pool}, "adapter": {"id": "chat-v1"},
                "adaptersRef": {"name": map},
            },
        }))
        .unwrap()
    }

    fn rewrite(pool: &str) -> InferenceModelRewrite {
        serde_json::from_value(json!({
            "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite", "metadata": {"name": "r"},
            "spec": {"poolRef": {"name": pool}},
        }))
        .unwrap()
    }

    fn concerned(change: &Change<'_>) -> Vec<String> {
        let all = [
            rollout("prod", "a", "pool", "map"),
            rollout("prod", "b", "pool", "other-map"),
            rollout("prod", "c", "other-pool", "map"),
            rollout("test", "a", "pool", "map"),
        ];
        let names = all
            .iter()
            .map(|rollout| ObjectName::new(rollout.metadata.namespace.clone().unwrap(), rollout.metadata.name.clone()));
        let concerned = names.zip(&all).filter(|(name, rollout)| concerns(change, name, rollout));
        concerned.map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn a_change_wakes_those_that_name_what_was_changed() {
        let name = |name: &str| ObjectName::new("prod", name);
        assert_eq!(concerned(&Change::ConfigMap(&name("map"))), ["prod/a", "prod/c"]);
        assert_eq!(concerned(&Change::Pool(&name("pool"))), ["prod/a", "prod/b"]);
        assert_eq!(
            concerned(&Change::Rollout(&Shape::of(&rollout("prod", "z", "pool", "map")))),
            ["prod/a", "prod/b", "prod/c"]
        );
        assert_eq!(concerned(&Change::Rollout(&Shape::of(&rollout("prod", "z", "x", "other-map")))), ["prod/b"]);
    }

    #[test]
    fn a_rewrite_wakes_whoever_it_carries_or_could_shadow() {
        let name = |name: &str| ObjectName::new("prod", name);
        assert_eq!(concerned(&Change::Rewrite(&name("c"), Some(&rewrite("pool")))), ["prod/a", "prod/b", "prod/c"]);
        assert_eq!(concerned(&Change::Rewrite(&name("r"), Some(&rewrite("other-pool")))), ["prod/c"]);
        assert_eq!(concerned(&Change::Rewrite(&name("r"), None)), ["prod/a", "prod/b", "prod/c"], "it is gone");
    }
}
