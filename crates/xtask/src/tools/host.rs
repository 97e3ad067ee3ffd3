//! Requirements of tools on the machine, with clear errors if they are not met.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::disk;
use crate::process;

/// Something that must be available on the machine because it is not fetched.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostRequirement {
    /// Linux on x86-64, the only platform of the pinned packages.
    LinuxX86_64,
    /// Linux: the testbed gives every pod a loopback address of its own.
    Linux,
    /// Python 3.11 with its `venv` module.
    Python311,
    /// Python 3.9 or newer with its `venv` module.
    Python3,
    /// Go, or Python 3 to fetch it.
    Go,
    /// A C compiler and `readelf`.
    CCompiler,
    /// Package tools of Debian.
    Apt,
    /// Free space in the cache folder, in gigabytes.
    DiskSpaceGb(u64),
}

/// Returns an error that says what is missing, if the requirement is not met.
pub(crate) fn check_requirement(requirement: HostRequirement, cache: &Path) -> Result<()> {
    match requirement {
        HostRequirement::LinuxX86_64 => {
            if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
                bail!("its packages exist only for Linux on x86_64");
            }
        }
        HostRequirement::Linux => {
            if !cfg!(target_os = "linux") {
                bail!("the testbed gives every pod a loopback address of its own, which only Linux supports");
            }
            if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
                bail!("its packages exist only for x86_64 and aarch64");
            }
        }
        HostRequirement::Python311 => {
            find_python311()?;
        }
        HostRequirement::Python3 => {
            find_python3()?;
        }
        HostRequirement::Go => {
            if find_go().is_none() {
                find_python3().with_context(|| {
                    format!(
                        "PATH has no go of at least {}.{}, and Python 3 is needed to fetch one",
                        MIN_GO_VERSION.0, MIN_GO_VERSION.1
                    )
                })?;
            }
        }
        HostRequirement::CCompiler => {
            if !["cc", "gcc", "clang"].into_iter().any(on_path) && std::env::var_os("CC").is_none() {
                bail!("no C compiler on this machine; on Debian: apt-get install gcc");
            }
            if !on_path("readelf") {
                bail!("no readelf on this machine; on Debian: apt-get install binutils");
            }
        }
        HostRequirement::Apt => {
            for program in ["apt-get", "dpkg-deb"] {
                if !on_path(program) {
                    bail!("no {program} on this machine: it is not a Debian or Ubuntu");
                }
            }
        }
        HostRequirement::DiskSpaceGb(gigabytes) => {
            let free = disk::free_space(cache)
                .with_context(|| format!("cannot determine the free space of {}", cache.display()))?;
            if free < gigabytes * 1_000_000_000 {
                bail!(
                    "it needs {gigabytes} GB in {}, but only {} are free; set ROLLORA_CACHE to another folder",
                    cache.display(),
                    disk::format_size(free)
                );
            }
        }
    }
    Ok(())
}

/// Finds Python 3.11 on PATH: the pinned packages are built for that version.
pub(crate) fn find_python311() -> Result<PathBuf> {
    const QUESTION: &str = "import ensurepip, sys, venv; print(*sys.version_info[:2], sep='.')";
    let version = |name: &str| process::output_of(Command::new(name).args(["-c", QUESTION]));
    for name in ["python3.11", "python3", "python"] {
        if version(name).as_deref() == Some("3.11") {
            return Ok(name.into());
        }
    }
    if on_path("python3.11") {
        bail!("the machine's Python 3.11 has no venv module; on Debian: apt-get install python3.11-venv");
    }
    match version("python3") {
        Some(other) => bail!("it needs Python 3.11 as python3.11 or python3 on PATH, but python3 is {other}"),
        None => bail!("no Python 3.11 on this machine, as python3.11 or python3 on PATH"),
    }
}

/// Finds a Python on PATH that can create virtual environments.
pub(crate) fn find_python3() -> Result<PathBuf> {
    const QUESTION: &str = "import ensurepip, sys, venv; print(sys.version_info >= (3, 9))";
    for name in ["python3", "python", "python3.11"] {
        if process::output_of(Command::new(name).args(["-c", QUESTION])).as_deref() == Some("True") {
            return Ok(name.into());
        }
    }
    if on_path("python3") {
        bail!("the machine's Python is older than 3.9 or has no venv module; on Debian: apt-get install python3-venv");
    }
    bail!("no Python 3 on this machine; on Debian: apt-get install python3-venv")
}

/// Minimum version for the testbed's Go modules.
const MIN_GO_VERSION: (u32, u32) = (1, 26);

/// Finds Go on PATH, if it is new enough.
pub(crate) fn find_go() -> Option<PathBuf> {
    let version = process::output_of(Command::new("go").arg("version").env("GOTOOLCHAIN", "local"))?;
    (parse_go_version(&version)? >= MIN_GO_VERSION).then(|| "go".into())
}

/// Parses the version in a text such as `go version go1.26.8 linux/amd64`.
fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?;
    let minor = version.split(|character: char| !character.is_ascii_digit()).next()?;
    Some((1, minor.parse().ok()?))
}

fn on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_disk_space_error_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        check_requirement(HostRequirement::DiskSpaceGb(0), folder.path()).unwrap();
        let message =
            check_requirement(HostRequirement::DiskSpaceGb(1_000_000_000), folder.path()).unwrap_err().to_string();
        assert!(message.contains("set ROLLORA_CACHE"), "{message}");
    }

    #[test]
    fn go_version_is_parsed() {
        for (text, expected) in [
            ("go version go1.26.8 linux/amd64", Some((1, 26))),
            ("go version go1.27rc1 darwin/arm64", Some((1, 27))),
            ("go version devel go1.28-4cf1ab8 Mon linux/amd64", Some((1, 28))),
            ("go version go1.9 linux/amd64", Some((1, 9))),
            ("go: unknown command", None),
            ("", None),
        ] {
            assert_eq!(parse_go_version(text), expected, "{text}");
        }
        assert!((1, 9) < MIN_GO_VERSION && MIN_GO_VERSION <= (1, 27));
    }

    #[test]
    fn programs_are_found_on_path() {
        assert!(on_path("sh"));
        assert!(!on_path("rollora-no-such-program"));
    }
}
