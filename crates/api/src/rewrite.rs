//! InferenceModelRewrite of the current and the legacy API group, whose schemas differ only in the group.
//! Fields that Rollora does not know are kept on read-modify-write.

pub mod condition;
mod precedence;

pub use precedence::RewritePrecedence;

use crate::{condition::Condition, metadata::ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Valid weights of a target. The schema does not allow 0, so a target without weight is left out.
pub const WEIGHT_RANGE: std::ops::RangeInclusive<i32> = 1..=1_000_000;

/// API group of a rewrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RewriteGroup {
    /// `llm-d.ai`, which takes precedence if both groups have a rule for a model.
    #[serde(rename = "llm-d.ai")]
    Current,
    /// `inference.networking.x-k8s.io`, of the Gateway API inference extension up to v1.5.
    #[serde(rename = "inference.networking.x-k8s.io")]
    Legacy,
}

impl RewriteGroup {
    /// Returns the group with this name, or `None` if the name is of neither.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Current, Self::Legacy].into_iter().find(|group| group.name() == name)
    }

    /// Returns the name of the group, without a version.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "llm-d.ai",
            Self::Legacy => "inference.networking.x-k8s.io",
        }
    }

    /// Returns group and version, as in `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Current => "llm-d.ai/v1alpha2",
            Self::Legacy => "inference.networking.x-k8s.io/v1alpha2",
        }
    }
}

/// One InferenceModelRewrite object of either API group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceModelRewrite {
    /// Group and version, which determine the [`RewriteGroup`].
    pub api_version: String,
    /// Always `InferenceModelRewrite`, in both groups.
    pub kind: String,
    /// Name, namespace, UID, resource version and annotations.
    pub metadata: ObjectMeta,
    /// Pool and rules of the rewrite.
    pub spec: RewriteSpec,
    /// Conditions of the rewrite; `None` if none were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RewriteStatus>,
}

impl InferenceModelRewrite {
    /// Returns the group of the object, or `None` if `apiVersion` is of neither group.
    pub fn group(&self) -> Option<RewriteGroup> {
        let group = self.api_version.split_once('/').map_or("", |(group, _)| group);
        RewriteGroup::from_name(group)
    }
}

/// The `spec` of a rewrite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteSpec {
    /// InferencePool whose requests are rewritten.
    pub pool_ref: PoolRef,
    /// Rules in their order; the first one that matches a request applies.
    #[serde(default)]
    pub rules: Vec<RewriteRule>,
    /// Unknown fields, for example of later versions of the API.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Reference to an InferencePool in the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolRef {
    /// API group of the pool. Defaults to `inference.networking.k8s.io`.
    #[serde(default = "default_pool_group")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub group: String,
    /// Kind of the pool. Defaults to `InferencePool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63)))]
    pub kind: Option<String>,
    /// Name of the pool.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}

impl PoolRef {
    /// Returns whether both name the same pool. The kind is not compared, because a group has only one kind of pool and
    /// naming it is optional.
    pub fn is_same(&self, other: &Self) -> bool {
        self.group == other.group && self.name == other.name
    }
}

impl Default for PoolRef {
    fn default() -> Self {
        Self { group: default_pool_group(), kind: None, name: String::new() }
    }
}

fn default_pool_group() -> String {
    "inference.networking.k8s.io".to_owned()
}

/// One rule: it sends each matching request to one of its targets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteRule {
    /// Matches, of which any one suffices. A rule without matches is generic: it matches every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RewriteMatch>,
    /// Targets that matching requests are distributed to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<RewriteTarget>,
    /// Unknown fields, for example of later versions of the API.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One match of a rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteMatch {
    /// How the field `model` of a request is matched.
    pub model: ModelMatch,
    /// Unknown fields, for example of later versions of the API.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Comparison with the field `model` of a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelMatch {
    /// Kind of the comparison. `Exact` is the default and the only kind.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// Model name, which is compared byte for byte.
    pub value: String,
}

/// One target of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteTarget {
    /// Model name that replaces `model` in the request.
    pub model_rewrite: String,
    /// Weight of the target, 1 to 1,000,000. If all targets omit it, they get equal shares; if only some omit it, those
    /// get no requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Unknown fields, for example of later versions of the API.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The `status` of a rewrite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteStatus {
    /// Conditions of the rewrite, see [`condition`]. `Accepted` is the only type that upstream defines.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unknown_fields_survive_a_change_of_weights() {
        let mut object = json!({
            "apiVersion": "llm-d.ai/v1alpha2",
            "kind": "InferenceModelRewrite",
            "metadata": {
                "name": "rewrite",
                "uid": "1",
                "managedFields": [{"manager": "kubectl"}],
                "annotations": {"team": "x"},
            },
            "spec": {
                "poolRef": {"group": "inference.networking.k8s.io", "name": "pool"},
                "rules": [{
                    "matches": [{"model": {"type": "Exact", "value": "chat"}, "later": 1}],
                    "targets": [{"modelRewrite": "chat-v1", "weight": 90, "later": [2]}],
                    "later": {"three": 3},
                }],
                "later": "four",
            },
            "status": {"conditions": []},
        });
        let mut rewrite: InferenceModelRewrite = serde_json::from_value(object.clone()).unwrap();
        assert_eq!(serde_json::to_value(&rewrite).unwrap(), object);
        rewrite.spec.rules[0].targets[0].weight = Some(50);
        object["spec"]["rules"][0]["targets"][0]["weight"] = 50.into();
        assert_eq!(serde_json::to_value(&rewrite).unwrap(), object);
    }

    #[test]
    fn omitted_fields_stay_omitted() {
        let object = json!({
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
            "kind": "InferenceModelRewrite",
            "metadata": {"name": "generic"},
            "spec": {
                "poolRef": {"group": "inference.networking.k8s.io", "name": "pool"},
                "rules": [{"targets": [{"modelRewrite": "a"}, {"modelRewrite": "b"}]}],
            },
        });
        let rewrite: InferenceModelRewrite = serde_json::from_value(object.clone()).unwrap();
        assert!(rewrite.spec.rules[0].matches.is_empty());
        assert_eq!(rewrite.group(), Some(RewriteGroup::Legacy));
        assert_eq!(serde_json::to_value(&rewrite).unwrap(), object);
    }

    #[test]
    fn rewrite_of_the_guide_is_parsed_with_default_pool_group() {
        let text = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModelRewrite\nmetadata:\n  name: r\nspec:\n  poolRef:\n    name: pool\n  rules:\n  - matches:\n    - model: {type: Exact, value: chat}\n    targets:\n    - modelRewrite: v1\n      weight: 90\n";
        let rewrite: InferenceModelRewrite = crate::yaml::decode(text).unwrap();
        assert_eq!(rewrite.spec.pool_ref.group, "inference.networking.k8s.io");
        assert_eq!(rewrite.spec.rules[0].targets[0].weight, Some(90));
        assert_eq!(RewriteGroup::Current.api_version(), "llm-d.ai/v1alpha2");
    }
}
