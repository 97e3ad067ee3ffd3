//! What `GET /rules` of a router answers: per model the rule in force. The operator reads it as proof.

use crate::{names::ModelName, rewrite::RewriteTarget};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The rules in force at one router.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RulesReport {
    /// The API groups that are read.
    pub groups: Vec<String>,
    /// Per exactly matched model the rule in force.
    pub models: BTreeMap<String, ActiveRule>,
    /// The generic rule in force, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generic: Option<ActiveRule>,
    /// Per target when a request was last on its way there; the time of the report while one is in flight. Sees what
    /// vLLM's metrics do not: requests of one token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub last_used: BTreeMap<String, jiff::Timestamp>,
    /// Models that more than one rule matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlaps: Vec<Overlap>,
}

/// A model that more than one rule matches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overlap {
    /// The model; none for generic rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Group, namespace and name of the rewrite whose rule is in force.
    pub active: String,
    /// The rewrites whose rules have no effect on it, in the order in which they would follow.
    pub shadowed: Vec<String>,
}

impl RulesReport {
    /// The rule that a request for `model` gets.
    pub fn rule(&self, model: &ModelName) -> Option<&ActiveRule> {
        self.models.get(model.as_str()).or(self.generic.as_ref())
    }
}

/// One rule in force.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActiveRule {
    /// The rewrite's API group.
    pub group: String,
    /// The rewrite's namespace and name, or its name alone on one machine.
    pub rewrite: String,
    /// The rewrite's UID.
    pub uid: String,
    /// The annotations `weights.rollora.dev/<Rollout UID>`: Rollout UID to sequence.
    #[serde(default)]
    pub stamps: BTreeMap<String, i64>,
    /// The targets, in the rule's order.
    pub targets: Vec<RewriteTarget>,
}
