//! Response of a router's `GET /rules`: the active rule of each model. The operator reads it as proof that a router
//! applies the weights.

use crate::{names::ModelName, rewrite::RewriteTarget};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rules that one router applies.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesReport {
    /// API groups whose rewrites the router reads.
    pub groups: Vec<String>,
    /// Active rule of each model that a rule matches exactly.
    pub models: BTreeMap<String, ActiveRule>,
    /// Active generic rule, which applies to all other models; `None` if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic: Option<ActiveRule>,
    /// Time of the last request to each target; the time of the report while a request is in flight. Includes requests
    /// that generate one token, which vLLM's metrics do not show.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last_used: BTreeMap<String, jiff::Timestamp>,
    /// Models that more than one rule matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlaps: Vec<Overlap>,
}

/// Model that more than one rule matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlap {
    /// Name of the model; `None` for generic rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// API group, namespace and name of the rewrite whose rule is active.
    pub active: String,
    /// Rewrites whose rules have no effect on the model, in order of precedence.
    pub shadowed: Vec<String>,
}

impl RulesReport {
    /// Returns the rule that the router applies to a request for `model`.
    pub fn rule(&self, model: &ModelName) -> Option<&ActiveRule> {
        self.models.get(model.as_str()).or(self.generic.as_ref())
    }
}

/// One active rule and the rewrite that it comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveRule {
    /// API group of the rewrite.
    pub group: String,
    /// Namespace and name of the rewrite; only the name under `rollora local`, which has no namespaces.
    pub rewrite: String,
    /// UID of the rewrite, which changes when it is deleted and created again.
    pub uid: String,
    /// Sequences from the rewrite's annotations `weights.rollora.dev/<Rollout UID>`, by Rollout UID.
    #[serde(default)]
    pub stamps: BTreeMap<String, i64>,
    /// Targets of the rule, in its order.
    pub targets: Vec<RewriteTarget>,
}
