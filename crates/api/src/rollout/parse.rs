//! Reading a Rollout from a file: everything that is wrong is said with its line, its field and the fix.

use super::Rollout;
use crate::{
    names::API_VERSION,
    yaml::{self, tree::Node},
};
use std::fmt;

/// Why a Rollout cannot be used. The caller adds the file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutError {
    /// Everything that is wrong, at least one.
    pub diagnostics: Vec<Diagnostic>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The line, from 1; none where it is not known.
    pub line: Option<usize>,
    /// The path of the field, for example `spec.strategy.steps[0].setWeight`; empty where there is none.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl RolloutError {
    fn single(line: Option<usize>, field: &str, message: impl Into<String>) -> Self {
        Self { diagnostics: vec![Diagnostic { line, field: field.to_owned(), message: message.into() }] }
    }

    /// The line of the first thing that is wrong.
    pub fn line(&self) -> Option<usize> {
        self.diagnostics.first().and_then(|problem| problem.line)
    }
}

impl fmt::Display for RolloutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.diagnostics.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for RolloutError {}

impl Rollout {
    /// Reads and validates one Rollout.
    pub fn from_yaml(text: &str) -> Result<Self, RolloutError> {
        let text = yaml::without_bom(text);
        let root = Node::parse(text).ok().flatten();
        let line_of = |path: &str| root.as_ref().map(|root| root.line_of(path));
        if let Some(root) = &root {
            check_kind(root)?;
        }
        let rollout: Self =
            yaml::decode(text).map_err(|error| RolloutError::single(error.line, &error.field, error.message))?;
        let problems: Vec<Diagnostic> = rollout
            .validate()
            .into_iter()
            .map(|error| Diagnostic { line: line_of(&error.path), field: error.path, message: error.message })
            .collect();
        if problems.is_empty() { Ok(rollout) } else { Err(RolloutError { diagnostics: problems }) }
    }
}

/// The line, from 1, on which `field` stands in a Rollout's text, or where it would have to stand.
pub fn line_of_field(text: &str, field: &str) -> Option<usize> {
    Node::parse(yaml::without_bom(text)).ok().flatten().map(|root| root.line_of(field))
}

/// Says first that the file is something else: everything after that would only confuse.
fn check_kind(root: &Node) -> Result<(), RolloutError> {
    for (field, expected) in [("kind", "Rollout"), ("apiVersion", API_VERSION)] {
        let found = root.get(field).and_then(Node::text);
        if let Some(found) = found.filter(|found| *found != expected) {
            let message = format!("`{found}` is not a Rollout of this version: write `{field}: {expected}`");
            return Err(RolloutError::single(Some(root.line_of(field)), field, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
