//! Download of one file: resumes where the last attempt stopped, and hashes the bytes as they arrive.

use super::client::HubClient;
use crate::{
    FetchError, FetchReason, HubRef,
    manifest::{FileHash, RemoteFile, hex},
};
use reqwest::StatusCode;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    io::SeekFrom,
    path::{Path, PathBuf},
};
use tokio::{
    fs::{self, File},
    io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt},
};

/// Size of the reads of a partial file.
const BUFFER_BYTES: usize = 64 << 10;

pub(super) struct Download<'a> {
    pub(super) client: &'a HubClient,
    pub(super) name: &'a HubRef,
    pub(super) commit: &'a str,
    pub(super) file: &'a RemoteFile,
    pub(super) folder: &'a Path,
}

impl Download<'_> {
    /// Downloads the file and returns its path. Calls `on_progress` with the number of bytes on disk.
    pub(super) async fn run(&self, on_progress: &(dyn Fn(u64) + Send + Sync)) -> Result<PathBuf, FetchError> {
        let path = self.folder.join(&self.file.name);
        if fs::metadata(&path).await.is_ok_and(|found| found.len() == self.file.size) {
            // The file got this name only after its hash was checked.
            return Ok(path);
        }
        let part = self.folder.join(format!("{}.part", self.file.name));
        let disk = |error: &std::io::Error| FetchError::disk(&part, error);
        let options = File::options().create(true).truncate(false).read(true).write(true).open(&part).await;
        let mut out = options.map_err(|error| disk(&error))?;
        let mut hasher = ContentHasher::new(&self.file.hash, self.file.size);
        let mut done = hash_existing(&mut out, &mut hasher).await.map_err(|error| disk(&error))?;
        if done > self.file.size {
            done = self.restart(&mut out, &mut hasher).await.map_err(|error| disk(&error))?;
        }
        on_progress(done);
        if done < self.file.size {
            let mut response = self.client.open_file(self.name, self.commit, &self.file.name, done).await?;
            if done > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                done = self.restart(&mut out, &mut hasher).await.map_err(|error| disk(&error))?;
            }
            while let Some(chunk) = self.client.next_chunk(self.name, &mut response).await? {
                let chunk = chunk.as_ref();
                done += chunk.len() as u64;
                if done > self.file.size {
                    return Err(self.discard_corrupt(&part, "it has more bytes than announced").await);
                }
                hasher.update(chunk);
                out.write_all(chunk).await.map_err(|error| disk(&error))?;
                on_progress(done);
            }
            out.flush().await.map_err(|error| disk(&error))?;
        }
        if done < self.file.size {
            return Err(self.discard_corrupt(&part, "it has fewer bytes than announced").await);
        }
        if !hasher.matches() {
            return Err(self.discard_corrupt(&part, "its hash differs from the announced one").await);
        }
        out.sync_all().await.map_err(|error| disk(&error))?;
        fs::rename(&part, &path).await.map_err(|error| disk(&error))?;
        Ok(path)
    }

    async fn restart(&self, out: &mut File, hasher: &mut ContentHasher) -> std::io::Result<u64> {
        out.set_len(0).await?;
        out.seek(SeekFrom::Start(0)).await?;
        *hasher = ContentHasher::new(&self.file.hash, self.file.size);
        Ok(0)
    }

    /// Deletes a corrupt partial file, so that the next attempt starts from the beginning.
    async fn discard_corrupt(&self, part: &Path, what: &str) -> FetchError {
        fs::remove_file(part).await.ok();
        let (file, name) = (&self.file.name, self.name);
        FetchError::new(FetchReason::Corrupt, format!("{file} of `{name}` is corrupt: {what}; it is downloaded again"))
    }
}

/// Hashes the bytes that an earlier attempt left and returns their number. Leaves the file positioned at its end.
async fn hash_existing(file: &mut File, hasher: &mut ContentHasher) -> std::io::Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut existing = 0;
    loop {
        match file.read(&mut buffer).await? {
            0 => return Ok(existing),
            read => {
                hasher.update(buffer.get(..read).unwrap_or_default());
                existing += read as u64;
            }
        }
    }
}

/// Hash of the bytes so far, and the announced hash.
struct ContentHasher {
    state: HashState,
    expected: String,
}

enum HashState {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl ContentHasher {
    fn new(announced: &FileHash, size: u64) -> Self {
        match announced {
            FileHash::Sha256(digits) => Self { state: HashState::Sha256(Sha256::new()), expected: digits.clone() },
            FileHash::GitBlob(digits) => {
                // Git prepends the kind and the size of a blob to its content.
                let hasher = Sha1::new_with_prefix(format!("blob {size}\0"));
                Self { state: HashState::GitBlob(hasher), expected: digits.clone() }
            }
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            HashState::Sha256(hasher) => hasher.update(bytes),
            HashState::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    fn matches(self) -> bool {
        let digest = match self.state {
            HashState::Sha256(hasher) => hasher.finalize().to_vec(),
            HashState::GitBlob(hasher) => hasher.finalize().to_vec(),
        };
        hex(&digest).eq_ignore_ascii_case(&self.expected)
    }
}
