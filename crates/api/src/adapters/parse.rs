//! Parser of the adapters file. Unknown keys are allowed, as lora-syncer allowed them. Known keys are parsed strictly,
//! because a partly understood list would unload adapters that are in use.

use super::{AdapterEntry, AdaptersFile};
use crate::{
    names::{AdapterId, NameError},
    yaml::{self, YamlError},
};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::{collections::HashMap, fmt};

/// A parsed adapters file with its warnings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedAdaptersFile {
    /// Content of the file.
    pub file: AdaptersFile,
    /// Ids that are in both lists. They are neither loaded nor unloaded.
    pub in_both_lists: Vec<InBothLists>,
}

/// An id that is in both lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InBothLists {
    /// Id of the two entries.
    pub id: AdapterId,
    /// Line of the id under `ensureExist`, from 1.
    pub exist_line: usize,
    /// Line of the id under `ensureNotExist`, from 1.
    pub not_exist_line: usize,
}

impl InBothLists {
    /// Maps the line numbers, for a text that is part of a larger file.
    pub(super) fn map_lines(self, line: impl Fn(usize) -> usize) -> Self {
        Self { exist_line: line(self.exist_line), not_exist_line: line(self.not_exist_line), ..self }
    }
}

impl fmt::Display for InBothLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}: `{}` is under ensureNotExist and, on line {}, under ensureExist too: it is neither loaded nor \
             unloaded until one of the two entries is removed",
            self.not_exist_line, self.id, self.exist_line
        )
    }
}

/// Why an adapters file cannot be parsed. The caller adds the name of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptersFileError {
    line: Option<usize>,
    column: Option<usize>,
    /// Kind of the error, with its details.
    pub kind: AdaptersFileErrorKind,
}

impl AdaptersFileError {
    /// Returns the line, from 1, if it is known.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// Returns the column in characters, from 1, if it is known.
    pub fn column(&self) -> Option<usize> {
        self.column
    }

    /// Maps the line numbers, for a text that is part of a larger file.
    pub(super) fn map_lines(mut self, line: impl Fn(usize) -> usize) -> Self {
        self.line = self.line.map(&line);
        if let AdaptersFileErrorKind::DuplicateId { first_line, .. } = &mut self.kind {
            *first_line = line(*first_line);
        }
        self
    }

    pub(super) fn at(line: usize, kind: AdaptersFileErrorKind) -> Self {
        Self { line: Some(line), column: None, kind }
    }
}

impl fmt::Display for AdaptersFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        self.kind.fmt(f)
    }
}

impl std::error::Error for AdaptersFileError {}

/// Kind of an error in an adapters file. Its text says what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdaptersFileErrorKind {
    /// The text is not YAML, or does not have the expected structure.
    #[error("{}{message}", if .field.is_empty() { String::new() } else { format!("{field}: ") })]
    Yaml {
        /// Path of the field; empty if it is not known.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The root key `vLLMLoRAConfig` is missing.
    #[error("`vLLMLoRAConfig` is missing: put the adapters under this key at the top of the file")]
    MissingRoot,
    /// An entry lacks a field.
    #[error("an entry of {list} has no `{field}`: write it{}", if *.list == "ensureNotExist" { " there too" } else { "" })]
    MissingField {
        /// Key of the list: `ensureExist` or `ensureNotExist`.
        list: &'static str,
        /// Name of the missing field: `id` or `source`.
        field: &'static str,
    },
    /// An id is not a valid name.
    #[error("{0}")]
    InvalidName(#[from] NameError),
    /// An id is listed twice in one list.
    #[error("`{id}` is listed twice under {list}, first on line {first_line}: remove one of the two entries")]
    DuplicateId {
        /// Id of the two entries.
        id: AdapterId,
        /// Key of the list: `ensureExist` or `ensureNotExist`.
        list: &'static str,
        /// Line of the first entry, from 1.
        first_line: usize,
    },
    /// The file is a ConfigMap without the key.
    #[error(
        "the ConfigMap's data has no key `{key}`, it has {present_keys}: add it, or name the right one in `adaptersRef.key`"
    )]
    MissingKey {
        /// Key that the adapters file is expected under.
        key: String,
        /// Keys that the ConfigMap has, quoted and separated by commas, or `none`.
        present_keys: String,
    },
    /// The value of the ConfigMap's key is not a string.
    #[error("`{key}` is not a string: write `{key}: |` and the adapters indented under it")]
    NotText {
        /// Key in the ConfigMap's data.
        key: String,
    },
}

