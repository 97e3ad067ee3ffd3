//! The folder that vLLM reads: one subfolder for each adapter, and what is under way beside them.
//!
//! Who uses it holds a shared lock on it. Only who is alone there removes anything: what another sidecar's server has
//! registered, nobody else can know.

use crate::{
    HubName,
    cleanup::{Budget, Held, condemned},
    manifest::{self, Manifest, digits},
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
const UNDER_WAY: &str = ".under-way";
/// What is to be removed is renamed first, so that it is never found half there.
const REMOVED: &str = ".removed";
const LOCK: &str = ".lock";
/// Held by the one that tries to be alone, see [`Folder::sweep`].
const SWEEPER: &str = ".sweeper";
/// A download that nobody went on with for this long is given up.
const ABANDONED: Duration = Duration::from_hours(24);

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the folder of the adapters {} cannot be used ({source}): it must be a writable volume that vLLM sees under the same path", path.display())]
pub struct FolderError {
    path: PathBuf,
    source: io::Error,
}

/// The folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    lock: File,
    /// Between finding an adapter whole and marking it as wanted, or unwanted and moving it away, nobody does the other.
    gate: Mutex<()>,
}

impl Folder {
    /// Makes it, where it is not there, and holds it.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let open = || -> io::Result<Self> {
            fs::create_dir_all(path.join(UNDER_WAY))?;
            let lock = lock_file(&path.join(LOCK))?;
            match flock(&lock, FlockOperation::NonBlockingLockShared) {
                // Somebody is cleaning at this moment, and will be done in the next.
                Err(error) if error == rustix::io::Errno::WOULDBLOCK => flock(&lock, FlockOperation::LockShared)?,
                other => other?,
            }
            Ok(Self { path: path.to_owned(), lock, gate: Mutex::new(()) })
        };
        open().map_err(|source| FolderError { path: path.to_owned(), source })
    }

    /// Where an adapter of a hub stands. The name is for people; the digits at its end tell names apart that look
    /// alike once everything but letters, digits, dots and dashes has become a dash.
    pub(crate) fn place(&self, name: &HubName) -> PathBuf {
        self.path.join(place_name(name))
    }

    /// Where it is brought to first.
    pub(crate) fn under_way(&self, name: &HubName) -> PathBuf {
        self.path.join(UNDER_WAY).join(place_name(name))
    }

    /// What stands at `place`, if it is whole. It counts as wanted now: a sweep that took it for unwanted leaves it.
    pub(crate) fn want(&self, place: &Path) -> Option<Manifest> {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let manifest = Manifest::of_whole(place)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        if let Ok(file) = File::options().append(true).open(place.join(manifest::NAME)) {
            // Where that is refused nothing can be removed either.
            futimens(&file, &Timestamps { last_access: now, last_modification: now }).ok();
        }
        Some(manifest)
    }

    /// Moves what was brought to its place, and has that survive a power cut.
    pub(crate) fn keep(&self, from: &Path, place: &Path) -> io::Result<()> {
        if place.exists() {
            // It was found not to be whole.
            self.remove(place)?;
        }
        fs::rename(from, place)?;
        File::open(&self.path)?.sync_all()
    }

    /// Removes what may go, and what went. What is in `protected` counts as wanted now. Where somebody else uses the
    /// folder, nothing goes.
    pub fn sweep(&self, protected: &BTreeSet<PathBuf>, budget: &Budget, now: Timestamp) -> io::Result<Vec<PathBuf>> {
        let held = self.held()?;
        for path in held.iter().map(|held| &held.path).filter(|path| protected.contains(*path)) {
            let manifest = File::options().append(true).open(path.join(manifest::NAME))?;
            manifest.set_modified(now.into())?;
        }
        // A shared lock that could not be made exclusive is lost for a moment. One at a time may try: the others keep
        // theirs meanwhile, so none of them takes that moment for being alone.
        let sweeper = lock_file(&self.path.join(SWEEPER))?;
        if flock(&sweeper, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(Vec::new());
        }
        if flock(&self.lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            flock(&self.lock, FlockOperation::LockShared)?;
            return Ok(Vec::new());
        }
        let condemned = condemned(&held, protected, budget, now);
        let swept = self.remove_all(held.iter().filter(|held| condemned.contains(&held.path)), now);
        flock(&self.lock, FlockOperation::LockShared)?;
        swept
    }

    fn remove_all<'a>(&self, condemned: impl Iterator<Item = &'a Held>, now: Timestamp) -> io::Result<Vec<PathBuf>> {
        let mut gone = Vec::new();
        for held in condemned {
            let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
            if wanted(&held.path)? == held.wanted {
                self.remove(&held.path)?;
                gone.push(held.path.clone());
            }
        }
        for entry in fs::read_dir(self.path.join(UNDER_WAY))? {
            let path = entry?.path();
            if newest(&path)? + ABANDONED <= now {
                self.remove(&path)?;
            }
        }
        let removed = self.path.join(REMOVED);
        if removed.exists() {
            fs::remove_dir_all(removed)?;
        }
        Ok(gone)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.path.join(REMOVED);
        fs::create_dir_all(&removed)?;
        let to = removed.join(path.file_name().unwrap_or_default());
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        fs::rename(path, &to)?;
        fs::remove_dir_all(to)
    }

    /// The adapters that stand here. What is not ours is not looked at.
    fn held(&self) -> io::Result<Vec<Held>> {
        let mut held = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let Some(manifest) = Manifest::of_whole(&path) else { continue };
            held.push(Held { size: manifest.size(), wanted: wanted(&path)?, path });
        }
        Ok(held)
    }
}

fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// When the adapter at `path` was last seen to be wanted.
fn wanted(path: &Path) -> io::Result<Timestamp> {
    Timestamp::try_from(fs::metadata(path.join(manifest::NAME))?.modified()?).map_err(io::Error::other)
}

/// When anything in a folder was last written to.
fn newest(path: &Path) -> io::Result<Timestamp> {
    let metadata = fs::metadata(path)?;
    let mut newest = Timestamp::try_from(metadata.modified()?).map_err(io::Error::other)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(self::newest(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn place_name(name: &HubName) -> String {
    let text = name.to_string();
    let plain = |letter: char| if letter.is_ascii_alphanumeric() || ".-_".contains(letter) { letter } else { '-' };
    let mut shown: String = text.replace('/', "--").chars().map(plain).take(96).collect();
    shown.push('-');
    shown.extend(digits(&Sha256::digest(text.as_bytes())).chars().take(12));
    shown.trim_start_matches('.').to_owned()
}
