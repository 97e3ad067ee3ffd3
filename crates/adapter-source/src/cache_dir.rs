//! The directory of downloaded adapters that vLLM reads: one subdirectory for each adapter, and one for partial
//! downloads.
//!
//! Each process that uses the directory holds a shared lock on it. Only a process that is alone there removes adapters,
//! because it cannot know which adapters the server of another sidecar has registered.

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

const PARTIAL_DIR: &str = ".under-way";
/// An adapter is moved here before it is deleted, so that no process finds it incomplete.
const TRASH_DIR: &str = ".removed";
const LOCK_FILE: &str = ".lock";
/// Locked while a process tries to upgrade its lock, see [`CacheDir::evict`].
const SWEEP_LOCK_FILE: &str = ".sweeper";
/// A partial download that did not grow for this long is deleted.
const PARTIAL_MAX_AGE: Duration = Duration::from_hours(24);

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the adapters directory {} ({source}): it must be a writable volume that vLLM mounts at the same path", path.display())]
pub struct CacheDirError {
    path: PathBuf,
    source: io::Error,
}

/// Directory of downloaded adapters, which this process holds a shared lock on.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    lock: File,
    /// Makes a lookup, which marks an adapter as in use, and the removal of an unused adapter exclude each other.
    mutation_lock: Mutex<()>,
}

impl CacheDir {
    /// Opens the directory, creating it if it does not exist, and locks it. Blocks while another process evicts.
    pub fn open(path: &Path) -> Result<Self, CacheDirError> {
        let open = || -> io::Result<Self> {
            fs::create_dir_all(path.join(PARTIAL_DIR))?;
            let lock = open_lock_file(&path.join(LOCK_FILE))?;
            match flock(&lock, FlockOperation::NonBlockingLockShared) {
                // Another process holds the exclusive lock while it evicts, which takes a short time.
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => flock(&lock, FlockOperation::LockShared)?,
                other => other?,
            }
            Ok(Self { path: path.to_owned(), lock, mutation_lock: Mutex::new(()) })
        };
        open().map_err(|source| CacheDirError { path: path.to_owned(), source })
    }

    /// Returns the path of a downloaded adapter. The readable name replaces all characters but letters, digits, `.`,
    /// `-` and `_` by a dash; the hash at its end distinguishes names that this makes equal.
    pub(crate) fn adapter_path(&self, name: &HubRef) -> PathBuf {
        self.path.join(dir_name(name))
    }

    /// Returns the path of the partial download of an adapter.
    pub(crate) fn partial_path(&self, name: &HubRef) -> PathBuf {
        self.path.join(PARTIAL_DIR).join(dir_name(name))
    }

    /// Returns the manifest of the adapter at `path` if it is complete. Marks it as in use now, so that an eviction
    /// that has already selected it keeps it.
    pub(crate) fn lookup(&self, path: &Path) -> Option<Manifest> {
        let _guard = self.mutation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = Manifest::load_complete(path)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        if let Ok(file) = File::options().append(true).open(path.join(manifest::MANIFEST_FILE)) {
            // If this is not permitted, the adapter cannot be removed either.
            futimens(&file, &Timestamps { last_access: now, last_modification: now }).ok();
        }
        Some(manifest)
    }

    /// Moves a complete download to `path` and syncs the directory, so that it survives a power failure.
    pub(crate) fn install(&self, from: &Path, path: &Path) -> io::Result<()> {
        if path.exists() {
            // The caller's lookup found it incomplete.
            self.remove(path)?;
        }
        fs::rename(from, path)?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes the adapters that `policy` selects and returns their paths. Also deletes abandoned partial downloads.
    /// Adapters in `protected` are in use: they stay and are marked as used now. Removes nothing while another process
    /// uses the directory.
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
        // A failed upgrade to an exclusive lock releases the shared lock for a moment. Only one process at a time tries
        // the upgrade: all others keep their shared locks, so none of them can take that moment for being alone.
        let sweep_lock = open_lock_file(&self.path.join(SWEEP_LOCK_FILE))?;
        if flock(&sweep_lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Vec::new());
        }
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            flock(&self.lock, FlockOperation::LockShared)?;
            return Ok(Vec::new());
        }
        let selected = select_evictions(&cached, protected, policy, now);
        let removed = self.remove_evicted(cached.iter().filter(|adapter| selected.contains(&adapter.path)), now);
        flock(&self.lock, FlockOperation::LockShared)?;
        removed
    }

    fn remove_evicted<'a>(
        &self,
        selected: impl Iterator<Item = &'a CachedAdapter>,
        now: Timestamp,
    ) -> io::Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for adapter in selected {
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
        let to = trash.join(path.file_name().unwrap_or_default());
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(path, &to)?;
        fs::remove_dir_all(to)
    }

    /// Returns the complete adapters. Ignores directories without a manifest, which are not ours.
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

/// Returns when the adapter at `path` was last in use, which is the modification time of its manifest.
fn last_wanted(path: &Path) -> io::Result<Timestamp> {
    Timestamp::try_from(fs::metadata(path.join(manifest::MANIFEST_FILE))?.modified()?).map_err(io::Error::other)
}

/// Returns the latest modification time of a directory and everything in it.
fn last_modified(path: &Path) -> io::Result<Timestamp> {
    let metadata = fs::metadata(path)?;
    let mut newest = Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(self::last_modified(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn dir_name(name: &HubRef) -> String {
    let text = name.to_string();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || ".-_".contains(letter) { letter } else { '-' };
    let mut shown: String = text.replace('/', "--").chars().map(plain).take(96).collect();
    shown.push('-');
    shown.extend(hex(&Sha256::digest(text.as_bytes())).chars().take(12));
    shown.trim_start_matches('.').to_owned()
}