impl From<YamlError> for AdaptersFileError {
    fn from(error: YamlError) -> Self {
        let kind = AdaptersFileErrorKind::Yaml { field: error.field, message: error.message };
        Self { line: error.line, column: error.column, kind }
    }
}

#[derive(Deserialize)]
struct RawRoot {
    #[serde(rename = "vLLMLoRAConfig")]
    config: Option<RawConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    name: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    default_base_model: Option<String>,
    ensure_exist: Option<RawList>,
    ensure_not_exist: Option<RawList>,
}

#[derive(Deserialize)]
struct RawList {
    models: Option<Vec<Spanned<RawEntry>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawEntry {
    id: Option<Spanned<String>>,
    source: Option<String>,
    base_model: Option<String>,
    #[serde(default)]
    required: Option<bool>,
}

impl AdaptersFile {
    /// Parses the text of a plain adapters file. For a file that may also be a whole ConfigMap, see
    /// [`AdaptersText`](super::AdaptersText).
    pub fn parse(text: &str) -> Result<ParsedAdaptersFile, AdaptersFileError> {
        let raw: RawRoot = yaml::decode(yaml::without_bom(text))?;
        let config = raw.config.ok_or_else(|| AdaptersFileError::at(1, AdaptersFileErrorKind::MissingRoot))?;
        let exist = ParsedList::from_raw("ensureExist", config.ensure_exist)?;
        let not_exist = ParsedList::from_raw("ensureNotExist", config.ensure_not_exist)?;
        let in_both = exist
            .entries
            .iter()
            .filter_map(|entry| {
                let id = &entry.id;
                Some(InBothLists {
                    id: id.clone(),
                    exist_line: exist.line_of_id(id)?,
                    not_exist_line: not_exist.line_of_id(id)?,
                })
            })
            .collect();
        let file = AdaptersFile {
            name: config.name,
            host: config.host,
            port: config.port,
            default_base_model: config.default_base_model,
            ensure_exist: exist.entries,
            ensure_not_exist: not_exist.entries,
        };
        Ok(ParsedAdaptersFile { file, in_both_lists: in_both })
    }
}

/// One list, with the line of each id.
struct ParsedList {
    entries: Vec<AdapterEntry>,
    lines: HashMap<AdapterId, usize>,
}

impl ParsedList {
    fn from_raw(name: &'static str, raw: Option<RawList>) -> Result<Self, AdaptersFileError> {
        let models = raw.and_then(|list| list.models).unwrap_or_default();
        let mut list = Self { entries: Vec::with_capacity(models.len()), lines: HashMap::new() };
        for raw in models {
            let line = line_of(&raw);
            let missing =
                |field| AdaptersFileError::at(line, AdaptersFileErrorKind::MissingField { list: name, field });
            let raw = raw.value;
            let id = raw.id.ok_or_else(|| missing("id"))?;
            let line = line_of(&id);
            let id = AdapterId::new(id.value).map_err(|error| AdaptersFileError::at(line, error.into()))?;
            let source = raw.source.filter(|source| !source.is_empty()).ok_or_else(|| missing("source"))?;
            if let Some(first_line) = list.lines.insert(id.clone(), line) {
                return Err(AdaptersFileError::at(
                    line,
                    AdaptersFileErrorKind::DuplicateId { id, list: name, first_line },
                ));
            }
            let required = raw.required.unwrap_or_default();
            list.entries.push(AdapterEntry { id, source, base_model: raw.base_model, required });
        }
        Ok(list)
    }

    fn line_of_id(&self, id: &AdapterId) -> Option<usize> {
        self.lines.get(id).copied()
    }
}

fn line_of<T>(spanned: &Spanned<T>) -> usize {
    usize::try_from(spanned.referenced.line()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
