//! What of a namespace may matter to one Rollout: in a namespace of thousands, a handful.

use rollora_api::{names::AdapterId, rewrite::InferenceModelRewrite, rollout::Rollout};
use std::collections::BTreeSet;

/// The neighbours of a Rollout.
#[derive(Debug)]
pub(super) struct RelatedObjects {
    pool: String,
    config_map: String,
    rewrite: String,
    /// Ids that it has to do with: whoever else names one keeps it from going.
    ids: BTreeSet<String>,
}

impl RelatedObjects {
    /// None where everybody may matter: what a Rollout without a status has to do with is found out from the adapters
    /// file and the rewrites.
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

/// Every id that a Rollout names, gives weight, or has not let go of.
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
    fn whoever_shares_a_pool_a_file_or_an_id_matters_and_nobody_else() {
        let vicinity = RelatedObjects::of(&rollout("a", "pool", "map", "v2", 3)).unwrap();
        for (other, expected) in [
            (rollout("b", "pool", "other", "x", 1), true),
            (rollout("b", "other", "map", "x", 1), true),
            (rollout("b", "other", "other", "v2", 1), true),
        ] {
            assert_eq!(vicinity.includes_rollout(&other), expected, "{:?}", other.spec);
        }
        let mut stranger = rollout("b", "other", "other", "x", 1);
        stranger.status = None;
        assert!(!vicinity.includes_rollout(&stranger));
        assert!(vicinity.includes_rewrite("a", &rewrite("other", "x")), "its own");
        assert!(vicinity.includes_rewrite("b", &rewrite("pool", "x")));
        assert!(vicinity.includes_rewrite("b", &rewrite("other", "v1")), "it points at stable");
        assert!(!vicinity.includes_rewrite("b", &rewrite("other", "x")));
    }

    #[test]
    fn to_one_that_has_not_begun_everybody_matters() {
        assert!(RelatedObjects::of(&rollout("a", "pool", "map", "v2", 0)).is_none());
        let mut blank = rollout("a", "pool", "map", "v2", 1);
        blank.status = None;
        assert!(RelatedObjects::of(&blank).is_none());
    }
}
