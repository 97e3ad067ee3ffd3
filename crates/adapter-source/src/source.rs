//! Parser for the `source` of an adapters-file entry.

use std::fmt;

/// Parsed `source` of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceRef {
    /// A path in vLLM's file system, unchanged.
    Path(String),
    /// A repository of a hub: `org/name` or `org/name@revision`, with or without the prefix `hf://`.
    Hub(HubRef),
}

/// Repository and optional revision on a hub. `Display` writes it as `org/name@revision`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubRef {
    /// Name of the repository, `org/name`.
    pub repository: String,
    /// Branch, tag or commit; `None` means `main`.
    pub revision: Option<String>,
}

impl SourceRef {
    /// Parses the text of an entry.
    ///
    /// A relative path of exactly two segments is indistinguishable from a hub name and is parsed as one.
    pub fn parse(text: &str) -> Self {
        let (name, has_scheme) = match text.strip_prefix("hf://") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let (repository, revision) = match name.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision.to_owned())),
            None => (name, None),
        };
        let mut parts = repository.split('/');
        let is_name = |part: Option<&str>| part.is_some_and(|part| !part.is_empty() && !part.starts_with(['.', '~']));
        let is_org_and_name = is_name(parts.next()) && is_name(parts.next()) && parts.next().is_none();
        if is_org_and_name || has_scheme {
            Self::Hub(HubRef { repository: repository.to_owned(), revision })
        } else {
            Self::Path(text.to_owned())
        }
    }

    /// Returns whether this refers to a repository of a hub.
    pub fn is_hub(&self) -> bool {
        matches!(self, Self::Hub(_))
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}
