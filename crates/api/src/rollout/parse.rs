//! Parses a Rollout from a file. Each error names the line, the field and the fix.

use super::Rollout;
use crate::{
    names::API_VERSION,
    yaml::{self, tree::Node},
};
use std::fmt;

/// Errors of a Rollout file. The caller adds the name of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutError {
    /// All errors that were found, at least one.
    pub diagnostics: Vec<Diagnostic>,
}

/// One error of a Rollout file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line number, from 1; `None` if it is not known.
    pub line: Option<usize>,
    /// Path of the field, for example `spec.strategy.steps[0].setWeight`; empty if the error concerns no field.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl RolloutError {
    fn single(line: Option<usize>, field: &str, message: impl Into<String>) -> Self {
        Self { diagnostics: vec![Diagnostic { line, field: field.to_owned(), message: message.into() }] }
    }

    /// Returns the line of the first error, from 1, if it is known.
    pub fn line(&self) -> Option<usize> {
        self.diagnostics.first().and_then(|diagnostic| diagnostic.line)
    }
}

impl fmt::Display for RolloutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{diagnostic}")?;
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
    /// Parses and validates one Rollout, reporting all errors of validation together.
    pub fn from_yaml(text: &str) -> Result<Self, RolloutError> {
        let text = yaml::without_bom(text);
        let root = Node::parse(text).ok().flatten();
        let line_of = |path: &str| root.as_ref().map(|root| root.line_of(path));
        if let Some(root) = &root {
            check_kind(root)?;
        }
        let rollout: Self =
            yaml::decode(text).map_err(|error| RolloutError::single(error.line, &error.field, error.message))?;
        let diagnostics: Vec<Diagnostic> = rollout
            .validate()
            .into_iter()
            .map(|error| Diagnostic { line: line_of(&error.path), field: error.path, message: error.message })
            .collect();
        if diagnostics.is_empty() { Ok(rollout) } else { Err(RolloutError { diagnostics }) }
    }
}

/// Returns the line, from 1, of `field` in the text of a Rollout, or of the innermost parent that exists. Returns
/// `None` if the text is not YAML.
pub fn line_of_field(text: &str, field: &str) -> Option<usize> {
    Node::parse(yaml::without_bom(text)).ok().flatten().map(|root| root.line_of(field))
}

/// Rejects other kinds of objects first: errors about their fields would only confuse.
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
