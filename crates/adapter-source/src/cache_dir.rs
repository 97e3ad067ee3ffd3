//! The folder that vLLM reads: one subfolder for each adapter, and what is under way beside them.
//!
//! Who uses it holds a shared lock on it. Only who is alone there removes anything: what another sidecar's server has
//! registered, nobody else can know.

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

/// Where downloads are under way.
const PARTIAL_DIR: &str = ".under-way";
/// What is to be removed is renamed first, so that it is never found half there.
const TRASH_DIR: &str = ".removed";
const LOCK_FILE: &str = ".lock";
/// Held by the one that tries to be alone, see [`Folder::sweep`].
const SWEEP_LOCK_FILE: &str = ".sweeper";
/// A download that nobody went on with for this long is given up.
const PARTIAL_MAX_AGE: Duration = Duration::from_hours(24);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the folder of the adapters {} cannot be used ({source}): it must be a writable volume that vLLM sees under the same path", path.display())]
pub struct CacheDirError {
    path: PathBuf,
    source: io::Error,
}

/// The folder.
#[derive(Debug)]
pub struct CacheDir {
    path: PathBuf,
    lock: File,
    /// Between finding an adapter whole and marking it as wanted, or unwanted and moving it away, nobody does the other.
    mutation_lock: Mutex<()>,
}

impl CacheDir {
    /// Makes it, where it is not there, and holds it.
    pub fn open(path: &Path) -> Result<Self, CacheDirError> {
        let open = || -> io::Result<Self> {
            fs::create_dir_all(path.join(PARTIAL_DIR))?;
            let lock = open_lock_file(&path.join(LOCK_FILE))?;
            match flock(&lock, FlockOperation::NonBlockingLockShared) {
                // Somebody is cleaning at this moment, and will be done in the next.
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => flock(&lock, FlockOperation::LockShared)?,
                other => other?,
            }
            Ok(Self { path: path.to_owned(), lock, mutation_lock: Mutex::new(()) })
        };
        open().map_err(|source| CacheDirError { path: path.to_owned(), source })
    }

    /// Where an adapter of a hub stands. The name is for people; the digits at its end tell names apart that look
    /// alike once everything but letters, digits, dots and dashes has become a dash.
    pub(crate) fn adapter_path(&self, name: &HubRef) -> PathBuf {
        self.path.join(dir_name(name))
    }

    /// Where it is brought to first.
    pub(crate) fn partial_path(&self, name: &HubRef) -> PathBuf {
        self.path.join(PARTIAL_DIR).join(dir_name(name))
    }

    /// What stands at `place`, if it is whole. It counts as wanted now: a sweep that took it for unwanted leaves it.
    pub(crate) fn lookup(&self, place: &Path) -> Option<Manifest> {
        let _gate = self.mutation_lock.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = Manifest::load_complete(place)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        if let Ok(file) = File::options().append(true).open(place.join(manifest::MANIFEST_FILE)) {
            // Where that is refused nothing can be removed either.
            futimens(&file, &Timestamps { last_access: now, last_modification: now }).ok();
        }
        Some(manifest)
    }

    /// Moves what was brought to its place, and has that survive a power cut.
    pub(crate) fn install(&self, from: &Path, place: &Path) -> io::Result<()> {
        if place.exists() {
            // It was found not to be whole.
            self.remove(place)?;
        }
        fs::rename(from, place)?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes what may go, and what went. What is in `protected` counts as wanted now. Where somebody else uses the
    /// folder, nothing goes.
    pub fn evict(
        &self,
        protected: &BTreeSet<PathBuf>,
        budget: &EvictionPolicy,
        now: Timestamp,
    ) -> io::Result<Vec<PathBuf>> {
        let held = self.cached_adapters()?;
        for path in held.iter().map(|held| &held.path).filter(|path| protected.contains(*path)) {
            let manifest = File::options().append(true).open(path.join(manifest::MANIFEST_FILE))?;
            manifest.set_modified(now.into())?;
        }
        // A shared lock that could not be made exclusive is lost for a moment. One at a time may try: the others keep
        // theirs meanwhile, so none of them takes that moment for being alone.
        let sweeper = open_lock_file(&self.path.join(SWEEP_LOCK_FILE))?;
        if flock(&sweeper, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Vec::new());
        }
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            flock(&self.lock, FlockOperation::LockShared)?;
            return Ok(Vec::new());
        }
        let condemned = select_evictions(&held, protected, budget, now);
        let swept = self.remove_evicted(held.iter().filter(|held| condemned.contains(&held.path)), now);
        flock(&self.lock, FlockOperation::LockShared)?;
        swept
    }

    fn remove_evicted<'a>(
        &self,
        condemned: impl Iterator<Item = &'a CachedAdapter>,
        now: Timestamp,
    ) -> io::Result<Vec<PathBuf>> {
        let mut gone = Vec::new();
        for held in condemned {
            let _gate = self.mutation_lock.lock().unwrap_or_else(PoisonError::into_inner);
            if last_wanted(&held.path)? == held.last_wanted {
                self.remove(&held.path)?;
                gone.push(held.path.clone());
            }
        }
        for entry in fs::read_dir(self.path.join(PARTIAL_DIR))? {
            let path = entry?.path();
            if last_modified(&path)? + PARTIAL_MAX_AGE <= now {
                self.remove(&path)?;
            }
        }
        let removed = self.path.join(TRASH_DIR);
        if removed.exists() {
            fs::remove_dir_all(removed)?;
        }
        Ok(gone)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.path.join(TRASH_DIR);
        fs::create_dir_all(&removed)?;
        let to = removed.join(path.file_name().unwrap_or_default());
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(path, &to)?;
        fs::remove_dir_all(to)
    }

    /// The adapters that stand here. What is not ours is not looked at.
    fn cached_adapters(&self) -> io::Result<Vec<CachedAdapter>> {
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let Some(manifest) = Manifest::load_complete(&path) else { continue };
            held.push(CachedAdapter { size: manifest.size(), last_wanted: last_wanted(&path)?, path });
        }
        Ok(held)
    }
}

fn open_lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// When the adapter at `path` was last seen to be wanted.
fn last_wanted(path: &Path) -> io::Result<Timestamp> {
    Timestamp::try_from(fs::metadata(path.join(manifest::MANIFEST_FILE))?.modified()?).map_err(io::Error::other)
}

/// When anything in a folder was last written to.
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
