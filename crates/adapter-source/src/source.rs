//! What the `source` of an entry is, as far as its text tells.

use std::fmt;

/// Where an adapter comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceRef {
    /// A path that vLLM sees, as written.
    Path(String),
    /// A repository of a hub: `org/name`, `org/name@revision`, or the same behind `hf://`.
    Hub(HubRef),
}

/// A repository of a hub.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HubRef {
    /// `org/name`.
    pub repository: String,
    /// A branch, tag or commit; none means the hub's `main`.
    pub revision: Option<String>,
}

impl SourceRef {
    /// Reads the text of an entry.
    ///
    /// A relative path of exactly two parts looks like a hub name and is taken for one.
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

    /// Whether it is a hub's.
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
