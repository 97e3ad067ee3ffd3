//! Recipes of the cache's entries, as plain data, and the keys that are derived from them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::host::HostRequirement;

/// A tool that is fetched or built once, and how.
#[derive(Debug)]
pub(crate) struct ToolRecipe {
    pub(crate) name: &'static str,
    /// Environment variable in which tests and the demo receive the entry's folder; `None` if they do not use it.
    pub(crate) env_var: Option<&'static str>,
    /// What the tool is used for, in one line.
    pub(crate) purpose: &'static str,
    /// Download size, disk space and time of the build, in words.
    pub(crate) cost: &'static str,
    /// What the machine must provide for the build.
    pub(crate) requirements: &'static [HostRequirement],
    /// Files of the repository that determine the entry; steps refer to them by their file names.
    pub(crate) pinned: &'static [&'static str],
    /// Steps of the build, in order.
    pub(crate) steps: &'static [RecipeStep],
    /// Command that must succeed in the complete, renamed folder.
    pub(crate) verification: RecipeStep,
}

/// One command of a recipe, which runs in the entry's folder.
#[derive(Debug)]
pub(crate) struct RecipeStep {
    /// What the step does, as an imperative phrase, with its duration if it is long.
    pub(crate) description: &'static str,
    pub(crate) program: StepProgram,
    pub(crate) arguments: &'static [&'static str],
    /// Time limit of each attempt.
    pub(crate) timeout: Duration,
    pub(crate) kind: StepKind,
}

/// Whether retrying makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// Uses the network: three attempts.
    Network,
    /// Deterministic: another attempt would end the same way.
    Local,
}

impl StepKind {
    pub(crate) fn max_attempts(self) -> u32 {
        match self {
            Self::Network => 3,
            Self::Local => 1,
        }
    }
}

/// The program that a step starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepProgram {
    /// Python 3.11 of the machine.
    Python,
    /// Python 3.9 or newer of the machine.
    AnyPython,
    /// Go of the machine if it is new enough, or else of the tool cache. Other steps of such a recipe find it as
    /// `$GO`.
    Go,
    /// Another program on PATH.
    Machine(&'static str),
    /// A file of the entry, by its relative path.
    Entry(&'static str),
}

impl ToolRecipe {
    /// Computes the key, which differs for other pinned files, other steps and other platforms.
    pub(crate) fn key(&self, root: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        };
        add(std::env::consts::OS.as_bytes());
        add(std::env::consts::ARCH.as_bytes());
        for step in self.steps {
            // Descriptions and time limits are left out: they do not affect the result.
            add(format!("{:?} {:?}", step.program, step.arguments).as_bytes());
        }
        for file in self.pinned_files(root) {
            add(&std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?);
        }
        Ok(hex(hash.finalize().get(..6).unwrap_or_default()))
    }

    pub(crate) fn uses_go(&self) -> bool {
        self.steps.iter().any(|step| step.program == StepProgram::Go)
    }

    pub(crate) fn pinned_files(&self, root: &Path) -> impl Iterator<Item = PathBuf> {
        self.pinned.iter().map(move |file| root.join(file))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: RecipeStep = RecipeStep {
        description: "say yes",
        program: StepProgram::Machine("echo"),
        arguments: &["yes"],
        timeout: Duration::from_secs(1),
        kind: StepKind::Local,
    };
    const TOOL: ToolRecipe = ToolRecipe {
        name: "yes",
        env_var: None,
        purpose: "tests",
        cost: "nothing",
        requirements: &[],
        pinned: &["pinned.txt"],
        steps: &[STEP],
        verification: STEP,
    };

    fn key(tool: &ToolRecipe, pinned: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("pinned.txt"), pinned).unwrap();
        tool.key(root.path()).unwrap()
    }

    #[test]
    fn key_depends_only_on_pinned_files_and_steps() {
        let before = key(&TOOL, "a==1");
        assert_eq!(before, key(&TOOL, "a==1"));
        assert_ne!(before, key(&TOOL, "a==2"));
        assert_ne!(before, key(&ToolRecipe { steps: &[RecipeStep { arguments: &["no"], ..STEP }], ..TOOL }, "a==1"));
        assert_eq!(before, key(&ToolRecipe { steps: &[RecipeStep { description: "agree", ..STEP }], ..TOOL }, "a==1"));
        assert_eq!(before.len(), 12);
    }

    #[test]
    fn missing_pinned_file_is_named() {
        let error = TOOL.key(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/pinned.txt");
    }
}
