//! `cargo xtask crds`: the schemas that are kept in files, from the Rust types: the custom resource's definition, and
//! what a sidecar answers.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::{self, Programs, root};

/// Each file, and the example that prints it.
const GENERATED_FILES: [(&str, &str); 2] =
    [("crds/rollouts.rollora.dev.yaml", "crd"), ("docs/sidecar-status.schema.json", "sidecar_status_schema")];

/// What to do with files that are not what the types say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    /// Only name them.
    Check,
}

/// Writes the files, or only compares them, with the examples of a build of their own.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let examples = GENERATED_FILES.iter().flat_map(|(_, example)| ["--example", example]);
    let arguments: Vec<_> = ["-p", "rollora-api", "--features", "kube"].into_iter().chain(examples).collect();
    run_with(mode, &workspace::build(&arguments)?)
}

/// Writes the files, or only compares them, with examples that are built already.
pub(crate) fn run_with(mode: Mode, programs: &Programs) -> Result<()> {
    let mut stale = Vec::new();
    for (file, example) in GENERATED_FILES {
        let wanted = process::capture(&mut Command::new(workspace::find_program(programs, example)?))?;
        let path = root()?.join(file);
        let present = std::fs::read_to_string(&path).unwrap_or_default();
        if wanted == present {
            eprintln!("{file} is what the Rust types say");
        } else if mode == Mode::Check {
            stale.push(format!("{file} (from line {} on)", first_different_line(&present, &wanted)));
        } else {
            std::fs::write(&path, wanted).with_context(|| format!("cannot write {file}"))?;
            eprintln!("{file} written");
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    bail!("not what the Rust types say: {}; `cargo xtask crds` writes it", stale.join(", "))
}

/// The number of the first line that is not the same in both.
fn first_different_line(left: &str, right: &str) -> usize {
    left.lines().zip(right.lines()).take_while(|(left, right)| left == right).count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        for (left, right, expected) in [("a\nb\n", "a\nc\n", 2), ("", "a\n", 1), ("a\n", "a\nb\n", 2)] {
            assert_eq!(first_different_line(left, right), expected, "{left:?} {right:?}");
        }
    }
}
