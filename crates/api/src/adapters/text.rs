//! The adapters file as stored: plain, or wrapped in its ConfigMap.
//!
//! Invariant: replacing the inner text changes only those lines of the ConfigMap that differ.

use super::{AdaptersFile, AdaptersFileError, AdaptersFileErrorKind, ParsedAdaptersFile, edit::EditError};
use crate::yaml::{
    self,
    tree::{Node, NodeKind, TreeError},
};
use serde_saphyr::granit_parser::ScalarStyle;
use std::collections::{HashMap, VecDeque};

/// The whole text of an adapters file, with the position of the user's text in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptersText {
    text: String,
    config_map_value: Option<ConfigMapValue>,
}

/// Position of the user's text in its ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ConfigMapValue {
    key: String,
    inner: String,
    /// Line of the key, from 1.
    key_line: usize,
    /// Lines of the value; `None` if it is not a literal block (`|`).
    block: Option<LiteralBlock>,
}

/// A literal block, which has exactly one line for each line of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LiteralBlock {
    /// Index of the first line, from 0.
    first_line: usize,
    line_count: usize,
    /// Indentation of each line that is not blank.
    indent: String,
}

impl AdaptersText {
    /// Wraps the text of a file. If it is a ConfigMap, the user's text is the value of `key` in its data.
    pub fn new(text: impl Into<String>, key: &str) -> Result<Self, AdaptersFileError> {
        let text = text.into();
        let config_map_value = match Node::parse(yaml::without_bom(&text)) {
            Ok(Some(root)) if root.get("kind").and_then(Node::text) == Some("ConfigMap") => {
                Some(ConfigMapValue::find(&text, &root, key)?)
            }
            Err(TreeError::SecondDocument(line)) => return Err(second_document_error(line)),
            // `parse` reports text that is not YAML, with better messages.
            Ok(_) | Err(TreeError::Scan(_)) => None,
        };
        Ok(Self { text, config_map_value })
    }

    /// Returns the whole text, including the ConfigMap around the user's text.
    pub fn full_text(&self) -> &str {
        &self.text
    }

    /// Returns the user's text: the value of the ConfigMap's key, or the whole text of a plain file.
    pub fn inner(&self) -> &str {
        self.config_map_value.as_ref().map_or(&self.text, |value| &value.inner)
    }

    /// Parses the user's text. Line numbers in errors and in [`ParsedAdaptersFile::in_both_lists`] count from the start
    /// of the whole file.
    pub fn parse(&self) -> Result<ParsedAdaptersFile, AdaptersFileError> {
        let line = |line| self.file_line(line);
        let mut parsed = AdaptersFile::parse(self.inner()).map_err(|error| error.map_lines(line))?;
        parsed.in_both_lists = parsed.in_both_lists.into_iter().map(|both| both.map_lines(line)).collect();
        Ok(parsed)
    }

    /// Converts line `inner` of the user's text to a line of the whole file, both from 1.
    pub fn file_line(&self, inner: usize) -> usize {
        match &self.config_map_value {
            None => inner,
            Some(ConfigMapValue { block: Some(block), .. }) => block.first_line + inner,
            Some(ConfigMapValue { key_line, .. }) => *key_line,
        }
    }

    /// Converts the line numbers of an edit error from the user's text to the whole file.
    pub fn map_error_lines(&self, error: EditError) -> EditError {
        error.map_lines(|line| self.file_line(line))
    }

    /// Returns the whole text with the user's text replaced by `inner`. Fails if the ConfigMap does not have the text
    /// as a literal block, or if the result would not parse back to `inner`.
    pub fn with_inner(&self, inner: &str) -> Result<String, EditError> {
        let Some(value) = &self.config_map_value else { return Ok(inner.to_owned()) };
        if inner == value.inner {
            return Ok(self.text.clone());
        }
        let block = value
            .block
            .as_ref()
            .ok_or_else(|| EditError::NotABlock { key: value.key.clone(), line: value.key_line })?;
        let edited = block.replace(&self.text, &value.inner, inner);
        let read_back = Self::new(edited.clone(), &value.key);
        // The block's header decides whether blank lines at the end are part of the value; they are kept in any case.
        let content = |text: &str| text.trim_end_matches('\n').to_owned();
        match read_back.as_ref().map(|text| content(text.inner())) {
            Ok(read_back) if read_back == content(inner) => Ok(edited),
            _ => Err(EditError::RoundTripMismatch { what: format!("the block under `{}`", value.key) }),
        }
    }
}

