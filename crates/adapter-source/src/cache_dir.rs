//! Cache directory of fetched adapters: one subfolder for each adapter, and a subfolder of partial downloads.
//!
//! Every process that uses the directory holds a shared lock on it. A process removes adapters only while it is the
//! only user, because it cannot know which adapters the servers of other sidecars have loaded.

use crate::{
    HubRef,
    eviction::{CachedAdapter, EvictionPolicy, select_evictions},
    manifest::{self, Manifest, hex},
};
use jiff::Timestamp;
use rustix::fs::{FlockOperation, Timespec, Timestamps, UTIME_NOW, flock, futimens};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// Subfolder of partial downloads.
const PARTIAL_DIR: &str = ".under-way";
/// A folder is moved here before its files are removed, so that no reader finds it incomplete.
const TRASH_DIR: &str = ".removed";
const LOCK_FILE: &str = ".lock";
/// Locked by the process that tries to become the only user, see [`CacheDir::evict`].
const SWEEP_LOCK_FILE: &str = ".sweeper";
/// A partial download that was not continued for this long is removed.
const PARTIAL_MAX_AGE: Duration = Duration::from_hours(24);

/// Reason why a folder cannot be used as the cache directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot use the adapters directory {} ({source}): it must be a writable volume that vLLM mounts at the same path",
    path.display()
)]
pub struct CacheDirError {
    path: PathBuf,
    source: io::Error,
}

/// Cache directory of fetched adapters, with this process's shared lock on it.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    lock: File,
    /// Serializes [`lookup`](Self::lookup) and removal within this process, so that no adapter is removed between its
    /// lookup and its mark as wanted.
    mutation_lock: Mutex<()>,
}

impl CacheDir {
    /// Opens the directory, creates it if needed, and takes a shared lock. Waits while another process removes
    /// adapters.
    pub fn open(path: &Path) -> Result<Self, CacheDirError> {
        let open = || -> io::Result<Self> {
            fs::create_dir_all(path.join(PARTIAL_DIR))?;
            let lock = open_lock_file(&path.join(LOCK_FILE))?;
            match flock(&lock, FlockOperation::NonBlockingLockShared) {
                // Another process holds the exclusive lock for a short eviction.
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => flock(&lock, FlockOperation::LockShared)?,
                other => other?,
            }
            Ok(Self { path: path.to_owned(), lock, mutation_lock: Mutex::new(()) })
        };
        open().map_err(|source| CacheDirError { path: path.to_owned(), source })
    }

    /// Returns the folder of a hub's adapter. Its name is readable; the hash at the end distinguishes adapters whose
    /// names differ only in characters that are replaced by dashes.
    pub(crate) fn adapter_path(&self, name: &HubRef) -> PathBuf {
        self.path.join(dir_name(name))
    }

    /// Returns the folder of partial downloads of a hub's adapter.
    pub(crate) fn partial_path(&self, name: &HubRef) -> PathBuf {
        self.path.join(PARTIAL_DIR).join(dir_name(name))
    }

    /// Returns the manifest of the adapter at `path`, if it is complete, and marks the adapter as wanted now. An
    /// eviction that already selected it leaves it in place.
    pub(crate) fn lookup(&self, path: &Path) -> Option<Manifest> {
        let _guard = self.mutation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = Manifest::load_complete(path)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        if let Ok(file) = File::options().append(true).open(path.join(manifest::MANIFEST_FILE)) {
            // Without write access, nothing can be removed either.
            futimens(&file, &Timestamps { last_access: now, last_modification: now }).ok();
        }
        Some(manifest)
    }

