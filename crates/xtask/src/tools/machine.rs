//! What a tool needs from the machine, and clear words where it is not there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::disk;
use crate::process;

/// Something that is not fetched but must be there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Need {
    /// The pinned packages are built for this platform alone.
    LinuxX86_64,
    /// Python 3.11 with its `venv` module.
    Python311,
    /// A C compiler and `readelf`.
    CCompiler,
    /// Debian's package tools.
    Apt,
    /// Room in the cache folder, in gigabytes.
    Room(u64),
}

/// Says what is missing, or nothing.
pub(crate) fn check(need: Need, cache: &Path) -> Result<()> {
    match need {
        Need::LinuxX86_64 => {
            if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
                bail!("its packages are built for Linux on x86_64 only");
            }
        }
        Need::Python311 => {
            python()?;
        }
        Need::CCompiler => {
            if !["cc", "gcc", "clang"].into_iter().any(on_path) && std::env::var_os("CC").is_none() {
                bail!("there is no C compiler on this machine; on Debian: apt-get install gcc");
            }
            if !on_path("readelf") {
                bail!("there is no readelf on this machine; on Debian: apt-get install binutils");
            }
        }
        Need::Apt => {
            for program in ["apt-get", "dpkg-deb"] {
                if !on_path(program) {
                    bail!("there is no {program} on this machine, which is not a Debian or Ubuntu");
                }
            }
        }
        Need::Room(gigabytes) => {
            let free = disk::free(cache).with_context(|| format!("cannot see how full {} is", cache.display()))?;
            if free < gigabytes * 1_000_000_000 {
                bail!(
                    "it needs {gigabytes} GB of room in {} and there are {}; set ROLLORA_CACHE to a folder elsewhere",
                    cache.display(),
                    disk::words(free)
                );
            }
        }
    }
    Ok(())
}

/// The machine's Python 3.11: the pinned packages are built for that version.
pub(crate) fn python() -> Result<PathBuf> {
    const QUESTION: &str = "import ensurepip, sys, venv; print(*sys.version_info[:2], sep='.')";
    let version = |name: &str| process::output_of(Command::new(name).args(["-c", QUESTION]));
    for name in ["python3.11", "python3", "python"] {
        if version(name).as_deref() == Some("3.11") {
            return Ok(name.into());
        }
    }
    if on_path("python3.11") {
        bail!("its Python 3.11 has no venv module; on Debian: apt-get install python3.11-venv");
    }
    match version("python3") {
        Some(other) => bail!("it needs Python 3.11, as python3.11 or python3 on PATH, and python3 is {other}"),
        None => bail!("there is no Python 3.11 on this machine, as python3.11 or python3 on PATH"),
    }
}

fn on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_is_not_there_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        check(Need::Room(0), folder.path()).unwrap();
        let words = check(Need::Room(1_000_000_000), folder.path()).unwrap_err().to_string();
        assert!(words.contains("set ROLLORA_CACHE"), "{words}");
    }

    #[test]
    fn programs_are_found_on_the_path() {
        assert!(on_path("sh"));
        assert!(!on_path("rollora-no-such-program"));
    }
}
