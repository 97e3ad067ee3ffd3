//! Adapter source for hubs with Hugging Face's API, such as `huggingface.co` and its mirrors.
//!
//! A fetch resolves the revision to a commit, lists the commit's files, downloads those that an adapter needs,
//! compares sizes and hashes, validates configuration and tensors, and moves the result to its final path. An
//! interrupted download is resumed by the next fetch. Partial files are stored by commit, so that a branch that moves
//! never mixes two commits.

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

/// Interval between attempts to lock a download that another fetch of the same adapter holds.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Size and time limits of fetches from a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLimits {
    /// Maximum size of one adapter, in bytes.
    pub max_bytes: u64,
    /// Limit for establishing a connection.
    pub connect_timeout: Duration,
    /// Maximum time without data, both before a response and within it.
    pub stall_timeout: Duration,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self { max_bytes: 16 << 30, connect_timeout: Duration::from_secs(10), stall_timeout: Duration::from_secs(30) }
    }
}

/// Reason why a hub cannot be used: its endpoint is not a plain HTTP or HTTPS URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{endpoint}` is not the URL of a hub: write it like https://huggingface.co")]
pub struct HubError {
    endpoint: String,
}

/// A hub, and the cache directory that its adapters are fetched to.
#[derive(Debug)]
pub struct Hub {
    cache_dir: Arc<CacheDir>,
    client: HubClient,
    limits: HubLimits,
    constraints: Mutex<ServerConstraints>,
}

impl Hub {
    /// Creates a source for the hub at `endpoint` without sending a request to it.
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

    /// Replaces the constraints of the vLLM server that fetched adapters are checked against.
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
        let partial_dir = self.cache_dir.partial_path(name);
        let _lock = lock_download(&partial_dir).await?;
        // The previous holder of the lock may have fetched it.
        if let Some(fetched) = self.cached(&path, progress) {
            return Ok(fetched);
        }
        let manifest = self.resolve_manifest(name).await?;
        let folder = partial_dir.join(&manifest.commit);
        fs::create_dir_all(&folder).await.map_err(|error| FetchError::disk(&folder, &error))?;
        self.download(name, &manifest, &folder, progress).await?;
        manifest.write(&folder)?;
        self.cache_dir.install(&folder, &path).map_err(|error| FetchError::disk(&path, &error))?;
        // This also removes partial files of older commits. If it fails, a later eviction removes them.
        fs::remove_dir_all(&partial_dir).await.ok();
        Ok(FetchedAdapter { path, commit: Some(manifest.commit) })
    }

    /// Returns the adapter at `path` and reports it as fetched, if it is complete.
    fn cached(&self, path: &Path, progress: ProgressSink<'_>) -> Option<FetchedAdapter> {
        let manifest = self.cache_dir.lookup(path)?;
        progress(FetchProgress { bytes: manifest.size(), total_bytes: Some(manifest.size()) });
        Some(FetchedAdapter { path: path.to_owned(), commit: Some(manifest.commit) })
    }

    async fn resolve_manifest(&self, name: &HubRef) -> Result<Manifest, FetchError> {
        let commit = self.client.resolve_commit(name).await?;
        let files = select_files(&name.to_string(), self.client.list_files(name, &commit).await?)?;
        let manifest = Manifest { source: name.to_string(), commit, files };
        let (size, max_bytes) = (manifest.size(), self.limits.max_bytes);
        if size > max_bytes {
            return Err(FetchError::new(
                FetchReason::TooLarge,
                format!(
                    "`{name}` has {size} bytes, more than the limit of {max_bytes}: raise the sidecar's \
                     --adapter-max-size, if this is an adapter"
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
        let mut completed = 0;
        for file in &manifest.files {
            let before = completed;
            let on_progress = move |done| progress(FetchProgress { bytes: before + done, total_bytes: Some(total) });
            on_progress(0);
            let download = Download { client: &self.client, name, commit: &manifest.commit, file, folder };
            let path = download.run(&on_progress).await?;
            // A file that fails validation is kept: it is what the hub has, so the next fetch need not download it
            // again.
            self.check_file(name, file, &path).await?;
            completed += file.size;
        }
        Ok(())
    }

    /// Validates a downloaded file as far as its kind allows.
    async fn check_file(&self, name: &HubRef, file: &RemoteFile, path: &Path) -> Result<(), FetchError> {
        let adapter = name.to_string();
        if file.name == CONFIG_FILE {
            let config = fs::read(path).await.map_err(|error| FetchError::disk(path, &error))?;
            check_config(&adapter, &config, &self.constraints())?;
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

/// Locks `partial_dir` until the returned file is dropped. Waits while another fetch, in this or another process, holds
/// the lock.
async fn lock_download(partial_dir: &Path) -> Result<File, FetchError> {
    let disk = |error: &std::io::Error| FetchError::disk(partial_dir, error);
    loop {
        fs::create_dir_all(partial_dir).await.map_err(|error| disk(&error))?;
        let path = partial_dir.join("lock");
        let lock = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(lock) => lock,
            // The previous holder finished and removed the folder after it was created above.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(disk(&error)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // If the folder was removed meanwhile, this locks an unlinked file and protects nothing.
            Ok(()) if path.exists() => return Ok(lock),
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => sleep(LOCK_POLL_INTERVAL).await,
            Err(error) => return Err(disk(&error.into())),
        }
    }
}
