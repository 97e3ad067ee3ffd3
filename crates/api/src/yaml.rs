//! Strict YAML parsing, with errors that name the line, the field and the fix.
//!
//! serde-saphyr decodes the text into typed structs. [`tree`] parses the same text a second time into nodes with byte
//! ranges, which are used for error messages and edits, never for decoding.

pub(crate) mod tree;

use serde::de::DeserializeOwned;
use serde_saphyr::{Error, granit_parser::ScanError};
use tree::{Node, TreeError};

/// Error of a text that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct YamlError {
    /// Line of the error, from 1; `None` if it is not known.
    pub(crate) line: Option<usize>,
    /// Column in characters, from 1; `None` if it is not known.
    pub(crate) column: Option<usize>,
    /// Path of the field, for example `spec.strategy.steps[0].setWeight`; empty if the error concerns no field.
    pub(crate) field: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

/// Removes a byte order mark, which YAML allows.
pub(crate) fn without_bom(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Decodes exactly one document, without duplicate keys. `text` must not begin with a byte order mark.
pub(crate) fn decode<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    let options = serde_saphyr::options! { with_snippet: false, strict_booleans: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| to_yaml_error(&error, text))
}

/// Formats `text` as a scalar in double quotes. Escapes characters that may be invisible or that some parsers take for
/// a line break.
pub(crate) fn quoted(text: &str) -> String {
    let escaped = |character: char| match (character, u32::from(character)) {
        ('"' | '\\', _) => format!("\\{character}"),
        (' '..='~', _) => character.to_string(),
        _ if character.is_alphanumeric() => character.to_string(),
        (_, code @ 0..=0xffff) => format!("\\u{code:04x}"),
        (_, code) => format!("\\U{code:08x}"),
    };
    format!("\"{}\"", text.chars().map(escaped).collect::<String>())
}

fn to_yaml_error(error: &Error, text: &str) -> YamlError {
    let tree = match Node::parse(text) {
        Ok(root) => root,
        Err(TreeError::Scan(error)) => return scan_error(&error),
        Err(TreeError::SecondDocument(_)) => None,
    };
    let error = error.without_snippet();
    let location = error.location();
    let position = |number: u64| usize::try_from(number).ok().filter(|number| *number > 0);
    let mut line = location.and_then(|location| position(location.line()));
    let mut column = location.and_then(|location| position(location.column()));
    let mut field = String::new();
    let offset = location.and_then(|location| location.span().byte_offset());
    let offset = offset.and_then(|offset| usize::try_from(offset).ok());
    if let (Some(root), Some(offset)) = (tree, offset) {
        field = match (error, root.mapping_with_key_at(offset)) {
            // serde reports a missing field at the last key of its mapping; the mapping's own line is more useful.
            (Error::SerdeMissingField { field, .. }, Some((mapping, start))) => {
                (line, column) = (Some(start), None);
                tree::join_path(&mapping, field)
            }
            (Error::SerdeUnknownField { field, .. }, Some((mapping, _))) => tree::join_path(&mapping, field),
            _ => root.path_at(offset),
        };
    }
    YamlError { line, column, field, message: error_message(error) }
}

/// Converts an error of the scanner. The field is not known, because the text is not YAML.
fn scan_error(error: &ScanError) -> YamlError {
    let marker = error.marker();
    YamlError {
        line: Some(marker.line()),
        column: Some(marker.col() + 1),
        field: String::new(),
        message: format!("this is not YAML: {}", error.info()),
    }
}

fn error_message(error: &Error) -> String {
    match error {
        Error::MultipleDocuments { .. } => {
            "a second YAML document begins here: keep one document in the file".to_owned()
        }
        Error::SerdeUnknownField { field, expected, .. } => {
            format!("unknown field `{field}`{}", suggestion(field, expected))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            format!("unknown value `{variant}`{}", suggestion(variant, expected))
        }
        Error::SerdeMissingField { field, .. } => format!("`{field}` is missing: add it"),
        Error::DuplicateMappingKey { key, .. } => {
            format!("the key `{}` is written twice: remove one of the two", key.as_deref().unwrap_or("?"))
        }
        Error::InvalidScalar { ty, .. } => format!("{} is expected here", expected_value(ty)),
        Error::InvalidBooleanStrict { .. } => format!("{} is expected here", expected_value("bool")),
        Error::NullIntoString { .. } => "a string is expected here: write one, or remove the key".to_owned(),
        Error::Unexpected { expected: "mapping start", .. } => {
            "keys with values (`key: value`) are expected here".to_owned()
        }
        Error::Unexpected { expected: "sequence start", .. } => "a list (`- item`) is expected here".to_owned(),
        Error::Unexpected { expected: "string scalar" | "scalar", .. } => "a string is expected here".to_owned(),
        other => message_without_location(other),
    }
}

/// Returns the message of the error without the location that it appends.
fn message_without_location(error: &Error) -> String {
    let message = error.to_string();
    match error.location() {
        Some(at) => {
            let suffix = format!(" at line {}, column {}", at.line(), at.column());
            message.strip_suffix(&suffix).unwrap_or(&message).to_owned()
        }
        None => message,
    }
}

fn expected_value(rust_type: &str) -> &'static str {
    match rust_type {
        "bool" | "boolean" => "`true` or `false`",
        "u16" => "a whole number from 0 to 65535",
        name if name.starts_with(['i', 'u']) => "a whole number",
        name if name.starts_with('f') => "a number",
        _ => "another kind of value",
    }
}

/// Suggests the nearest of the `known` names, or lists all of them if none is near.
fn suggestion(written: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (edit_distance(written, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + name.len() / 4 => format!(": did you mean `{name}`?"),
        Some(_) => format!(": expected one of {}", known.join(", ")),
        None => ": remove it".to_owned(),
    }
}

/// Computes the Levenshtein distance, ignoring case.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, a) in left.to_lowercase().chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for (column, b) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
