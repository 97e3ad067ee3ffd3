//! A temporary folder that is removed when this process ends, however it ends, and not only when it is dropped.

use anyhow::{Context as _, Result};
use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Waits until this process has ended or dropped the folder, then removes it, again and again until no process writes
/// into it any more.
const CLEANUP_SCRIPT: &str =
    r#"cat; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1"; sleep 0.2; [ -e "$1" ] || exit; done"#;

#[derive(Debug)]
pub(super) struct SelfCleaningDir {
    folder: TempDir,
    // Blocks until its standard input closes, which happens when this process ends.
    cleaner: Child,
}

impl SelfCleaningDir {
    pub(super) fn create() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("rollora-control-plane-").tempdir()?;
        let mut cleaner = Command::new("/bin/sh");
        cleaner.args(["-c", CLEANUP_SCRIPT, "sh"]).arg(folder.path()).process_group(0);
        cleaner.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let cleaner = cleaner.spawn().context("cannot start /bin/sh")?;
        Ok(Self { folder, cleaner })
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for SelfCleaningDir {
    fn drop(&mut self) {
        // The `TempDir` removes the folder right after this, so the cleaner is not needed.
        drop(self.cleaner.kill());
        drop(self.cleaner.wait());
    }
}
