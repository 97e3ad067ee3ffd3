//! Precedence of rewrite rules: shared by the routers, which apply it, and the operator, which reports it.
//!
//! A rewrite of the current group precedes every legacy one. Within a group, an exact match precedes a generic one;
//! then the older object, then namespace and name, then the order of the rules decide.

use super::{InferenceModelRewrite, RewriteMatch, RewriteRule};
use jiff::Timestamp;
use std::{collections::BTreeSet, fmt};

/// Precedence of a rewrite in its group; the lowest value comes first. The derived order depends on the order of the
/// fields.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RewritePrecedence {
    created: Option<Timestamp>,
    namespace: Option<String>,
    name: String,
}

impl RewritePrecedence {
    /// Returns the precedence of `rewrite`.
    pub fn of(rewrite: &InferenceModelRewrite) -> Self {
        let metadata = &rewrite.metadata;
        Self {
            created: metadata.creation_timestamp,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        }
    }

    /// Returns the name of the rewrite, without its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Formats namespace and name as `namespace/name`.
impl fmt::Display for RewritePrecedence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl RewriteRule {
    /// Returns the models that the rule matches exactly, each once, or a single `None` if it matches every model. A
    /// match of an unknown kind matches nothing, because it must not turn the rule into a generic one.
    pub fn models(&self) -> Vec<Option<&str>> {
        if self.matches.is_empty() {
            return vec![None];
        }
        let is_exact =
            |rule_match: &&RewriteMatch| rule_match.model.type_.as_deref().is_none_or(|kind| kind == "Exact");
        let models: BTreeSet<&str> =
            self.matches.iter().filter(is_exact).map(|exact| exact.model.value.as_str()).collect();
        models.into_iter().map(Some).collect()
    }
}
