//! What a tool needs from the machine, and clear words where it is not there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::disk;
use crate::process;

/// Something that is not fetched but must be there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum HostRequirement {
    /// The pinned packages are built for this platform alone.
    LinuxX86_64,
    /// The bed of a cluster's parts gives every pod a loopback address, which only Linux does.
    Linux,
    /// Python 3.11 with its `venv` module.
    Python311,
    /// Any Python that is still maintained, with its `venv` module.
    Python3,
    /// Go, or what it takes to fetch it.
    Go,
    /// A C compiler and `readelf`.
    CCompiler,
    /// Debian's package tools.
    Apt,
    /// Room in the cache folder, in gigabytes.
    DiskSpaceGb(u64),
}

/// Says what is missing, or nothing.
pub(crate) fn check_requirement(need: HostRequirement, cache: &Path) -> Result<()> {
    match need {
        HostRequirement::LinuxX86_64 => {
            if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
                bail!("its packages are built for Linux on x86_64 only");
            }
        }
        HostRequirement::Linux => {
            if !cfg!(target_os = "linux") {
                bail!("the cluster bed gives every pod a loopback address of its own, which only Linux can do");
            }
            if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
                bail!("its packages are built for x86_64 and aarch64 only");
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
                        "there is no go of at least {}.{} on PATH, and to fetch one",
                        MIN_GO_VERSION.0, MIN_GO_VERSION.1
                    )
                })?;
            }
        }
        HostRequirement::CCompiler => {
            if !["cc", "gcc", "clang"].into_iter().any(on_path) && std::env::var_os("CC").is_none() {
                bail!("there is no C compiler on this machine; on Debian: apt-get install gcc");
            }
            if !on_path("readelf") {
                bail!("there is no readelf on this machine; on Debian: apt-get install binutils");
            }
        }
        HostRequirement::Apt => {
            for program in ["apt-get", "dpkg-deb"] {
                if !on_path(program) {
                    bail!("there is no {program} on this machine, which is not a Debian or Ubuntu");
                }
            }
        }
        HostRequirement::DiskSpaceGb(gigabytes) => {
            let free =
                disk::free_space(cache).with_context(|| format!("cannot see how full {} is", cache.display()))?;
            if free < gigabytes * 1_000_000_000 {
                bail!(
                    "it needs {gigabytes} GB of room in {} and there are {}; set ROLLORA_CACHE to a folder elsewhere",
                    cache.display(),
                    disk::format_size(free)
                );
            }
        }
    }
    Ok(())
}

/// The machine's Python 3.11: the pinned packages are built for that version.
pub(crate) fn find_python311() -> Result<PathBuf> {
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

/// The machine's Python, if it can make environments.
pub(crate) fn find_python3() -> Result<PathBuf> {
    const QUESTION: &str = "import ensurepip, sys, venv; print(sys.version_info >= (3, 9))";
    for name in ["python3", "python", "python3.11"] {
        if process::output_of(Command::new(name).args(["-c", QUESTION])).as_deref() == Some("True") {
            return Ok(name.into());
        }
    }
    if on_path("python3") {
        bail!("its Python is older than 3.9 or has no venv module; on Debian: apt-get install python3-venv");
    }
    bail!("there is no Python 3 on this machine; on Debian: apt-get install python3-venv")
}

/// What the Go modules of the test bed ask for.
const MIN_GO_VERSION: (u32, u32) = (1, 26);

/// The machine's Go, if it is new enough.
pub(crate) fn find_go() -> Option<PathBuf> {
    let version = process::output_of(Command::new("go").arg("version").env("GOTOOLCHAIN", "local"))?;
    (parse_go_version(&version)? >= MIN_GO_VERSION).then(|| "go".into())
}

/// The version in `go version go1.26.8 linux/amd64`.
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
    fn room_that_is_not_there_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        check_requirement(HostRequirement::DiskSpaceGb(0), folder.path()).unwrap();
        let words =
            check_requirement(HostRequirement::DiskSpaceGb(1_000_000_000), folder.path()).unwrap_err().to_string();
        assert!(words.contains("set ROLLORA_CACHE"), "{words}");
    }

    #[test]
    fn the_version_of_go_is_read_from_its_own_words() {
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
    fn programs_are_found_on_the_path() {
        assert!(on_path("sh"));
        assert!(!on_path("rollora-no-such-program"));
    }
}
