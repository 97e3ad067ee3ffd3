//! The cache folder and its entries:
//!
//! ```text
//! NAME-KEY/              a complete entry
//! NAME-KEY.partial/      an entry that is being built, or whose build was given up
//! NAME-KEY.proof/        an entry that is built, but not yet verified to work in another folder
//! NAME-KEY.downloads/    downloads of a failed attempt, kept for the next one
//! locks/NAME-KEY         locked exclusively to build or clear the entry, shared to use it
//! logs/NAME-KEY          output of the steps of the last attempt
//! ```

use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::recipe::{RecipeStep, StepProgram, ToolRecipe};
use super::{disk, go, host};
use crate::process::{self, Interrupted};
use crate::{clock, workspace};

/// Delay before a step that uses the network is retried; it grows with each attempt.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Number of log lines that an error shows.
const LOG_TAIL_LINES: usize = 12;

/// The tool cache of a user.
#[derive(Debug)]
pub(crate) struct ToolCache {
    root: PathBuf,
}

/// A complete entry. No process clears it while this lives.
#[derive(Debug)]
pub(crate) struct ToolEntry {
    path: PathBuf,
    _lock: File,
}

impl ToolEntry {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A row of `cargo xtask tools`.
#[derive(Debug)]
pub(crate) struct ToolRow {
    pub(crate) key: String,
    pub(crate) size: Option<u64>,
    pub(crate) state: ToolEntryState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolEntryState {
    Ready,
    /// Complete, but this checkout uses another version.
    OldVersion,
    /// Being built, or given up.
    Partial,
    NotFetched,
}

impl ToolEntryState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::OldVersion => "old version",
            Self::Partial => "not finished",
            Self::NotFetched => "not fetched",
        }
    }
}

