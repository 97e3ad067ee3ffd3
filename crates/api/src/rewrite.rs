//! InferenceModelRewrite, of the legacy and the current API group: the schemas are the same but for the group.
//! Fields that Rollora does not know are kept on read-modify-write.

pub mod condition;
mod precedence;

pub use precedence::RewritePrecedence;

use crate::{condition::Condition, metadata::ObjectMeta};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The lowest and the highest weight of a target. 0 cannot be written: such a target is left out.
pub const WEIGHT_RANGE: std::ops::RangeInclusive<i32> = 1..=1_000_000;

/// Which API group an object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RewriteGroup {
    /// `llm-d.ai`, which wins where both have a rule for a model.
    #[serde(rename = "llm-d.ai")]
    Current,
    /// `inference.networking.x-k8s.io`, of the Gateway API inference extension up to v1.5.
    #[serde(rename = "inference.networking.x-k8s.io")]
    Legacy,
}

impl RewriteGroup {
    /// The group of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Current, Self::Legacy].into_iter().find(|group| group.name() == name)
    }

    /// The group's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "llm-d.ai",
            Self::Legacy => "inference.networking.x-k8s.io",
        }
    }

    /// Group and version, as in `apiVersion`.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Current => "llm-d.ai/v1alpha2",
            Self::Legacy => "inference.networking.x-k8s.io/v1alpha2",
        }
    }
}

/// One rewrite object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InferenceModelRewrite {
    /// Group and version; says which [`RewriteGroup`] this is.
    pub api_version: String,
    /// `InferenceModelRewrite`.
    pub kind: String,
    /// Name, UID, version, annotations.
    pub metadata: ObjectMeta,
    /// What is rewritten.
    pub spec: RewriteSpec,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RewriteStatus>,
}

impl InferenceModelRewrite {
    /// The object's group; none where `apiVersion` is of neither.
    pub fn group(&self) -> Option<RewriteGroup> {
        let group = self.api_version.split_once('/').map_or("", |(group, _)| group);
        RewriteGroup::from_name(group)
    }
}

/// `spec` of a rewrite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteSpec {
    /// The pool whose requests are rewritten.
    pub pool_ref: PoolRef,
    /// Rules; the first that matches wins.
    #[serde(default)]
    pub rules: Vec<RewriteRule>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A reference to an InferencePool of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolRef {
    /// The pool's group.
    #[serde(default = "default_pool_group")]
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub group: String,
    /// The pool's kind; `InferencePool`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 63)))]
    pub kind: Option<String>,
    /// The pool's name.
    #[cfg_attr(feature = "kube", schemars(length(min = 1, max = 253)))]
    pub name: String,
}

impl PoolRef {
    /// Whether both name the same pool: there is one kind of pool in a group, which may be named or not.
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

/// One rule: requests that match are sent to one of the targets.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteRule {
    /// Any of these matches; none at all is a generic match: everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<RewriteMatch>,
    /// Where requests go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<RewriteTarget>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteMatch {
    /// The `model` of the request.
    pub model: ModelMatch,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How `model` is compared.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelMatch {
    /// `Exact`, the default and only kind.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<String>,
    /// The name; compared byte for byte.
    pub value: String,
}

/// One target of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteTarget {
    /// The name that `model` becomes.
    pub model_rewrite: String,
    /// 1 to 1,000,000. All omitted: equal shares. Some omitted: those get nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// `status` of a rewrite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RewriteStatus {
    /// Conditions; `Accepted` is the only type upstream names.
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_that_are_not_known_survive_a_change_of_weights() {
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
    fn what_upstream_leaves_out_is_left_out() {
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
    fn the_guide_s_rewrite_is_read_and_the_group_defaults() {
        let text = "apiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModelRewrite\nmetadata:\n  name: r\nspec:\n  poolRef:\n    name: pool\n  rules:\n  - matches:\n    - model: {type: Exact, value: chat}\n    targets:\n    - modelRewrite: v1\n      weight: 90\n";
        let rewrite: InferenceModelRewrite = crate::yaml::decode(text).unwrap();
        assert_eq!(rewrite.spec.pool_ref.group, "inference.networking.k8s.io");
        assert_eq!(rewrite.spec.rules[0].targets[0].weight, Some(90));
        assert_eq!(RewriteGroup::Current.api_version(), "llm-d.ai/v1alpha2");
    }
}
