//! What a hub wants to see before it gives something private.

use std::{fmt, io, path::PathBuf};

/// Where the token comes from. Never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum HubToken {
    /// Public repositories alone.
    #[default]
    None,
    /// The token itself.
    Value(String),
    /// A file that holds it; read again for every fetch, so a new token needs no restart.
    File(PathBuf),
}

impl HubToken {
    /// The token as it is now.
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
            Self::None => f.write_str("Token::None"),
            Self::Value(_) => f.write_str("Token::Value(…)"),
            Self::File(path) => f.debug_tuple("Token::File").field(path).finish(),
        }
    }
}
