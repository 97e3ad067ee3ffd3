//! Access token of a hub, which private repositories require.

use std::{fmt, io, path::PathBuf};

/// Where the token of a hub comes from. Its `Debug` output does not contain the token.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum HubToken {
    /// No token: only public repositories can be downloaded.
    #[default]
    None,
    /// Value of the token.
    Value(String),
    /// File that contains the token. It is read again for every request, so a new token needs no restart.
    File(PathBuf),
}

impl HubToken {
    /// Returns the current token; `None` if there is none or the file is empty.
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