impl ToolCache {
    /// Opens the cache folder, and creates it if needed.
    pub(crate) fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = cache_dir(variable, cfg!(target_os = "macos"))?;
        Self::open_at(std::path::absolute(root)?)
    }

    fn open_at(root: PathBuf) -> Result<Self> {
        for below in ["locks", "logs"] {
            let folder = root.join(below);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot create {}; set ROLLORA_CACHE to another folder", folder.display()))?;
        }
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns an entry, and fetches or builds it first if needed. Waits for another process that is building it.
    pub(crate) fn get(&self, tool: &ToolRecipe) -> Result<ToolEntry> {
        self.get_from(tool, &workspace::root()?)
    }

    /// Returns the folder of an entry, or `None` if it is not available.
    pub(crate) fn find(&self, tool: &ToolRecipe) -> Result<Option<PathBuf>> {
        let paths = self.paths(&format!("{}-{}", tool.name, tool.key(&workspace::root()?)?));
        Ok(paths.complete.is_dir().then_some(paths.complete))
    }

    /// Returns an error with what this machine lacks if an entry is neither available nor possible to build.
    pub(crate) fn check_available(&self, tool: &ToolRecipe) -> Result<()> {
        if self.find(tool)?.is_none() { self.check_requirements(tool) } else { Ok(()) }
    }

    fn check_requirements(&self, tool: &ToolRecipe) -> Result<()> {
        for &need in tool.requirements {
            host::check_requirement(need, &self.root)
                .with_context(|| format!("{} is not available on this machine", tool.name))?;
        }
        Ok(())
    }

    fn get_from(&self, tool: &ToolRecipe, repository: &Path) -> Result<ToolEntry> {
        let paths = self.paths(&format!("{}-{}", tool.name, tool.key(repository)?));
        let lock = paths.open_lock()?;
        loop {
            wait_for_lock(tool.name, || lock.try_lock_shared())?;
            if paths.complete.is_dir() {
                return Ok(ToolEntry { path: paths.complete, _lock: lock });
            }
            lock.unlock()?;
            wait_for_lock(tool.name, || lock.try_lock())?;
            if !paths.complete.is_dir() {
                self.build_entry(tool, repository, &paths, &lock)?;
            }
            lock.unlock()?;
        }
    }

    fn build_entry(&self, tool: &ToolRecipe, repository: &Path, paths: &EntryPaths, lock: &File) -> Result<()> {
        let start = clock::now();
        self.check_requirements(tool)?;
        let go = tool.uses_go().then(|| self.go_toolchain(repository)).transpose()?;
        let build = EntryBuild { tool, paths, lock, go, log: File::create(&paths.log)? };
        eprintln!("{}: {}; kept in {}", tool.name, tool.cost, self.root.display());
        remove_dir(&paths.partial)?;
        remove_dir(&paths.unverified)?;
        std::fs::create_dir(&paths.partial)?;
        for file in tool.pinned_files(repository) {
            let name = file.file_name().context("a pinned file has no name")?;
            std::fs::copy(&file, paths.partial.join(name))?;
        }
        for (index, step) in tool.steps.iter().enumerate() {
            eprintln!("{} {}/{}: {}", tool.name, index + 1, tool.steps.len() + 1, step.description);
            build.run_step(step, &paths.partial)?;
        }
        std::fs::rename(&paths.partial, &paths.unverified)?;
        eprintln!("{0} {1}/{1}: {2}", tool.name, tool.steps.len() + 1, tool.verification.description);
        build.run_step(&tool.verification, &paths.unverified)?;
        std::fs::rename(&paths.unverified, &paths.complete)?;
        remove_dir(&paths.downloads)?;
        eprintln!("{}: ready after {}", tool.name, clock::format_duration(start.elapsed()));
        Ok(())
    }

    fn go_toolchain(&self, repository: &Path) -> Result<GoToolchain> {
        if let Some(program) = host::find_go() {
            return Ok(GoToolchain { program, _entry: None });
        }
        let entry = self.get_from(&go::TOOL, repository)?;
        Ok(GoToolchain { program: entry.path().join("go/bin/go"), _entry: Some(entry) })
    }

    /// Removes all versions of the named tools, or all entries if there are no names. Returns names and freed bytes.
    pub(crate) fn clear(&self, names: &[String]) -> Result<Vec<(String, u64)>> {
        let mut cleared = Vec::new();
        for entry in self.entries()? {
            if !names.is_empty() && !names.contains(&entry.tool) {
                continue;
            }
            let paths = self.paths(&entry.name());
            let lock = paths.open_lock()?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    bail!("{} is in use by another process: try again later", entry.name())
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let folders = [&paths.complete, &paths.partial, &paths.unverified, &paths.downloads];
            let size = folders.iter().map(|folder| disk::dir_size(folder)).sum();
            for folder in folders {
                remove_dir(folder)?;
            }
            cleared.push((entry.name(), size));
        }
        Ok(cleared)
    }

    /// Returns the rows of a tool: first the version that this checkout uses, then others.
    pub(crate) fn rows(&self, tool: &ToolRecipe) -> Result<Vec<ToolRow>> {
        let wanted = tool.key(&workspace::root()?)?;
        let mut others: Vec<_> = self.entries()?.into_iter().filter(|entry| entry.tool == tool.name).collect();
        others.retain(|entry| entry.key != wanted);
        let mut rows = vec![self.row(tool.name, &wanted, ToolEntryState::Ready)];
        rows.extend(others.iter().map(|entry| self.row(tool.name, &entry.key, ToolEntryState::OldVersion)));
        Ok(rows)
    }

    fn row(&self, tool: &str, key: &str, complete_state: ToolEntryState) -> ToolRow {
        let paths = self.paths(&format!("{tool}-{key}"));
        let unfinished = [&paths.partial, &paths.unverified, &paths.downloads];
        let (state, size) = if paths.complete.is_dir() {
            (complete_state, Some(disk::dir_size(&paths.complete)))
        } else if unfinished.iter().any(|folder| folder.is_dir()) {
            (ToolEntryState::Partial, Some(unfinished.iter().map(|folder| disk::dir_size(folder)).sum()))
        } else {
            (ToolEntryState::NotFetched, None)
        };
        ToolRow { key: key.to_owned(), size, state }
    }

    /// Returns the names of all entries, complete or not.
    fn entries(&self) -> Result<Vec<EntryName>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.root)? {
            let file_name = entry?.file_name();
            found.extend(file_name.to_str().and_then(EntryName::parse));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    fn paths(&self, name: &str) -> EntryPaths {
        EntryPaths {
            complete: self.root.join(name),
            partial: self.root.join(format!("{name}.partial")),
            unverified: self.root.join(format!("{name}.proof")),
            downloads: self.root.join(format!("{name}.downloads")),
            lock: self.root.join("locks").join(name),
            log: self.root.join("logs").join(name),
        }
    }
}

/// Paths of one entry.
#[derive(Debug)]
struct EntryPaths {
    complete: PathBuf,
    partial: PathBuf,
    unverified: PathBuf,
    downloads: PathBuf,
    lock: PathBuf,
    log: PathBuf,
}

impl EntryPaths {
    /// Opens the lock file, which is never removed because another process may be waiting for it.
    fn open_lock(&self) -> Result<File> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.lock);
        file.with_context(|| format!("cannot open {}", self.lock.display()))
    }
}

/// Tool and key in the name of a folder of the cache.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EntryName {
    tool: String,
    key: String,
}

impl EntryName {
    fn parse(file_name: &str) -> Option<Self> {
        let name = file_name.split_once('.').map_or(file_name, |(name, _)| name);
        let (tool, key) = name.rsplit_once('-')?;
        let is_key = key.len() == 12 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_key.then(|| Self { tool: tool.to_owned(), key: key.to_owned() })
    }

