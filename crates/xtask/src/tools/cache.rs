//! The cache folder and its entries.
//!
//! ```text
//! NAME-KEY/              a whole entry
//! NAME-KEY.partial/      one that is being made, or that was given up
//! NAME-KEY.proof/        one that is made and not yet proven to work where it was not made
//! NAME-KEY.downloads/    what a try has downloaded, for the next one
//! locks/NAME-KEY         held alone to make or clear, shared to use
//! logs/NAME-KEY          what the steps of the last try said
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

/// Between two tries of a step that asks a registry; longer each time.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const LOCK_POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How much of a log an error shows.
const LOG_TAIL_LINES: usize = 12;

/// The cache of this user.
#[derive(Debug)]
pub(crate) struct ToolCache {
    root: PathBuf,
}

/// A whole entry. Nobody clears it as long as this lives.
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

/// A line of the list.
#[derive(Debug)]
pub(crate) struct ToolRow {
    pub(crate) key: String,
    pub(crate) size: Option<u64>,
    pub(crate) state: ToolEntryState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolEntryState {
    Ready,
    /// Whole, but this checkout wants another.
    OldVersion,
    /// Being made, or given up.
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
    /// The cache folder, made if it is not there.
    pub(crate) fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = cache_dir(variable, cfg!(target_os = "macos"))?;
        Self::open_at(std::path::absolute(root)?)
    }

    fn open_at(root: PathBuf) -> Result<Self> {
        for below in ["locks", "logs"] {
            let folder = root.join(below);
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}; ROLLORA_CACHE names another place", folder.display()))?;
        }
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// An entry, fetched or built first if it is not there. Waits for another process that is at it.
    pub(crate) fn get(&self, tool: &ToolRecipe) -> Result<ToolEntry> {
        self.get_from(tool, &workspace::root()?)
    }

    /// Where an entry is, if it is there.
    pub(crate) fn find(&self, tool: &ToolRecipe) -> Result<Option<PathBuf>> {
        let place = self.paths(&format!("{}-{}", tool.name, tool.key(&workspace::root()?)?));
        Ok(place.complete.is_dir().then_some(place.complete))
    }

    /// Fails with what this machine lacks, where an entry is not there and cannot be made.
    pub(crate) fn check_available(&self, tool: &ToolRecipe) -> Result<()> {
        if self.find(tool)?.is_none() { self.check_requirements(tool) } else { Ok(()) }
    }

    fn check_requirements(&self, tool: &ToolRecipe) -> Result<()> {
        for &need in tool.requirements {
            host::check_requirement(need, &self.root)
                .with_context(|| format!("{} cannot be had on this machine", tool.name))?;
        }
        Ok(())
    }

    fn get_from(&self, tool: &ToolRecipe, repository: &Path) -> Result<ToolEntry> {
        let place = self.paths(&format!("{}-{}", tool.name, tool.key(repository)?));
        let lock = place.open_lock()?;
        loop {
            wait_for_lock(tool.name, || lock.try_lock_shared())?;
            if place.complete.is_dir() {
                return Ok(ToolEntry { path: place.complete, _lock: lock });
            }
            lock.unlock()?;
            wait_for_lock(tool.name, || lock.try_lock())?;
            if !place.complete.is_dir() {
                self.build_entry(tool, repository, &place, &lock)?;
            }
            lock.unlock()?;
        }
    }

