//! Objects of a namespace that may matter to one Rollout: a handful among thousands.

use rollora_api::{names::AdapterId, rewrite::InferenceModelRewrite, rollout::Rollout};
use std::collections::BTreeSet;

/// References of one Rollout, matched against other objects.
#[derive(Debug)]
pub(super) struct RelatedObjects {
    pool: String,
    config_map: String,
    rewrite: String,
    /// Ids that the Rollout uses: another Rollout or rewrite that names one keeps it from being retired.
    ids: BTreeSet<String>,
}

impl RelatedObjects {
    /// Returns `None` if every object may matter, because the Rollout has no revision yet: its ids are then derived
    /// from the adapters file and the rewrites.
    pub(super) fn of(rollout: &Rollout) -> Option<Self> {
        let (spec, status) = (&rollout.spec, rollout.status.as_ref()?);
        if status.revision.number == 0 {
            return None;
        }
        let rewrite = spec.rewrite_ref.as_ref().map_or(&rollout.metadata.name, |reference| &reference.name);
        let ids = referenced_ids(rollout).map(|id| id.as_str().to_owned()).collect();
        let (pool, map) = (spec.pool_ref.name.clone(), spec.adapters_ref.name.clone());
        Some(Self { pool, config_map: map, rewrite: rewrite.clone(), ids })
    }

    pub(super) fn includes_rollout(&self, other: &Rollout) -> bool {
        let spec = &other.spec;
        spec.pool_ref.name == self.pool
            || spec.adapters_ref.name == self.config_map
            || referenced_ids(other).any(|id| self.ids.contains(id.as_str()))
    }

    pub(super) fn includes_rewrite(&self, name: &str, rewrite: &InferenceModelRewrite) -> bool {
        let mut targets = rewrite.spec.rules.iter().flat_map(|rule| &rule.targets);
        name == self.rewrite
            || rewrite.spec.pool_ref.name == self.pool
            || targets.any(|target| self.ids.contains(&target.model_rewrite))
    }
}

/// Returns every id that a Rollout names, gives weight to, or has not unloaded yet.
fn referenced_ids(rollout: &Rollout) -> impl Iterator<Item = &AdapterId> {
    let of_status = rollout.status.iter().flat_map(|status| {
        let weights = status.weights.desired.iter().map(|target| &target.id);
        let retired = status.retired.iter().map(|retired| &retired.id);
        let rejected = status.rejected.iter().map(|rejected| &rejected.id);
        let revision = status.revision.stable.iter().chain(&status.revision.desired);
        revision.chain(&status.admission.admitted).chain(weights).chain(retired).chain(rejected)
    });
    rollout.spec.adapter.id.iter().chain(of_status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rollout(name: &str, pool: &str, map: &str, id: &str, number: i64) -> Rollout {
        serde_json::from_value(json!({
            "apiVersion": "rollora.dev/v1alpha1", "kind": "Rollout", "metadata": { "name": name },
            "spec": {
                "model": name, "poolRef": { "name": pool }, "adapter": { "id": id }, "adaptersRef": { "name": map },
            },
            "status": { "revision": { "number": number, "stable": "v1" } },
        }))
        .unwrap()
    }

    fn rewrite(pool: &str, target: &str) -> InferenceModelRewrite {
        serde_json::from_value(json!({
            "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite", "metadata": { "name": "r" },
            "spec": { "poolRef": { "name": pool }, "rules": [{ "targets": [{ "modelRewrite": target }] }] },
        }))
        .unwrap()
    }

    #[test]
    fn only_sharers_of_pool_file_or_id_are_related() {
        let related = RelatedObjects::of(&rollout("a", "pool", "map", "v2", 3)).unwrap();
        for (other, expected) in [
            (rollout("b", "pool", "other", "x", 1), true),
            (rollout("b", "other", "map", "x", 1), true),
            (rollout("b", "other", "other", "v2", 1), true),
        ] {
            assert_eq!(related.includes_rollout(&other), expected, "{:?}", other.spec);
        }
        let mut unrelated = rollout("b", "other", "other", "x", 1);
        unrelated.status = None;
        assert!(!related.includes_rollout(&unrelated));
        assert!(related.includes_rewrite("a", &rewrite("other", "x")), "own rewrite");
        assert!(related.includes_rewrite("b", &rewrite("pool", "x")));
        assert!(related.includes_rewrite("b", &rewrite("other", "v1")), "targets stable");
        assert!(!related.includes_rewrite("b", &rewrite("other", "x")));
    }

    #[test]
    fn everything_is_related_before_the_first_revision() {
        assert!(RelatedObjects::of(&rollout("a", "pool", "map", "v2", 0)).is_none());
        let mut blank = rollout("a", "pool", "map", "v2", 1);
        blank.status = None;
        assert!(RelatedObjects::of(&blank).is_none());
    }
}
