//! Which of several rules goes first, and for which models: said once, for routers, which do it, and for the operator,
//! which tells people.
//!
//! A rewrite of the current group goes before every legacy one; within a group an exact match goes before a generic one,
//! then the older object, then namespace and name, then the order of the rules.

use super::{InferenceModelRewrite, RewriteMatch, RewriteRule};
use jiff::Timestamp;
use std::{collections::BTreeSet, fmt};

/// The precedence of a rewrite in its group: the least goes first. The order of the fields counts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RewritePrecedence {
    created: Option<Timestamp>,
    namespace: Option<String>,
    name: String,
}

impl RewritePrecedence {
    /// The rank of `rewrite`.
    pub fn of(rewrite: &InferenceModelRewrite) -> Self {
        let metadata = &rewrite.metadata;
        Self {
            created: metadata.creation_timestamp,
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
        }
    }

    /// The rewrite's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Namespace and name.
impl fmt::Display for RewritePrecedence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl RewriteRule {
    /// The models that it matches exactly, each once; one none where it matches every name. A kind of match that is not
    /// known matches nothing: it must not turn the rule into a generic one.
    pub fn models(&self) -> Vec<Option<&str>> {
        if self.matches.is_empty() {
            return vec![None];
        }
        let is_exact = |known: &&RewriteMatch| known.model.type_.as_deref().is_none_or(|kind| kind == "Exact");
        let models: BTreeSet<&str> =
            self.matches.iter().filter(is_exact).map(|exact| exact.model.value.as_str()).collect();
        models.into_iter().map(Some).collect()
    }
}
