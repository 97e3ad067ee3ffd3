//! What stands beside the files of a fetched adapter: where they came from, and what they should be.

use crate::FetchError;
use serde::{Deserialize, Serialize};
use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
};

/// Its name in the adapter's folder. It is written last: a folder without it is not whole.
pub(crate) const MANIFEST_FILE: &str = ".rollora.json";

/// The manifest of one adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    /// The entry's `source`, without `hf://`.
    pub(crate) source: String,
    /// The commit that its revision stood for.
    pub(crate) commit: String,
    /// Every file, with what the hub said of it.
    pub(crate) files: Vec<RemoteFile>,
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RemoteFile {
    pub(crate) name: String,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) hash: FileHash,
}

/// How a hub names the content of a file, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum FileHash {
    /// A large file's, of its bytes.
    Sha256(String),
    /// A small file's: git's name of the blob.
    GitBlob(String),
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String cannot fail.
        write!(digits, "{byte:02x}").ok();
    }
    digits
}

impl Manifest {
    /// The manifest of `folder`, if everything that it names is there in its size. Hashes were compared when the files
    /// came; reading gigabytes again at every start would help nobody.
    pub(crate) fn load_complete(folder: &Path) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(&fs::read(folder.join(MANIFEST_FILE)).ok()?).ok()?;
        let there = |file: &RemoteFile| {
            fs::metadata(folder.join(&file.name)).is_ok_and(|found| found.is_file() && found.len() == file.size)
        };
        manifest.files.iter().all(there).then_some(manifest)
    }

    /// Bytes in all.
    pub(crate) fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Written to the disk, not only to its cache.
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