    fn name(&self) -> String {
        format!("{}-{}", self.tool, self.key)
    }
}

/// Path of Go; if it comes from the cache, its entry stays locked while this lives.
struct GoToolchain {
    program: PathBuf,
    _entry: Option<ToolEntry>,
}

impl GoToolchain {
    /// Overrides the user's settings: pinned modules, this toolchain, no C.
    fn apply_env(&self, command: &mut Command) {
        command.env("GO", &self.program).env_remove("GOROOT");
        for (name, value) in
            [("GOFLAGS", "-mod=readonly"), ("GOTOOLCHAIN", "local"), ("GOWORK", "off"), ("CGO_ENABLED", "0")]
        {
            command.env(name, value);
        }
    }
}

/// One build of an entry.
struct EntryBuild<'a> {
    tool: &'a ToolRecipe,
    paths: &'a EntryPaths,
    lock: &'a File,
    go: Option<GoToolchain>,
    log: File,
}

impl EntryBuild<'_> {
    fn run_step(&self, step: &RecipeStep, folder: &Path) -> Result<()> {
        let tries = step.kind.max_attempts();
        for attempt in 1.. {
            let Err(error) = self.try_step(step, folder) else { break };
            if error.is::<Interrupted>() {
                return Err(error);
            }
            if attempt == tries {
                return Err(self.step_error(step, tries, &error));
            }
            let wait = RETRY_AFTER * attempt;
            eprintln!(
                "{}: {error}; attempt {} of {tries} in {}",
                self.tool.name,
                attempt + 1,
                clock::format_duration(wait)
            );
            process::interruptible_sleep(wait)?;
        }
        Ok(())
    }

    fn try_step(&self, step: &RecipeStep, folder: &Path) -> Result<()> {
        let program = match step.program {
            StepProgram::Python => host::find_python311()?,
            StepProgram::AnyPython => host::find_python3()?,
            StepProgram::Go => self.go.as_ref().context("the recipe has no Go toolchain for its step")?.program.clone(),
            StepProgram::Machine(name) => name.into(),
            StepProgram::Entry(path) => folder.join(path),
        };
        let mut command = Command::new(program);
        command.args(step.arguments).current_dir(folder);
        // Pip's downloads are kept for the next attempt, until the entry is complete.
        command.env("PIP_CACHE_DIR", &self.paths.downloads);
        if let Some(go) = &self.go {
            go.apply_env(&mut command);
        }
        // The child shares the lock: if this program is killed, the next one waits until the child has exited.
        command.stdin(self.lock.try_clone()?);
        writeln!(&self.log, "\n$ {}", process::format_command(&command))?;
        process::run_quiet(&mut command, &self.log, step.timeout, |took| {
            let name = self.tool.name;
            match self.log_tail(1).trim() {
                "" => eprintln!("{name}: running for {}", clock::format_duration(took)),
                line => eprintln!("{name}: running for {}, last output: {line}", clock::format_duration(took)),
            }
        })
    }

    /// Returns the last lines of the log.
    fn log_tail(&self, count: usize) -> String {
        let text = std::fs::read(&self.paths.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n  | ")
    }

    fn step_error(&self, step: &RecipeStep, tries: u32, error: &anyhow::Error) -> anyhow::Error {
        let tail = self.log_tail(LOG_TAIL_LINES);
        let times = if tries > 1 { format!(", {tries} times") } else { String::new() };
        let (name, log) = (self.tool.name, self.paths.log.display());
        anyhow::anyhow!("{name}: cannot {}: {error}{times}\n  | {tail}\n  complete log: {log}", step.description)
    }
}

fn wait_for_lock(name: &str, mut attempt: impl FnMut() -> Result<(), TryLockError>) -> Result<()> {
    let mut reported = false;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => {
                return Err(error).context("cannot lock an entry of the tool cache");
            }
            Err(TryLockError::WouldBlock) if !reported => {
                reported = true;
                eprintln!("{name}: waiting for another process that builds or clears it");
            }
            Err(TryLockError::WouldBlock) => {}
        }
        process::interruptible_sleep(LOCK_POLL_INTERVAL)?;
    }
}

fn remove_dir(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Determines the cache folder from environment variables.
fn cache_dir(variable: impl Fn(&str) -> Option<PathBuf>, macos: bool) -> Result<PathBuf> {
    if let Some(chosen) = variable("ROLLORA_CACHE") {
        return Ok(chosen);
    }
    let below_home = if macos { "Library/Caches" } else { ".cache" };
    let user = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(below_home)));
    Ok(user.context("cannot locate the tool cache: neither ROLLORA_CACHE nor HOME is set")?.join("rollora"))
}

#[cfg(test)]
mod tests;
