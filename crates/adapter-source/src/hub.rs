//! A hub that speaks the interface of Hugging Face's, as `huggingface.co` and its mirrors do.
//!
//! A fetch asks which commit a revision stands for and what that commit holds, takes the files that an adapter needs,
//! compares sizes and hashes, looks at configuration and tensors, and moves all of it into place. What a cut left is
//! used by the next try; it lies under the commit, so that a branch that moves never mixes two.

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

/// Another fetch of the same adapter is waited for in such steps.
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How much, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HubLimits {
    /// Bytes of one adapter at most.
    pub max_bytes: u64,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// Nothing may be silent for longer: neither before an answer nor within it.
    pub stall_timeout: Duration,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self { max_bytes: 16 << 30, connect_timeout: Duration::from_secs(10), stall_timeout: Duration::from_secs(30) }
    }
}

/// Why a hub cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{endpoint}` is no address of a hub: write it like https://huggingface.co")]
pub struct HubError {
    endpoint: String,
}

/// A hub, and the folder that it is brought to.
#[derive(Debug)]
pub struct Hub {
    cache_dir: Arc<CacheDir>,
    client: HubClient,
    limits: HubLimits,
    constraints: Mutex<ServerConstraints>,
}

impl Hub {
    /// The hub at `endpoint`. It is not asked anything yet.
    pub fn open(folder: Arc<CacheDir>, endpoint: &str, token: HubToken, limits: HubLimits) -> Result<Self, HubError> {
        let client =
            HubClient::new(endpoint, token, limits).ok_or_else(|| HubError { endpoint: endpoint.to_owned() })?;
        Ok(Self { cache_dir: folder, client, limits, constraints: Mutex::default() })
    }

    /// What the server beside us can take, from now on.
    pub fn set_constraints(&self, demands: ServerConstraints) {
        *self.constraints.lock().unwrap_or_else(PoisonError::into_inner) = demands;
    }

    fn constraints(&self) -> ServerConstraints {
        self.constraints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn fetch_repository(&self, name: &HubRef, told: ProgressSink<'_>) -> Result<FetchedAdapter, FetchError> {
        let place = self.cache_dir.adapter_path(name);
        if let Some(fetched) = self.cached(&place, told) {
            return Ok(fetched);
        }
        let under_way = self.cache_dir.partial_path(name);
        let _turn = lock_download(&under_way).await?;
        // Whoever was before us may have brought it.
        if let Some(fetched) = self.cached(&place, told) {
            return Ok(fetched);
        }
        let manifest = self.resolve_manifest(name).await?;
        let folder = under_way.join(&manifest.commit);
        fs::create_dir_all(&folder).await.map_err(|error| FetchError::disk(&folder, &error))?;
        self.download(name, &manifest, &folder, told).await?;
        manifest.write(&folder)?;
        self.cache_dir.install(&folder, &place).map_err(|error| FetchError::disk(&place, &error))?;
        // Parts of older commits go with it; the next sweep would find them, too.
        fs::remove_dir_all(&under_way).await.ok();
        Ok(FetchedAdapter { path: place, commit: Some(manifest.commit) })
    }

    /// What stands at `place`, if it is whole.
    fn cached(&self, place: &Path, told: ProgressSink<'_>) -> Option<FetchedAdapter> {
        let manifest = self.cache_dir.lookup(place)?;
        told(FetchProgress { bytes: manifest.size(), total_bytes: Some(manifest.size()) });
        Some(FetchedAdapter { path: place.to_owned(), commit: Some(manifest.commit) })
    }

    /// What has to come.
    async fn resolve_manifest(&self, name: &HubRef) -> Result<Manifest, FetchError> {
        let commit = self.client.resolve_commit(name).await?;
        let files = select_files(&name.to_string(), self.client.list_files(name, &commit).await?)?;
        let manifest = Manifest { source: name.to_string(), commit, files };
        let (size, largest) = (manifest.size(), self.limits.max_bytes);
        if size > largest {
            return Err(FetchError::new(
                FetchReason::TooLarge,
                format!(
                    "`{name}` has {size} bytes and {largest} are allowed: give the sidecar a higher --adapter-max-size, \
                     if this is an adapter"
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
        told: ProgressSink<'_>,
    ) -> Result<(), FetchError> {
        let total = manifest.size();
        let mut before = 0;
        for file in &manifest.files {
            let so_far = before;
            let tell = move |done| told(FetchProgress { bytes: so_far + done, total_bytes: Some(total) });
            tell(0);
            let download = Download { client: &self.client, name, commit: &manifest.commit, file, folder };
            let path = download.run(&tell).await?;
            // What does not pass stays: it is what the hub has, and another try need not bring it again.
            self.check_file(name, file, &path).await?;
            before += file.size;
        }
        Ok(())
    }

    /// Whether a file that has come is one that vLLM could use.
    async fn check_file(&self, name: &HubRef, file: &RemoteFile, path: &Path) -> Result<(), FetchError> {
        let of = name.to_string();
        if file.name == CONFIG_FILE {
            let text = fs::read(path).await.map_err(|error| FetchError::disk(path, &error))?;
            check_config(&of, &text, &self.constraints())?;
        } else if file.name.ends_with(".safetensors") {
            check_tensors(&of, path)?;
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

    fn fetch<'a>(&'a self, source: &'a SourceRef, told: ProgressSink<'a>) -> FetchFuture<'a> {
        match source {
            SourceRef::Hub(name) => Box::pin(self.fetch_repository(name, told)),
            SourceRef::Path(_) => PathSource.fetch(source, told),
        }
    }
}

/// The right to work in `under_way`, until it is dropped; whoever has it, here or in another process, is waited for.
async fn lock_download(under_way: &Path) -> Result<File, FetchError> {
    let disk = |error: &std::io::Error| FetchError::disk(under_way, error);
    loop {
        fs::create_dir_all(under_way).await.map_err(|error| disk(&error))?;
        let path = under_way.join("lock");
        let lock = match File::options().create(true).truncate(false).write(true).open(&path) {
            Ok(lock) => lock,
            // Whoever was before us has ended between the two lines.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(disk(&error)),
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // The lock of a folder that was removed meanwhile is nobody's.
            Ok(()) if path.exists() => return Ok(lock),
            Ok(()) => {}
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => sleep(LOCK_POLL_INTERVAL).await,
            Err(error) => return Err(disk(&error.into())),
        }
    }
}
