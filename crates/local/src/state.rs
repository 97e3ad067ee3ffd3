//! The state folder: what must outlive the process. Each document is one file, and a write is all or nothing:
//! temporary file, fsync, rename, fsync of the folder. So `kill -9` at any moment leaves the old or the new document.
//!
//! Invariant: one process at a time works on a folder; the lock goes with the process, however it ends.
//! What the documents mean is not known here.

#[cfg(test)]
mod tests;

use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

const LOCK_FILE: &str = "lock";
const TEMPORARY_SUFFIX: &str = ".writing";

/// A folder that this process alone works on.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// Held for as long as the folder is; the kernel lets go of it when the process ends.
    _lock: File,
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder could not be made or opened.
    #[error("the state folder {path} cannot be used: {source}; give another one with --state, or its owner's rights")]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error(
        "another `rollora local`{holder} works on the state folder {path}: end it, or give this one its own --state"
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Who holds it, as far as is known.
        holder: String,
    },
    /// A file is not what was written there.
    #[error(
        "{path} line {line}: {problem}; the file was changed or damaged after Rollora wrote it: put a copy back, or \
         move the file away to start without what it held"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file could not be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How far a write came that failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The old content is still there.
    #[error("{path} was not written: {source}")]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The new content is in place, but the disk did not confirm that it would outlive a power cut.
    #[error("{path} is written, but the disk did not confirm it: {source}")]
    Unconfirmed {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl StateFolder {
    /// Makes the folder where it is missing, locks it, and removes what a killed process left half-written.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let unusable = |source| StateError::Unusable { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        let lock = lock_folder(path)?;
        for entry in fs::read_dir(path).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            if entry.file_name().to_string_lossy().ends_with(TEMPORARY_SUFFIX) {
                fs::remove_file(entry.path()).map_err(unusable)?;
            }
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where the document `name` stands.
    pub fn document_path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The document `name`; none where it was never written.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(text) = self.read_text(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| StateError::Corrupt {
            path: self.document_path(name),
            line: error.line(),
            problem: error.to_string(),
        })
    }

    /// The text of the document `name`; none where it was never written.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.document_path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    /// Replaces the document `name`.
    pub fn write<T: Serialize>(&self, name: &str, document: &T) -> Result<(), WriteError> {
        let mut text = serde_json::to_vec_pretty(document)
            .map_err(|error| WriteError::NotWritten { path: self.document_path(name), source: error.into() })?;
        text.push(b'\n');
        replace_atomically(&self.document_path(name), &text)
    }
}

fn lock_folder(folder: &Path) -> Result<File, StateError> {
    let path = folder.join(LOCK_FILE);
    let unusable = |source| StateError::Unusable { path: folder.to_owned(), source };
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(unusable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let known = file.read_to_string(&mut process).is_ok() && !process.trim().is_empty();
            let holder = if known { format!(" (process {})", process.trim()) } else { String::new() };
            return Err(StateError::Locked { path: folder.to_owned(), holder });
        }
        Err(TryLockError::Error(source)) => return Err(unusable(source)),
    }
    file.set_len(0).map_err(unusable)?;
    file.rewind().map_err(unusable)?;
    writeln!(file, "{}", std::process::id()).map_err(unusable)?;
    Ok(file)
}

/// Replaces the file at `path`, or makes it; either the old or the new content is there at any moment. Owner and
/// permissions of a file that is replaced stay. A symbolic link stays one: what it points at is replaced.
pub fn replace_atomically(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = temporary_path(&target);
    let not_written = |source| WriteError::NotWritten { path: path.to_owned(), source };
    if let Err(source) = write_temporary(&temporary, &target, content).and_then(|()| fs::rename(&temporary, &target)) {
        // What is left over of a failed write is in nobody's way: the next one overwrites it.
        drop(fs::remove_file(&temporary));
        return Err(not_written(source));
    }
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| WriteError::Unconfirmed { path: path.to_owned(), source })
}

fn temporary_path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}{TEMPORARY_SUFFIX}"))
}

fn write_temporary(temporary: &Path, target: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
    if let Ok(old) = fs::metadata(target) {
        file.set_permissions(old.permissions())?;
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
    }
    file.write_all(content)?;
    file.sync_all()
}
