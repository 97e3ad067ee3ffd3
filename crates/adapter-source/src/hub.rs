//! Source of adapters on a hub with the API of Hugging Face, such as `huggingface.co` and its mirrors.
//!
//! A fetch resolves the revision to a commit, lists the files of the commit, downloads those that an adapter needs,
//! compares sizes and hashes, validates configuration and tensors, and moves the result to its final path. An
//! interrupted download is resumed by the next attempt. Partial downloads are stored by commit, so that files of two
//! commits are never mixed when a branch moves.

mod client;
mod download;

use crate::{
    AdapterSource, CacheDir, FetchError, FetchFuture, FetchProgress, FetchReason, FetchedAdapter, HubRef, HubToken,
    PathSource, ProgressSink, ServerConstraints, SourceRef,
    manifest::{Manifest, RemoteFile},
    validate::{CONFIG_FILE, check_config, check_tensors, select_files},
};
use client::HubClient;
use download::Download;
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{fs, time::sleep};

/// How often a fetch checks whether another fetch of the same adapter has ended.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Limits of downloads from a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLimits {
    /// Maximum size of one adapter, in bytes.
    pub max_bytes: u64,
    /// Maximum time to establish a connection.
    pub connect_timeout: Duration,
    /// Maximum time without any data, both before a response and within it.
    pub stall_timeout: Duration,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self { max_bytes: 16 << 30, connect_timeout: Duration::from_secs(10), stall_timeout: Duration::from_secs(30) }
    }
}

/// Error of an endpoint that is not a valid URL of a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{endpoint}` is not the URL of a hub: write it like https://huggingface.co")]
pub struct HubError {
    endpoint: String,
}

/// A hub, and the directory that its adapters are downloaded to.
#[derive(Debug)]
pub struct Hub {
    cache_dir: Arc<CacheDir>,
    client: HubClient,
    limits: HubLimits,
    constraints: Mutex<ServerConstraints>,
}

impl Hub {
    /// Creates a source for the hub at `endpoint`. Sends no request yet.
    pub fn open(
        cache_dir: Arc<CacheDir>,
        endpoint: &str,
        token: HubToken,
        limits: HubLimits,
    ) -> Result<Self, HubError> {
        let client =
            HubClient::new(endpoint, token, limits).ok_or_else(|| HubError { endpoint: endpoint.to_owned() })?;
        Ok(Self { cache_dir, client, limits, constraints: Mutex::default() })
    }

    /// Sets the constraints of the server that later fetches are checked against.
    pub fn set_constraints(&self, constraints: ServerConstraints) {
        *self.constraints.lock().unwrap_or_else(PoisonError::into_inner) = constraints;
    }

