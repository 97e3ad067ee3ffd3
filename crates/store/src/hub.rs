//! A hub that speaks the interface of Hugging Face's, as `huggingface.co` and its mirrors do.
//!
//! A fetch asks which commit a revision stands for and what that commit holds, takes the files that an adapter needs,
//! compares sizes and hashes, looks at configuration and tensors, and moves all of it into place. What a cut left is
//! used by the next try; it lies under the commit, so that a branch that moves never mixes two.

mod client;
mod download;

use crate::{
    Demands, Fetch, FetchError, FetchReason, Fetched, Files, Folder, HubName, Progress, Source, Store, Token, Told,
    adapter::{CONFIG, check_config, check_tensors, needed},
    manifest::{Manifest, Remote},
};
use client::Client;
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
const TURN: Duration = Duration::from_millis(100);

/// How much, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one adapter at most.
    pub largest: u64,
    /// Until a connection stands.
    pub connect: Duration,
    /// Nothing may be silent for longer: neither before an answer nor within it.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { largest: 16 << 30, connect: Duration::from_secs(10), stall: Duration::from_secs(30) }
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
    folder: Arc<Folder>,
    client: Client,
    limits: Limits,
    demands: Mutex<Demands>,
}

impl Hub {
    /// The hub at `endpoint`. It is not asked anything yet.
    pub fn open(folder: Arc<Folder>, endpoint: &str, token: Token, limits: Limits) -> Result<Self, HubError> {
        let client = Client::new(endpoint, token, limits).ok_or_else(|| HubError { endpoint: endpoint.to_owned() })?;
        Ok(Self { folder, client, limits, demands: Mutex::default() })
    }

    /// What the server beside us can take, from now on.
    pub fn demand(&self, demands: Demands) {
        *self.demands.lock().unwrap_or_else(PoisonError::into_inner) = demands;
    }

    fn demands(&self) -> Demands {
        self.demands.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn bring(&self, name: &HubName, told: Told<'_>) -> Result<Fetched, FetchError> {
        let place = self.folder.place(name);
        if let Some(fetched) = self.whole(&place, told) {
            return Ok(fetched);
        }
        let under_way = self.folder.under_way(name);
        let _turn = turn(&under_way).await?;
        // Whoever was before us may have brought it.
        if let Some(fetched) = self.whole(&place, told) {
            return Ok(fetched);
        }
        let manifest = self.look(name).await?;
        let folder = under_way.join(&manifest.commit);
        fs::create_dir_all(&folder).await.map_err(|error| FetchError::disk(&folder, &error))?;
        self.download(name, &manifest, &folder, told).await?;
        manifest.write(&folder)?;
        self.folder.keep(&folder, &place).map_err(|error| FetchError::disk(&place, &error))?;
        // Parts of older commits go with it; the next sweep would find them, too.
        fs::remove_dir_all(&under_way).await.ok();
        Ok(Fetched { path: place, commit: Some(manifest.commit) })
    }

    /// What stands at `place`, if it is whole.
    fn whole(&self, place: &Path, told: Told<'_>) -> Option<Fetched> {
        let manifest = self.folder.want(place)?;
        told(Progress { done: manifest.size(), total: Some(manifest.size()) });
        Some(Fetched { path: place.to_owned(), commit: Some(manifest.commit) })
    }

    /// What has to come.
    async fn look(&self, name: &HubName) -> Result<Manifest, FetchError> {
        let commit = self.client.commit(name).await?;
        let files = needed(&name.to_string(), self.client.files(name, &commit).await?)?;
        let manifest = Manifest { source: name.to_string(), commit, files };
        let (size, largest) = (manifest.size(), self.limits.largest);
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
        name: &HubName,
        manifest: &Manifest,
        folder: &Path,
        told: Told<'_>,
    ) -> Result<(), FetchError> {
        let total = manifest.size();
        let mut before = 0;
        for file in &manifest.files {
            let so_far = before;
            let tell = move |done| told(Progress { done: so_far + done, total: Some(total) });
            tell(0);
            let download = Download { client: &self.client, name, commit: &manifest.commit, file, folder };
            let path = download.run(&tell).await?;
            // What does not pass stays: it is what the hub has, and another try need not bring it again.
            self.check(name, file, &path).await?;
            before += file.size;
        }
        Ok(())
    }

    /// Whether a file that has come is one that vLLM could use.
    async fn check(&self, name: &HubName, file: &Remote, path: &Path) -> Result<(), FetchError> {
        let of = name.to_string();
        if file.name == CONFIG {
            let text = fs::read(path).await.map_err(|error| FetchError::disk(path, &error))?;
            check_config(&of, &text, &self.demands())?;
        } else if file.name.ends_with(".safetensors") {
            check_tensors(&of, path)?;
        }
        Ok(())
    }
}

impl Store for Hub {
    fn place(&self, source: &Source) -> PathBuf {
        match source {
            Source::Hub(name) => self.folder.place(name),
            Source::Path(_) => Files.place(source),
        }
    }

    fn fetch<'a>(&'a self, source: &'a Source, told: Told<'a>) -> Fetch<'a> {
        match source {
            Source::Hub(name) => Box::pin(self.bring(name, told)),
            Source::Path(_) => Files.fetch(source, told),
        }
    }
}

/// The right to work in `under_way`, until it is dropped; whoever has it, here or in another process, is waited for.
async fn turn(under_way: &Path) -> Result<File, FetchError> {
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
            Err(error) if error == rustix::io::Errno::WOULDBLOCK => sleep(TURN).await,
            Err(error) => return Err(disk(&error.into())),
        }
    }
}
