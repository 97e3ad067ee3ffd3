//! A folder that goes away with this process, however that ends, and not only when it is dropped.

use anyhow::{Context as _, Result};
use std::{
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};
use tempfile::TempDir;

/// Waits until this process is gone or does not want the folder any more; then until nobody writes into it.
const CLEANUP_SCRIPT: &str =
    r#"cat; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf "$1"; sleep 0.2; [ -e "$1" ] || exit; done"#;

#[derive(Debug)]
pub(super) struct SelfCleaningDir {
    folder: TempDir,
    // What holds the other end of its standard input is this process.
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
        // What would be cleaned is dropped right after this.
        drop(self.cleaner.kill());
        drop(self.cleaner.wait());
    }
}
