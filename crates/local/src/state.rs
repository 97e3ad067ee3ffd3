//! The state folder: documents that must survive a restart. Each document is one file, and each write is atomic:
//! temporary file, fsync, rename, fsync of the folder. So `kill -9` at any moment leaves the old or the new document.
//!
//! Invariant: one process at a time uses a folder. The kernel releases the lock when the process ends, however it ends.
//! This module does not know what the documents mean.

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

/// A state folder that this process has locked.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    /// Held as long as the folder is in use; the kernel releases it when the process ends.
    _lock: File,
}

/// Error while opening or reading the state folder.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder could not be created or opened.
    #[error(
        "the state folder {path} cannot be used: {source}; give another one with --state, or run this as its owner"
    )]
    Unusable {
        /// Path of the folder.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("another `rollora local`{holder} uses the state folder {path}: stop it, or give this one its own --state")]
    Locked {
        /// Path of the folder.
        path: PathBuf,
        /// Process that holds the lock, as in " (process 1)"; empty if unknown.
        holder: String,
    },
    /// A file cannot be parsed.
    #[error(
        "{path} line {line}: {problem}; the file was changed or damaged after Rollora wrote it: restore a copy, or \
         move the file away to start without its content"
    )]
    Corrupt {
        /// Path of the file.
        path: PathBuf,
        /// Line of the problem, starting at 1.
        line: usize,
        /// Description of the problem.
        problem: String,
    },
    /// A file could not be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

/// Error of a write, which says whether the new content is in place.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The old content is still in place.
    #[error("{path} was not written: {source}")]
    NotWritten {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
    /// The new content is in place, but the disk did not confirm that it would survive a power failure.
    #[error("{path} is written, but the disk did not confirm it: {source}")]
    Unconfirmed {
        /// Path of the file.
        path: PathBuf,
        /// Error of the operating system.
        source: io::Error,
    },
}

impl StateFolder {
    /// Creates the folder if it is missing, locks it, and removes temporary files of a process that was killed.
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

    /// Path of the document `name`.
    pub fn document_path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Reads and parses the document `name`. `None` if it was never written.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(text) = self.read_text(name)? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| StateError::Corrupt {
            path: self.document_path(name),
            line: error.line(),
            problem: error.to_string(),
        })
    }

    /// Reads the text of the document `name`. `None` if it was never written.
    pub fn read_text(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.document_path(name);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    /// Replaces the document `name` atomically.
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

/// Creates or replaces the file at `path`, which has either the old or the new content at any moment. Owner and
/// permissions of an existing file are kept. If `path` is a symbolic link, the file that it points to is replaced.
pub fn replace_atomically(path: &Path, content: &[u8]) -> Result<(), WriteError> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = temporary_path(&target);
    let not_written = |source| WriteError::NotWritten { path: path.to_owned(), source };
    if let Err(source) = write_temporary(&temporary, &target, content).and_then(|()| fs::rename(&temporary, &target)) {
        // A temporary file that cannot be removed does no harm: the next write replaces it.
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
