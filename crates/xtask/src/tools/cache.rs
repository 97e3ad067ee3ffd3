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

use super::recipe::{Program, Step, Tool};
use super::{disk, go, machine};
use crate::process::{self, Interrupted};
use crate::{clock, workspace};

/// Between two tries of a step that asks a registry; longer each time.
const RETRY_AFTER: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(200);
/// How much of a log an error shows.
const TAIL: usize = 12;

/// The cache of this user.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// A whole entry. Nobody clears it as long as this lives.
#[derive(Debug)]
pub(crate) struct Entry {
    path: PathBuf,
    _lock: File,
}

impl Entry {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A line of the list.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) key: String,
    pub(crate) size: Option<u64>,
    pub(crate) state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// Whole, but this checkout wants another.
    OldVersion,
    /// Being made, or given up.
    Partial,
    NotFetched,
}

impl State {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::OldVersion => "old version",
            Self::Partial => "not finished",
            Self::NotFetched => "not fetched",
        }
    }
}

impl Cache {
    /// The cache folder, made if it is not there.
    pub(crate) fn open() -> Result<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let root = folder(variable, cfg!(target_os = "macos"))?;
        Self::at(std::path::absolute(root)?)
    }

    fn at(root: PathBuf) -> Result<Self> {
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
    pub(crate) fn get(&self, tool: &Tool) -> Result<Entry> {
        self.get_from(tool, &workspace::root()?)
    }

    /// Where an entry is, if it is there.
    pub(crate) fn find(&self, tool: &Tool) -> Result<Option<PathBuf>> {
        let place = self.place(&format!("{}-{}", tool.name, tool.key(&workspace::root()?)?));
        Ok(place.whole.is_dir().then_some(place.whole))
    }

    /// Fails with what this machine lacks, where an entry is not there and cannot be made.
    pub(crate) fn check(&self, tool: &Tool) -> Result<()> {
        if self.find(tool)?.is_none() { self.needs(tool) } else { Ok(()) }
    }

    fn needs(&self, tool: &Tool) -> Result<()> {
        for &need in tool.needs {
            machine::check(need, &self.root).with_context(|| format!("{} cannot be had on this machine", tool.name))?;
        }
        Ok(())
    }

    fn get_from(&self, tool: &Tool, repository: &Path) -> Result<Entry> {
        let place = self.place(&format!("{}-{}", tool.name, tool.key(repository)?));
        let lock = place.open_lock()?;
        loop {
            wait_for(tool.name, || lock.try_lock_shared())?;
            if place.whole.is_dir() {
                return Ok(Entry { path: place.whole, _lock: lock });
            }
            lock.unlock()?;
            wait_for(tool.name, || lock.try_lock())?;
            if !place.whole.is_dir() {
                self.make(tool, repository, &place, &lock)?;
            }
            lock.unlock()?;
        }
    }

    fn make(&self, tool: &Tool, repository: &Path, place: &Place, lock: &File) -> Result<()> {
        let start = clock::now();
        self.needs(tool)?;
        let go = tool.needs_go().then(|| self.go(repository)).transpose()?;
        let make = Make { tool, place, lock, go, log: File::create(&place.log)? };
        eprintln!("{}: {}; kept in {}", tool.name, tool.cost, self.root.display());
        remove(&place.partial)?;
        remove(&place.proof)?;
        std::fs::create_dir(&place.partial)?;
        for file in tool.pinned_files(repository) {
            let name = file.file_name().context("a pinned file has no name")?;
            std::fs::copy(&file, place.partial.join(name))?;
        }
        for (index, step) in tool.steps.iter().enumerate() {
            eprintln!("{} {}/{}: {}", tool.name, index + 1, tool.steps.len() + 1, step.what);
            make.step(step, &place.partial)?;
        }
        std::fs::rename(&place.partial, &place.proof)?;
        eprintln!("{0} {1}/{1}: {2}", tool.name, tool.steps.len() + 1, tool.proof.what);
        make.step(&tool.proof, &place.proof)?;
        std::fs::rename(&place.proof, &place.whole)?;
        remove(&place.downloads)?;
        eprintln!("{}: ready after {}", tool.name, clock::words(start.elapsed()));
        Ok(())
    }

    fn go(&self, repository: &Path) -> Result<Go> {
        if let Some(program) = machine::go() {
            return Ok(Go { program, _entry: None });
        }
        let entry = self.get_from(&go::TOOL, repository)?;
        Ok(Go { program: entry.path().join("go/bin/go"), _entry: Some(entry) })
    }

    /// Removes the entries of these tools, of all versions; all entries where no tool is named. Gives what was freed.
    pub(crate) fn clear(&self, names: &[String]) -> Result<Vec<(String, u64)>> {
        let mut cleared = Vec::new();
        for entry in self.entries()? {
            if !names.is_empty() && !names.contains(&entry.tool) {
                continue;
            }
            let place = self.place(&entry.name());
            let lock = place.open_lock()?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    bail!("{} is in use by another process: try again later", entry.name())
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            let folders = [&place.whole, &place.partial, &place.proof, &place.downloads];
            let size = folders.iter().map(|folder| disk::size(folder)).sum();
            for folder in folders {
                remove(folder)?;
            }
            cleared.push((entry.name(), size));
        }
        Ok(cleared)
    }

    /// What there is of a tool: the version that this checkout wants, then others.
    pub(crate) fn rows(&self, tool: &Tool) -> Result<Vec<Row>> {
        let wanted = tool.key(&workspace::root()?)?;
        let mut others: Vec<_> = self.entries()?.into_iter().filter(|entry| entry.tool == tool.name).collect();
        others.retain(|entry| entry.key != wanted);
        let mut rows = vec![self.row(tool.name, &wanted, State::Ready)];
        rows.extend(others.iter().map(|entry| self.row(tool.name, &entry.key, State::OldVersion)));
        Ok(rows)
    }

    fn row(&self, tool: &str, key: &str, whole: State) -> Row {
        let place = self.place(&format!("{tool}-{key}"));
        let unfinished = [&place.partial, &place.proof, &place.downloads];
        let (state, size) = if place.whole.is_dir() {
            (whole, Some(disk::size(&place.whole)))
        } else if unfinished.iter().any(|folder| folder.is_dir()) {
            (State::Partial, Some(unfinished.iter().map(|folder| disk::size(folder)).sum()))
        } else {
            (State::NotFetched, None)
        };
        Row { key: key.to_owned(), size, state }
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

    fn place(&self, name: &str) -> Place {
        Place {
            whole: self.root.join(name),
            partial: self.root.join(format!("{name}.partial")),
            proof: self.root.join(format!("{name}.proof")),
            downloads: self.root.join(format!("{name}.downloads")),
            lock: self.root.join("locks").join(name),
            log: self.root.join("logs").join(name),
        }
    }
}

/// Where the parts of one entry are.
#[derive(Debug)]
struct Place {
    whole: PathBuf,
    partial: PathBuf,
    proof: PathBuf,
    downloads: PathBuf,
    lock: PathBuf,
    log: PathBuf,
}

impl Place {
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
struct Go {
    program: PathBuf,
    _entry: Option<Entry>,
}

impl Go {
    /// Whatever the user's own settings are: the modules as they are pinned, this toolchain, and no C.
    fn set(&self, command: &mut Command) {
        command.env("GO", &self.program).env_remove("GOROOT");
        for (name, value) in
            [("GOFLAGS", "-mod=readonly"), ("GOTOOLCHAIN", "local"), ("GOWORK", "off"), ("CGO_ENABLED", "0")]
        {
            command.env(name, value);
        }
    }
}

/// One go at making an entry.
struct Make<'a> {
    tool: &'a Tool,
    place: &'a Place,
    lock: &'a File,
    go: Option<Go>,
    log: File,
}

impl Make<'_> {
    fn step(&self, step: &Step, folder: &Path) -> Result<()> {
        let tries = step.kind.tries();
        for attempt in 1.. {
            let Err(error) = self.attempt(step, folder) else { break };
            if error.is::<Interrupted>() {
                return Err(error);
            }
            if attempt == tries {
                return Err(self.words(step, tries, &error));
            }
            let wait = RETRY_AFTER * attempt;
            eprintln!("{}: {error}; try {} of {tries} in {}", self.tool.name, attempt + 1, clock::words(wait));
            process::pause(wait)?;
        }
        Ok(())
    }

    fn attempt(&self, step: &Step, folder: &Path) -> Result<()> {
        let program = match step.program {
            Program::Python => machine::python()?,
            Program::AnyPython => machine::any_python()?,
            Program::Go => self.go.as_ref().context("a recipe without Go has a step with it")?.program.clone(),
            Program::Machine(name) => name.into(),
            Program::Entry(path) => folder.join(path),
        };
        let mut command = Command::new(program);
        command.args(step.arguments).current_dir(folder);
        // What pip has downloaded is kept for the next try, and only until the entry is whole.
        command.env("PIP_CACHE_DIR", &self.place.downloads);
        if let Some(go) = &self.go {
            go.set(&mut command);
        }
        // The child holds the lock too: if this program is killed, the next one waits until the child has ended.
        command.stdin(self.lock.try_clone()?);
        writeln!(&self.log, "\n$ {}", process::line(&command))?;
        process::run_quiet(&mut command, &self.log, step.limit, |took| {
            let name = self.tool.name;
            match self.last_words(1).trim() {
                "" => eprintln!("{name}: {} so far", clock::words(took)),
                words => eprintln!("{name}: {} so far, at {words}", clock::words(took)),
            }
        })
    }

    /// The last lines of the log.
    fn last_words(&self, count: usize) -> String {
        let text = std::fs::read(&self.place.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n  | ")
    }

    fn words(&self, step: &Step, tries: u32, error: &anyhow::Error) -> anyhow::Error {
        let tail = self.last_words(TAIL);
        let times = if tries > 1 { format!(", {tries} times") } else { String::new() };
        let (name, log) = (self.tool.name, self.place.log.display());
        anyhow::anyhow!("{name}: cannot {}: {error}{times}\n  | {tail}\n  whole log: {log}", step.what)
    }
}

fn wait_for(name: &str, mut attempt: impl FnMut() -> Result<(), TryLockError>) -> Result<()> {
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
        process::pause(LOCK_POLL)?;
    }
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The cache folder, from the environment.
fn folder(variable: impl Fn(&str) -> Option<PathBuf>, macos: bool) -> Result<PathBuf> {
    if let Some(chosen) = variable("ROLLORA_CACHE") {
        return Ok(chosen);
    }
    let below_home = if macos { "Library/Caches" } else { ".cache" };
    let user = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(below_home)));
    Ok(user.context("neither ROLLORA_CACHE nor HOME says where the tool cache is")?.join("rollora"))
}

#[cfg(test)]
mod tests;