    fn constraints(&self) -> ServerConstraints {
        self.constraints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn fetch_repository(&self, name: &HubRef, progress: ProgressSink<'_>) -> Result<FetchedAdapter, FetchError> {
        let path = self.cache_dir.adapter_path(name);
        if let Some(fetched) = self.cached(&path, progress) {
            return Ok(fetched);
        }
        let partial = self.cache_dir.partial_path(name);
        let _lock = lock_download(&partial).await?;
        // The previous holder of the lock may have completed the download.
        if let Some(fetched) = self.cached(&path, progress) {
            return Ok(fetched);
        }
        let manifest = self.resolve_manifest(name).await?;
        let folder = partial.join(&manifest.commit);
        fs::create_dir_all(&folder).await.map_err(|error| FetchError::disk(&folder, &error))?;
        self.download(name, &manifest, &folder, progress).await?;
        manifest.write(&folder)?;
        self.cache_dir.install(&folder, &path).map_err(|error| FetchError::disk(&path, &error))?;
        // Also removes partial downloads of older commits. If this fails, the next eviction removes them.
        fs::remove_dir_all(&partial).await.ok();
        Ok(FetchedAdapter { path, commit: Some(manifest.commit) })
    }

    /// Returns the adapter at `path` if it is complete.
    fn cached(&self, path: &Path, progress: ProgressSink<'_>) -> Option<FetchedAdapter> {
        let manifest = self.cache_dir.lookup(path)?;
        progress(FetchProgress { bytes: manifest.size(), total_bytes: Some(manifest.size()) });
        Some(FetchedAdapter { path: path.to_owned(), commit: Some(manifest.commit) })
    }

    /// Resolves the revision and lists the files to download.
    async fn resolve_manifest(&self, name: &HubRef) -> Result<Manifest, FetchError> {
        let commit = self.client.resolve_commit(name).await?;
        let files = select_files(&name.to_string(), self.client.list_files(name, &commit).await?)?;
        let manifest = Manifest { source: name.to_string(), commit, files };
        let (size, max_bytes) = (manifest.size(), self.limits.max_bytes);
        if size > max_bytes {
            return Err(FetchError::new(
                FetchReason::TooLarge,
                format!(
                    "`{name}` has {size} bytes, and at most {max_bytes} are allowed: if this is an adapter, raise the \
                     sidecar's --adapter-max-size"
                ),
            ));
        }
        Ok(manifest)
    }

    async fn download(
        &self,
        name: &HubRef,
        manifest: &Manifest,
        folder: &Path,
        progress: ProgressSink<'_>,
    ) -> Result<(), FetchError> {
        let total = manifest.size();
        let mut before = 0;
        for file in &manifest.files {
            let earlier_files = before;
            let on_progress =
                move |done| progress(FetchProgress { bytes: earlier_files + done, total_bytes: Some(total) });
            on_progress(0);
            let download = Download { client: &self.client, name, commit: &manifest.commit, file, folder };
            let path = download.run(&on_progress).await?;
            // A file that fails the check stays: it is what the hub has, so the next attempt need not download it
            // again.
            self.check_file(name, file, &path).await?;
            before += file.size;
        }
        Ok(())
    }

    /// Checks that vLLM could use a downloaded file.
    async fn check_file(&self, name: &HubRef, file: &RemoteFile, path: &Path) -> Result<(), FetchError> {
        let adapter = name.to_string();
        if file.name == CONFIG_FILE {
            let text = fs::read(path).await.map_err(|error| FetchError::disk(path, &error))?;
            check_config(&adapter, &text, &self.constraints())?;
        } else if file.name.ends_with(".safetensors") {
            check_tensors(&adapter, path)?;
        }
        Ok(())
    }
}

impl AdapterSource for Hub {
    fn local_path(&self, source: &SourceRef) -> PathBuf {
        match source {
            SourceRef::Hub(name) => self.cache_dir.adapter_path(name),
            SourceRef::Path(_) => PathSource.local_path(source),
        }
    }

    fn fetch<'a>(&'a self, source: &'a SourceRef, progress: ProgressSink<'a>) -> FetchFuture<'a> {
        match source {
            SourceRef::Hub(name) => Box::pin(self.fetch_repository(name, progress)),
            SourceRef::Path(_) => PathSource.fetch(source, progress),
        }
    }
}

/// Acquires the inter-process lock of the download directory `partial`; waits until it is free. The lock is released
/// when the file is dropped.
async fn lock_download(partial: &Path) -> Result<File, FetchError> {
    let disk = |error: &std::io::Error| FetchError::disk(partial, error);
    loop {
        fs::create_dir_all(partial).await.map_err(|error| disk(&error))?;
        let path = partial.join("lock");
        let lock = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(lock) => lock,
            // The previous holder completed its download and removed the directory between the two calls.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(disk(&error)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // A lock in a directory that was removed meanwhile excludes no other process.
            Ok(()) if path.exists() => return Ok(lock),
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => sleep(LOCK_POLL_INTERVAL).await,
            Err(error) => return Err(disk(&error.into())),
        }
    }
}
