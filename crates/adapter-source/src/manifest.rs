//! Manifest of a downloaded adapter: its origin, and the sizes and hashes of its files.

use crate::FetchError;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
};

/// Name of the manifest in the adapter's directory. It is written last: a directory without it is incomplete.
pub(crate) const MANIFEST_FILE: &str = ".rollora.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// `source` of the entry, without `hf://`.
    pub(crate) source: String,
    /// Commit that the revision resolved to.
    pub(crate) commit: String,
    /// Every file, with the size and the hash that the hub announced.
    pub(crate) files: Vec<RemoteFile>,
}

/// One file of a repository, as the hub announced it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    /// Announced size in bytes.
    pub(crate) size: u64,
    pub(crate) hash: FileHash,
}

/// Announced hash of a file, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FileHash {
    /// Hash of a large file's bytes (git LFS).
    Sha256(String),
    /// Git object id (SHA-1) of a small file.
    GitBlob(String),
}

/// Formats bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        write!(digits, "{byte:02x}").ok();
    }
    digits
}

impl Manifest {
    /// Loads the manifest of `folder` if every file that it names exists with its size. Hashes were checked during the
    /// download; checking them again would read gigabytes at every start.
    pub(crate) fn load_complete(folder: &Path) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(&fs::read(folder.join(MANIFEST_FILE)).ok()?).ok()?;
        let is_complete = |file: &RemoteFile| {
            fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.is_file() && found.len() == file.size)
        };
        manifest.files.iter().all(is_complete).then_some(manifest)
    }

    /// Returns the size of all files, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Writes the manifest and syncs it and its directory to disk.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), FetchError> {
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(folder.join(MANIFEST_FILE))?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|error| FetchError::disk(&folder.join(MANIFEST_FILE), &error))
    }
}
