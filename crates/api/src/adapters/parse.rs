//! Reading the adapters file. Keys that are not known are allowed, as they always were; everything that is known is
//! read strictly, because a list that is half understood would unload what somebody needs.

use super::{AdapterEntry, AdaptersFile};
use crate::{
    names::{AdapterId, NameError},
    yaml::{self, YamlError},
};
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::{collections::HashMap, fmt};

/// An adapters file as it was read, with what a person should know about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedAdaptersFile {
    /// What the file says.
    pub file: AdaptersFile,
    /// Ids that stand in both lists. They are left alone: neither loaded nor unloaded.
    pub in_both_lists: Vec<InBothLists>,
}

/// An id that stands in both lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InBothLists {
    /// The id.
    pub id: AdapterId,
    /// Its line under `ensureExist`.
    pub exist_line: usize,
    /// Its line under `ensureNotExist`.
    pub not_exist_line: usize,
}

impl InBothLists {
    /// The same with other lines.
    pub(super) fn map_lines(self, line: impl Fn(usize) -> usize) -> Self {
        Self { exist_line: line(self.exist_line), not_exist_line: line(self.not_exist_line), ..self }
    }
}

impl fmt::Display for InBothLists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}: `{}` is under ensureNotExist and, on line {}, under ensureExist too: it is left as it is until one \
             of the two entries is removed",
            self.not_exist_line, self.id, self.exist_line
        )
    }
}

/// Why an adapters file cannot be read. The caller adds the file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdaptersFileError {
    line: Option<usize>,
    column: Option<usize>,
    /// What is wrong there.
    pub kind: AdaptersFileErrorKind,
}

impl AdaptersFileError {
    /// The line, from 1, where it is known.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// The column in characters, from 1, where it is known.
    pub fn column(&self) -> Option<usize> {
        self.column
    }

    /// The same with other lines.
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

/// What is wrong with an adapters file, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdaptersFileErrorKind {
    /// Not YAML, or not of the expected shape.
    #[error("{}{message}", if .field.is_empty() { String::new() } else { format!("{field}: ") })]
    Yaml {
        /// The field, where it is known.
        field: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// The root key is missing.
    #[error("`vLLMLoRAConfig` is missing: put the adapters under this key at the top of the file")]
    MissingRoot,
    /// An entry lacks a field.
    #[error("an entry of {list} has no `{field}`: write it{}", if *.list == "ensureNotExist" { ", also here" } else { "" })]
    MissingField {
        /// The list.
        list: &'static str,
        /// `id` or `source`.
        field: &'static str,
    },
    /// An id that cannot be used.
    #[error("{0}")]
    InvalidName(#[from] NameError),
    /// An id stands twice in one list.
    #[error("`{id}` is listed twice under {list}, first on line {first_line}: remove one of the two entries")]
    DuplicateId {
        /// The id.
        id: AdapterId,
        /// The list.
        list: &'static str,
        /// Where it stands first.
        first_line: usize,
    },
    /// The file is a ConfigMap without the key.
    #[error(
        "the ConfigMap's data has no key `{key}`, it has {present_keys}: add it, or name the right one in `adaptersRef.key`"
    )]
    MissingKey {
        /// The key that is looked for.
        key: String,
        /// The keys there are.
        present_keys: String,
    },
    /// The ConfigMap's key holds something else than text.
    #[error("`{key}` is not a text: write `{key}: |` and the adapters indented under it")]
    NotText {
        /// The key.
        key: String,
    },
}

impl From<YamlError> for AdaptersFileError {
    fn from(error: YamlError) -> Self {
        let problem = AdaptersFileErrorKind::Yaml { field: error.field, message: error.message };
        Self { line: error.line, column: error.column, kind: problem }
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
    /// Reads the text of the user's key. For a file that may also be a whole ConfigMap, see
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

/// One list, and on which line each id stands.
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