    /// Moves a finished download from `from` to `path` and syncs the directory, so that the move survives a power
    /// failure.
    pub(crate) fn install(&self, from: &Path, path: &Path) -> io::Result<()> {
        if path.exists() {
            // The caller found this copy to be incomplete.
            self.remove(path)?;
        }
        fs::rename(from, path)?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes the adapters that `policy` selects, and abandoned partial downloads. Returns the folders of the removed
    /// adapters. Marks the adapters in `protected` as wanted now. Removes nothing while another process uses the
    /// directory.
    pub fn evict(
        &self,
        protected: &BTreeSet<PathBuf>,
        policy: &EvictionPolicy,
        now: Timestamp,
    ) -> io::Result<Vec<PathBuf>> {
        let cached = self.cached_adapters()?;
        for path in cached.iter().map(|adapter| &adapter.path).filter(|path| protected.contains(*path)) {
            let manifest = File::options().append(true).open(path.join(manifest::MANIFEST_FILE))?;
            manifest.set_modified(now.into())?;
        }
        // A failed upgrade of a shared lock to an exclusive one may drop the shared lock for a moment. The sweep lock
        // allows one process at a time to try, so that the others keep their shared locks: if several tried, one could
        // get the exclusive lock while the others have dropped theirs.
        let sweep_lock = open_lock_file(&self.path.join(SWEEP_LOCK_FILE))?;
        if flock(&sweep_lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Vec::new());
        }
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            flock(&self.lock, FlockOperation::LockShared)?;
            return Ok(Vec::new());
        }
        let evicted = select_evictions(&cached, protected, policy, now);
        let removed = self.remove_evicted(cached.iter().filter(|adapter| evicted.contains(&adapter.path)), now);
        flock(&self.lock, FlockOperation::LockShared)?;
        removed
    }

    fn remove_evicted<'a>(
        &self,
        evicted: impl Iterator<Item = &'a CachedAdapter>,
        now: Timestamp,
    ) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for adapter in evicted {
            let _guard = self.mutation_lock.lock().unwrap_or_else(PoisonError::into_inner);
            if last_wanted(&adapter.path)? == adapter.last_wanted {
                self.remove(&adapter.path)?;
                removed.push(adapter.path.clone());
            }
        }
        for entry in fs::read_dir(self.path.join(PARTIAL_DIR))? {
            let path = entry?.path();
            if last_modified(&path)? + PARTIAL_MAX_AGE <= now {
                self.remove(&path)?;
            }
        }
        let trash = self.path.join(TRASH_DIR);
        if trash.exists() {
            fs::remove_dir_all(trash)?;
        }
        Ok(removed)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let trash = self.path.join(TRASH_DIR);
        fs::create_dir_all(&trash)?;
        let trashed = trash.join(path.file_name().unwrap_or_default());
        if trashed.exists() {
            fs::remove_dir_all(&trashed)?;
        }
        fs::rename(path, &trashed)?;
        fs::remove_dir_all(trashed)
    }

    /// Lists the complete adapters. Ignores folders without a manifest, which this crate did not create.
    fn cached_adapters(&self) -> io::Result<Vec<CachedAdapter>> {
        let mut cached = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let Some(manifest) = Manifest::load_complete(&path) else { continue };
            cached.push(CachedAdapter { size: manifest.size(), last_wanted: last_wanted(&path)?, path });
        }
        Ok(cached)
    }
}

fn open_lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// Returns when the adapter at `path` was last wanted: the modification time of its manifest.
fn last_wanted(path: &Path) -> io::Result<Timestamp> {
    Timestamp::try_from(fs::metadata(path.join(manifest::MANIFEST_FILE))?.modified()?).map_err(io::Error::other)
}

/// Returns the newest modification time of a file or folder and everything in it.
fn last_modified(path: &Path) -> io::Result<Timestamp> {
    let metadata = fs::metadata(path)?;
    let mut newest = Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(last_modified(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn dir_name(name: &HubRef) -> String {
    let text = name.to_string();
    let replace = |letter: char| if letter.is_ascii_alphanumeric() || ".-_".contains(letter) { letter } else { '-' };
    let mut dir_name: String = text.replace('/', "--").chars().map(replace).take(96).collect();
    dir_name.push('-');
    dir_name.extend(hex(&Sha256::digest(text.as_bytes())).chars().take(12));
    dir_name.trim_start_matches('.').to_owned()
}
