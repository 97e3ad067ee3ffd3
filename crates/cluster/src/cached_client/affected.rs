//! Whom a change concerns.

use crate::object_cache::NamespacedName;
use jiff::Timestamp;
use rollora_api::{rewrite::InferenceModelRewrite, rollout::Rollout};

/// A Rollout, as little of it as is needed to know whom a change of it concerns.
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

/// What was changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ObjectChange<'a> {
    /// A Rollout was made, deleted, or its spec was changed.
    Rollout(&'a RolloutRefs),
    /// A rewrite of any group.
    Rewrite(&'a NamespacedName, Option<&'a InferenceModelRewrite>),
    /// A ConfigMap, or who reads it.
    ConfigMap(&'a NamespacedName),
    /// A pool, one of its pods, or one of its routers.
    Pool(&'a NamespacedName),
}

impl ObjectChange<'_> {
    /// Where those are that it may matter to.
    pub(super) fn namespace(&self) -> &str {
        match self {
            Self::Rollout(shape) => &shape.namespace,
            Self::Rewrite(name, _) | Self::ConfigMap(name) | Self::Pool(name) => &name.namespace,
        }
    }
}

/// Whether the change may matter to this Rollout.
pub(super) fn affects(change: &ObjectChange<'_>, name: &NamespacedName, rollout: &Rollout) -> bool {
    let spec = &rollout.spec;
    match change {
        // Another one that works on the same: one of them yields, and goes on when the other is gone.
        ObjectChange::Rollout(other) => {
            let same_pool = other.pool == spec.pool_ref.name;
            other.namespace == name.namespace && (same_pool || other.config_map == spec.adapters_ref.name)
        }
        ObjectChange::Rewrite(changed, rewrite) => {
            let reference = spec.rewrite_ref.as_ref().map_or(name.name.as_str(), |reference| &reference.name);
            let same_pool = |rewrite: &&InferenceModelRewrite| rewrite.spec.pool_ref.name == spec.pool_ref.name;
            // Of one that is gone only the name is known: whoever it shadowed goes on.
            let touched = changed.name == reference || rewrite.as_ref().is_none_or(same_pool);
            changed.namespace == name.namespace && touched
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
        let concerned = names.zip(&all).filter(|(name, rollout)| affects(change, name, rollout));
        concerned.map(|(name, _)| name.to_string()).collect()
    }

    #[test]
    fn a_change_wakes_those_that_name_what_was_changed() {
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
    fn a_rewrite_wakes_whoever_it_carries_or_could_shadow() {
        let name = |name: &str| NamespacedName::new("prod", name);
        assert_eq!(
            affected(&ObjectChange::Rewrite(&name("c"), Some(&rewrite("pool")))),
            ["prod/a", "prod/b", "prod/c"]
        );
        assert_eq!(affected(&ObjectChange::Rewrite(&name("r"), Some(&rewrite("other-pool")))), ["prod/c"]);
        assert_eq!(affected(&ObjectChange::Rewrite(&name("r"), None)), ["prod/a", "prod/b", "prod/c"], "it is gone");
    }
}
