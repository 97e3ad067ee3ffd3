//! Parser of an entry's `source`, by its text alone.

use std::fmt;

/// Reference to the source of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceRef {
    /// Path that vLLM sees, as written.
    Path(String),
    /// Repository of a hub: `org/name` or `org/name@revision`, optionally after `hf://`.
    Hub(HubRef),
}

/// Reference to a repository of a hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubRef {
    /// Name of the repository, in the form `org/name`.
    pub repository: String,
    /// Branch, tag or commit; `None` means the branch `main`.
    pub revision: Option<String>,
}

impl SourceRef {
    /// Parses the text of an entry's `source`.
    ///
    /// A relative path of exactly two parts looks like a hub name and is parsed as one.
    pub fn parse(text: &str) -> Self {
        let (name, marked) = match text.strip_prefix("hf://") {
            Some(name) => (name, true),
            None => (text, false),
        };
        let (repository, revision) = match name.split_once('@') {
            Some((repository, revision)) => (repository, Some(revision.to_owned())),
            None => (name, None),
        };
        let mut parts = repository.split('/');
        let plain = |part: Option<&str>| part.is_some_and(|part| !part.is_empty() && !part.starts_with(['.', '~']));
        let two = plain(parts.next()) && plain(parts.next()) && parts.next().is_none();
        if two || marked {
            Self::Hub(HubRef { repository: repository.to_owned(), revision })
        } else {
            Self::Path(text.to_owned())
        }
    }

    /// Returns whether the source is a repository of a hub.
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