fn second_document_error(line: usize) -> AdaptersFileError {
    let message = "a second YAML document begins here: keep one document in the file".to_owned();
    AdaptersFileError::at(line, AdaptersFileErrorKind::Yaml { field: String::new(), message })
}

impl ConfigMapValue {
    fn find(text: &str, root: &Node, key: &str) -> Result<Self, AdaptersFileError> {
        let data = root.entry("data");
        let Some((key_node, value)) = data.and_then(|(_, data)| data.entry(key)) else {
            let present_keys = data.map(|(_, data)| list_keys(data)).unwrap_or_default();
            let present_keys = if present_keys.is_empty() { "none".to_owned() } else { present_keys };
            let line = data.map_or(root.line, |(data, _)| data.line);
            return Err(AdaptersFileError::at(
                line,
                AdaptersFileErrorKind::MissingKey { key: key.to_owned(), present_keys },
            ));
        };
        let NodeKind::Scalar { value: inner, style } = &value.kind else {
            return Err(AdaptersFileError::at(key_node.line, AdaptersFileErrorKind::NotText { key: key.to_owned() }));
        };
        let literal = *style == ScalarStyle::Literal;
        let block = if literal { LiteralBlock::find(text, inner, value.line) } else { None };
        Ok(Self { key: key.to_owned(), inner: inner.clone(), key_line: key_node.line, block })
    }
}

fn list_keys(data: &Node) -> String {
    let NodeKind::Mapping { entries, .. } = &data.kind else { return String::new() };
    let names: Vec<_> = entries.iter().filter_map(|(key, _)| key.text()).map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

impl LiteralBlock {
    /// Finds the block with the value `inner`. Its first line that is not blank is line `line`, from 1, of `text`.
    fn find(text: &str, inner: &str, line: usize) -> Option<Self> {
        let values: Vec<&str> = inner.lines().collect();
        let blank = values.iter().position(|value| !value.is_empty())?;
        let first = (line - 1).checked_sub(blank)?;
        let lines: Vec<&str> = text.lines().skip(first).take(values.len()).collect();
        let indent = lines.get(blank)?.strip_suffix(values.get(blank)?)?;
        let faithful = lines.len() == values.len()
            && lines.iter().zip(&values).all(|(line, value)| match line.strip_prefix(indent) {
                Some(rest) => rest == *value,
                None => value.is_empty() && line.trim().is_empty(),
            });
        faithful.then(|| Self { first_line: first, line_count: values.len(), indent: indent.to_owned() })
    }

    /// Returns `text` with the lines of `old` replaced by those of `inner`. Lines that both have keep their bytes.
    fn replace(&self, text: &str, old: &str, inner: &str) -> String {
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let (before, rest) = lines.split_at(self.first_line.min(lines.len()));
        let (block, after) = rest.split_at(self.line_count.min(rest.len()));
        let ending = if block.first().is_some_and(|line| line.ends_with("\r\n")) { "\r\n" } else { "\n" };
        // Lines with equal values differ only in blank lines and line endings; these are reused in their order.
        let mut kept: HashMap<&str, VecDeque<&str>> = HashMap::new();
        for (line, value) in block.iter().zip(old.lines()) {
            kept.entry(value).or_default().push_back(line);
        }
        let line = |value: &str| match kept.get_mut(value).and_then(VecDeque::pop_front) {
            Some(line) => line.to_owned(),
            None if value.is_empty() => ending.to_owned(),
            None => format!("{}{value}{ending}", self.indent),
        };
        let mut edited: Vec<String> = inner.lines().map(line).collect();
        // A file without a final newline stays without one; a line that is no longer the last one gets one.
        let open_end = after.is_empty() && !text.ends_with('\n');
        let last = edited.len().saturating_sub(1);
        for (index, line) in edited.iter_mut().enumerate() {
            if open_end && index == last {
                line.truncate(line.trim_end_matches(['\r', '\n']).len());
            } else if !line.ends_with('\n') {
                line.push_str(ending);
            }
        }
        [before.concat(), edited.concat(), after.concat()].concat()
    }
}

#[cfg(test)]
mod tests;
