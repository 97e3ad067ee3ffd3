//! The adapters file (`vLLMLoRAConfig`): which adapters a vLLM server must and must not hold. Same format as the
//! retired lora-syncer read. It may stand alone or wrapped in its ConfigMap.

pub mod edit;
mod parse;
mod text;

pub use parse::{AdaptersFileError, AdaptersFileErrorKind, InBothLists, ParsedAdaptersFile};
pub use text::AdaptersText;

use crate::{names::AdapterId, operator_directives::OperatorDirectives};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The file, read strictly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersFile {
    /// `name`; not used.
    pub name: Option<String>,
    /// Where vLLM listens, as the file says; `localhost` where absent.
    pub host: Option<String>,
    /// vLLM's port, as the file says; 8000 where absent.
    pub port: Option<u16>,
    /// The base model of entries that do not name one.
    pub default_base_model: Option<String>,
    /// Adapters that must be loaded.
    pub ensure_exist: Vec<AdapterEntry>,
    /// Adapters that must not be.
    pub ensure_not_exist: Vec<AdapterEntry>,
}

impl AdaptersFile {
    /// Ids that stand in both lists: they are left alone.
    pub fn in_both_lists(&self) -> impl Iterator<Item = &AdapterId> {
        let ids = self.ensure_exist.iter().map(|entry| &entry.id);
        ids.filter(|id| self.ensure_not_exist.iter().any(|entry| entry.id == **id))
    }
}

/// One entry of either list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterEntry {
    /// The adapter.
    pub id: AdapterId,
    /// Where it comes from: a path, or a hub name.
    pub source: String,
    /// Its base model, where named.
    pub base_model: Option<String>,
    /// Whether it holds the readiness of the server until it is verified.
    pub required: bool,
}

/// The hash of an adapters file and the operator's key beside it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ContentHash(#[cfg_attr(feature = "kube", schemars(length(max = 253)))] pub String);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a sidecar has to make true: one good reading of the file, and what the operator says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredAdapters {
    /// The user's file.
    pub file: AdaptersFile,
    /// The operator's key; none where no operator works on this file.
    pub directives: Option<OperatorDirectives>,
    /// The hash of both.
    pub hash: ContentHash,
}

/// The hash of the user's text and the operator's key as they stand in the ConfigMap: 16 hex digits of SHA-256.
pub fn content_hash(user_text: &str, directives_text: Option<&str>) -> ContentHash {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    hasher.update(user_text.as_bytes());
    if let Some(key_text) = directives_text {
        hasher.update([0]);
        hasher.update(key_text.as_bytes());
    }
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default());
    ContentHash(hasher.finalize().iter().take(8).flat_map(digits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_tells_texts_and_keys_apart() {
        assert_eq!(content_hash("", None).to_string(), "e3b0c44298fc1c14");
        let hashes = [
            content_hash("a", None),
            content_hash("a", Some("")),
            content_hash("a", Some("b")),
            content_hash("ab", None),
        ];
        for (index, hash) in hashes.iter().enumerate() {
            assert!(!hashes[..index].contains(hash));
        }
    }
}
