//! The adapters file (`vLLMLoRAConfig`): which adapters a vLLM server must have loaded and which it must not. The
//! format is that of lora-syncer. The file is either plain or wrapped in its ConfigMap.

pub mod edit;
mod parse;
mod text;

pub use parse::{AdaptersFileError, AdaptersFileErrorKind, InBothLists, ParsedAdaptersFile};
pub use text::AdaptersText;

use crate::{names::AdapterId, operator_directives::OperatorDirectives};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Content of an adapters file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptersFile {
    /// Key `name`, which Rollora ignores.
    pub name: Option<String>,
    /// Host of vLLM; `None` means `localhost`.
    pub host: Option<String>,
    /// Port of vLLM; `None` means 8000.
    pub port: Option<u16>,
    /// Base model of entries that do not name one.
    pub default_base_model: Option<String>,
    /// Adapters that servers must have loaded.
    pub ensure_exist: Vec<AdapterEntry>,
    /// Adapters that servers must not have loaded.
    pub ensure_not_exist: Vec<AdapterEntry>,
}

impl AdaptersFile {
    /// Returns the ids that are in both lists; these are neither loaded nor unloaded.
    pub fn in_both_lists(&self) -> impl Iterator<Item = &AdapterId> {
        let ids = self.ensure_exist.iter().map(|entry| &entry.id);
        ids.filter(|id| self.ensure_not_exist.iter().any(|entry| entry.id == **id))
    }
}

/// One entry of `ensureExist` or `ensureNotExist`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterEntry {
    /// Id under which the adapter is loaded.
    pub id: AdapterId,
    /// Path or hub name of the adapter.
    pub source: String,
    /// Base model of the adapter; `None` means `default_base_model`.
    pub base_model: Option<String>,
    /// Whether the server becomes ready only after the adapter is verified.
    pub required: bool,
}

/// Hash of an adapters file and of the key `rollora.yaml` next to it: 16 hexadecimal digits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ContentHash(#[cfg_attr(feature = "kube", schemars(length(max = 253)))] pub String);

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Desired state of a sidecar: one valid version of the adapters file and the operator's directives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredAdapters {
    /// Adapters file of the user.
    pub file: AdaptersFile,
    /// Content of the key `rollora.yaml`; `None` if no operator manages this file.
    pub directives: Option<OperatorDirectives>,
    /// Hash of the file and of the directives, see [`content_hash`].
    pub hash: ContentHash,
}

/// Computes the hash of the user's text and of the key `rollora.yaml` as written in the ConfigMap: the first 16
/// hexadecimal digits of SHA-256.
pub fn content_hash(user_text: &str, directives_text: Option<&str>) -> ContentHash {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    hasher.update(user_text.as_bytes());
    if let Some(directives_text) = directives_text {
        hasher.update([0]);
        hasher.update(directives_text.as_bytes());
    }
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or_default());
    ContentHash(hasher.finalize().iter().take(8).flat_map(digits).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_differs_with_either_text() {
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
