//! Rollouts that a change of an object affects.

use crate::object_cache::NamespacedName;
use jiff::Timestamp;
use rollora_api::{rewrite::InferenceModelRewrite, rollout::Rollout};

/// References and metadata of a Rollout whose change affects other Rollouts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RolloutRefs {
    namespace: String,
    pool: String,
    config_map: String,
    generation: Option<i64>,
    deletion: Option<Timestamp>,
}

impl RolloutRefs {
    pub(super) fn of(rollout: &Rollout) -> Self {
        let (metadata, spec) = (&rollout.metadata, &rollout.spec);
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            pool: spec.pool_ref.name.clone(),
            config_map: spec.adapters_ref.name.clone(),
            generation: metadata.generation,
            deletion: metadata.deletion_timestamp,
        }
    }
}

/// A change of an object that Rollouts may depend on.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ObjectChange<'a> {
    /// A Rollout was created, deleted, or changed its spec.
    Rollout(&'a RolloutRefs),
    /// A rewrite of any group was created, changed or deleted; `None` after its deletion.
    Rewrite(&'a NamespacedName, Option<&'a InferenceModelRewrite>),
    /// A ConfigMap changed, or the set of pods that read it.
    ConfigMap(&'a NamespacedName),
    /// A pool, one of its pods, or one of its routers changed.
    Pool(&'a NamespacedName),
}

impl ObjectChange<'_> {
    /// Returns the namespace of the Rollouts that the change may affect.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Rollout(refs) => &refs.namespace,
            Self::Rewrite(name, _) | Self::ConfigMap(name) | Self::Pool(name) => &name.namespace,
        }
    }
}

/// Returns whether the change may affect this Rollout.
pub(super) fn affects(change: &ObjectChange<'_>, name: &NamespacedName, rollout: &Rollout) -> bool {
    let spec = &rollout.spec;
    match change {
        // A Rollout that shares objects with another one yields, and continues when the other one is gone.
        ObjectChange::Rollout(other) => {
            let same_pool = other.pool == spec.pool_ref.name;
            other.namespace == name.namespace && (same_pool || other.config_map == spec.adapters_ref.name)
        }
        ObjectChange::Rewrite(changed, rewrite) => {
            let reference = spec.rewrite_ref.as_ref().map_or(name.name.as_str(), |reference| &reference.name);
            let same_pool = |rewrite: &&InferenceModelRewrite| rewrite.spec.pool_ref.name == spec.pool_ref.name;
            // Only the name of a deleted rewrite is known, and it may have shadowed this Rollout's.
            let matters = changed.name == reference || rewrite.as_ref().is_none_or(same_pool);
            changed.namespace == name.namespace && matters
        }
        ObjectChange::ConfigMap(changed) => {
            changed.namespace == name.namespace && changed.name == spec.adapters_ref.name
        }
        ObjectChange::Pool(changed) => changed.namespace == name.namespace && changed.name == spec.pool_ref.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rollout_in(namespace: &str, name: &str, pool: &str, map: &str) -> Rollout {
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

    fn affected(change: &ObjectChange<'_>) -> Vec<String> {
        let all = [
            rollout_in("prod", "a", "pool", "map"),
            rollout_in("prod", "b", "pool", "other-map"),
            rollout_in("prod", "c", "other-pool", "map"),
            rollout_in("test", "a", "pool", "map"),
        ];
        let names = all.iter().map(|rollout| {
            NamespacedName::new(rollout.metadata.namespace.clone().unwrap(), rollout.metadata.name.clone())
        });
        let affected = names.zip(&all).filter(|(name, rollout)| affects(change, name, rollout));
        affected.map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn change_affects_rollouts_that_reference_the_object() {
        let name = |name: &str| NamespacedName::new("prod", name);
        assert_eq!(affected(&ObjectChange::ConfigMap(&name("map"))), ["prod/a", "prod/c"]);
        assert_eq!(affected(&ObjectChange::Pool(&name("pool"))), ["prod/a", "prod/b"]);
        assert_eq!(
            affected(&ObjectChange::Rollout(&RolloutRefs::of(&rollout_in("prod", "z", "pool", "map")))),
            ["prod/a", "prod/b", "prod/c"]
        );
        assert_eq!(
            affected(&ObjectChange::Rollout(&RolloutRefs::of(&rollout_in("prod", "z", "x", "other-map")))),
            ["prod/b"]
        );
    }

    #[test]
    fn rewrite_affects_its_rollout_and_those_of_its_pool() {
        let name = |name: &str| NamespacedName::new("prod", name);
        assert_eq!(
            affected(&ObjectChange::Rewrite(&name("c"), Some(&rewrite("pool")))),
            ["prod/a", "prod/b", "prod/c"]
        );
        assert_eq!(affected(&ObjectChange::Rewrite(&name("r"), Some(&rewrite("other-pool")))), ["prod/c"]);
        assert_eq!(affected(&ObjectChange::Rewrite(&name("r"), None)), ["prod/a", "prod/b", "prod/c"], "deleted");
    }
}
