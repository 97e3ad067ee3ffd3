//! Record of source, commit, file sizes and hashes that is stored with each fetched adapter.

use crate::FetchError;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
};

/// File name of the manifest. The manifest is written last: a folder without it is incomplete.
pub(crate) const MANIFEST_FILE: &str = ".rollora.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// `source` of the adapters-file entry, without `hf://`.
    pub(crate) source: String,
    /// Commit that the revision resolved to.
    pub(crate) commit: String,
    pub(crate) files: Vec<RemoteFile>,
}

/// One file of a repository, with the size and hash that the hub announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    pub(crate) size: u64,
    pub(crate) hash: FileHash,
}

/// Content hash that a hub announces for a file, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FileHash {
    /// SHA-256 of the content, announced for large files (LFS).
    Sha256(String),
    /// SHA-1 of the git blob, announced for small files.
    GitBlob(String),
}

/// Formats bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        write!(digits, "{byte:02x}").ok();
    }
    digits
}

impl Manifest {
    /// Reads the manifest of `folder`, if every file that it lists exists with its size. Hashes were compared during
    /// the download; reading gigabytes again at every start would not be worth its cost.
    pub(crate) fn load_complete(folder: &Path) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(&fs::read(folder.join(MANIFEST_FILE)).ok()?).ok()?;
        let is_complete = |file: &RemoteFile| {
            fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.is_file() && found.len() == file.size)
        };
        manifest.files.iter().all(is_complete).then_some(manifest)
    }

    /// Returns the total size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Writes the manifest to `folder` and syncs file and folder to disk.
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