    fn build_entry(&self, tool: &ToolRecipe, repository: &Path, place: &EntryPaths, lock: &File) -> Result<()> {
        let start = clock::now();
        self.check_requirements(tool)?;
        let go = tool.uses_go().then(|| self.go_toolchain(repository)).transpose()?;
        let make = EntryBuild { tool, paths: place, lock, go, log: File::create(&place.log)? };
        eprintln!("{}: {}; kept in {}", tool.name, tool.cost, self.root.display());
        remove_dir(&place.partial)?;
        remove_dir(&place.unverified)?;
        std::fs::create_dir(&place.partial)?;
        for file in tool.pinned_files(repository) {
            let name = file.file_name().context("a pinned file has no name")?;
            std::fs::copy(&file, place.partial.join(name))?;
        }
        for (index, step) in tool.steps.iter().enumerate() {
            eprintln!("{} {}/{}: {}", tool.name, index + 1, tool.steps.len() + 1, step.description);
            make.run_step(step, &place.partial)?;
        }
        std::fs::rename(&place.partial, &place.unverified)?;
        eprintln!("{0} {1}/{1}: {2}", tool.name, tool.steps.len() + 1, tool.verification.description);
        make.run_step(&tool.verification, &place.unverified)?;
        std::fs::rename(&place.unverified, &place.complete)?;
        remove_dir(&place.downloads)?;
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

    /// Removes the entries of these tools, of all versions; all entries where no tool is named. Gives what was freed.
    pub(crate) fn clear(&self, names: &[String]) -> Result<Vec<(String, u64)>> {
        let mut cleared = Vec::new();
        for entry in self.entries()? {
            if !names.is_empty() && !names.contains(&entry.tool) {
                continue;
            }
            let place = self.paths(&entry.name());
            let lock = place.open_lock()?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    bail!("{} is in use by another process: try again later", entry.name())
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let folders = [&place.complete, &place.partial, &place.unverified, &place.downloads];
            let size = folders.iter().map(|folder| disk::dir_size(folder)).sum();
            for folder in folders {
                remove_dir(folder)?;
            }
            cleared.push((entry.name(), size));
        }
        Ok(cleared)
    }

    /// What there is of a tool: the version that this checkout wants, then others.
    pub(crate) fn rows(&self, tool: &ToolRecipe) -> Result<Vec<ToolRow>> {
        let wanted = tool.key(&workspace::root()?)?;
        let mut others: Vec<_> = self.entries()?.into_iter().filter(|entry| entry.tool == tool.name).collect();
        others.retain(|entry| entry.key != wanted);
        let mut rows = vec![self.row(tool.name, &wanted, ToolEntryState::Ready)];
        rows.extend(others.iter().map(|entry| self.row(tool.name, &entry.key, ToolEntryState::OldVersion)));
        Ok(rows)
    }

    fn row(&self, tool: &str, key: &str, whole: ToolEntryState) -> ToolRow {
        let place = self.paths(&format!("{tool}-{key}"));
        let unfinished = [&place.partial, &place.unverified, &place.downloads];
        let (state, size) = if place.complete.is_dir() {
            (whole, Some(disk::dir_size(&place.complete)))
        } else if unfinished.iter().any(|folder| folder.is_dir()) {
            (ToolEntryState::Partial, Some(unfinished.iter().map(|folder| disk::dir_size(folder)).sum()))
        } else {
            (ToolEntryState::NotFetched, None)
        };
        ToolRow { key: key.to_owned(), size, state }
    }

    /// All entries in the folder, whole or not, each once.
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

/// Where the parts of one entry are.
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
    /// The lock file is never removed: another process may be waiting for it.
    fn open_lock(&self) -> Result<File> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.lock);
        file.with_context(|| format!("cannot open {}", self.lock.display()))
    }
}

/// The name of a folder of the cache, taken apart.
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

/// Where Go is; it stays there as long as this lives.
struct GoToolchain {
    program: PathBuf,
    _entry: Option<ToolEntry>,
}

impl GoToolchain {
    /// Whatever the user's own settings are: the modules as they are pinned, this toolchain, and no C.
    fn apply_env(&self, command: &mut Command) {
        command.env("GO", &self.program).env_remove("GOROOT");
        for (name, value) in
            [("GOFLAGS", "-mod=readonly"), ("GOTOOLCHAIN", "local"), ("GOWORK", "off"), ("CGO_ENABLED", "0")]
        {
            command.env(name, value);
        }
    }
}

/// One go at making an entry.
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
                "{}: {error}; try {} of {tries} in {}",
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
            StepProgram::Go => self.go.as_ref().context("a recipe without Go has a step with it")?.program.clone(),
            StepProgram::Machine(name) => name.into(),
            StepProgram::Entry(path) => folder.join(path),
        };
        let mut command = Command::new(program);
        command.args(step.arguments).current_dir(folder);
        // What pip has downloaded is kept for the next try, and only until the entry is whole.
        command.env("PIP_CACHE_DIR", &self.paths.downloads);
        if let Some(go) = &self.go {
            go.apply_env(&mut command);
        }
        // The child holds the lock too: if this program is killed, the next one waits until the child has ended.
        command.stdin(self.lock.try_clone()?);
        writeln!(&self.log, "\n$ {}", process::format_command(&command))?;
        process::run_quiet(&mut command, &self.log, step.timeout, |took| {
            let name = self.tool.name;
            match self.log_tail(1).trim() {
                "" => eprintln!("{name}: {} so far", clock::format_duration(took)),
                words => eprintln!("{name}: {} so far, at {words}", clock::format_duration(took)),
            }
        })
    }

    /// The last lines of the log.
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
        anyhow::anyhow!("{name}: cannot {}: {error}{times}\n  | {tail}\n  whole log: {log}", step.description)
    }
}

fn wait_for_lock(name: &str, mut attempt: impl FnMut() -> Result<(), TryLockError>) -> Result<()> {
    let mut told = false;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error).context("cannot lock an entry of the tool cache"),
            Err(TryLockError::WouldBlock) if !told => {
                told = true;
                eprintln!("{name}: another process is at it; waiting until it is done");
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

/// The cache folder, from the environment.
fn cache_dir(variable: impl Fn(&str) -> Option<PathBuf>, macos: bool) -> Result<PathBuf> {
    if let Some(chosen) = variable("ROLLORA_CACHE") {
        return Ok(chosen);
    }
    let below_home = if macos { "Library/Caches" } else { ".cache" };
    let user = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(below_home)));
    Ok(user.context("neither ROLLORA_CACHE nor HOME says where the tool cache is")?.join("rollora"))
}

#[cfg(test)]
mod tests;
