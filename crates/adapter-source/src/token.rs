//! Access token for a hub.

use std::{fmt, io, path::PathBuf};

/// Access token for private repositories of a hub, or the file that contains it. `Debug` does not print the token.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum HubToken {
    /// No token: only public repositories can be fetched.
    #[default]
    None,
    /// The token itself, as text.
    Value(String),
    /// A file that contains the token. It is read again for every request, so a new token needs no restart.
    File(PathBuf),
}

impl HubToken {
    /// Reads the current token; `None` if there is none or it is empty.
    pub(crate) fn read(&self) -> io::Result<Option<String>> {
        let text = match self {
            Self::None => return Ok(None),
            Self::Value(value) => value.clone(),
            Self::File(path) => std::fs::read_to_string(path)?,
        };
        Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty()))
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("HubToken::None"),
            Self::Value(_) => f.write_str("HubToken::Value(…)"),
            Self::File(path) => f.debug_tuple("HubToken::File").field(path).finish(),
        }
    }
}
