//! What an entry of the cache is made from, as plain data, and the key that follows from it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::host::HostRequirement;

/// Something that a command has to fetch or build once.
#[derive(Debug)]
pub(crate) struct ToolRecipe {
    pub(crate) name: &'static str,
    /// The variable that tells tests and the demo where the entry is, where they want it.
    pub(crate) env_var: Option<&'static str>,
    /// What it is for, on one line.
    pub(crate) purpose: &'static str,
    /// What making it costs, in words.
    pub(crate) cost: &'static str,
    /// What the machine must have for it.
    pub(crate) requirements: &'static [HostRequirement],
    /// Files of the repository that it is made from; the steps find them by their bare names.
    pub(crate) pinned: &'static [&'static str],
    /// How it is made, in order.
    pub(crate) steps: &'static [RecipeStep],
    /// What must succeed in the finished, renamed folder.
    pub(crate) verification: RecipeStep,
}

/// One command of a recipe. It runs in the entry's folder.
#[derive(Debug)]
pub(crate) struct RecipeStep {
    /// What it does, with how long that takes where it is long.
    pub(crate) description: &'static str,
    pub(crate) program: StepProgram,
    pub(crate) arguments: &'static [&'static str],
    /// For each try.
    pub(crate) timeout: Duration,
    pub(crate) kind: StepKind,
}

/// Whether trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepKind {
    /// Asks a registry: three tries.
    Network,
    /// The same again would end the same.
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

/// What a step starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StepProgram {
    /// The machine's Python 3.11.
    Python,
    /// The machine's Python, of any version that is still maintained.
    AnyPython,
    /// Go: the machine's where that is new enough, else the one of the tool cache. Other steps of such a recipe find it
    /// as `$GO`.
    Go,
    /// A program of the machine.
    Machine(&'static str),
    /// A file of the entry.
    Entry(&'static str),
}

impl ToolRecipe {
    /// Tells entries apart that are made in different ways: another pinned file, another step, another machine.
    pub(crate) fn key(&self, root: &Path) -> Result<String> {
        let mut hash = Sha256::new();
        let mut add = |part: &[u8]| {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        };
        add(std::env::consts::OS.as_bytes());
        add(std::env::consts::ARCH.as_bytes());
        for step in self.steps {
            // Not the words and limits: they change nothing in what comes out.
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
    fn the_key_follows_the_pinned_files_and_the_steps_and_nothing_else() {
        let before = key(&TOOL, "a==1");
        assert_eq!(before, key(&TOOL, "a==1"));
        assert_ne!(before, key(&TOOL, "a==2"));
        assert_ne!(before, key(&ToolRecipe { steps: &[RecipeStep { arguments: &["no"], ..STEP }], ..TOOL }, "a==1"));
        assert_eq!(before, key(&ToolRecipe { steps: &[RecipeStep { description: "agree", ..STEP }], ..TOOL }, "a==1"));
        assert_eq!(before.len(), 12);
    }

    #[test]
    fn a_pinned_file_that_is_missing_is_named() {
        let error = TOOL.key(Path::new("/nowhere")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/pinned.txt");
    }
}
