//! `cargo xtask crds`: generates the CRD and the JSON schema of a sidecar's `/status` from the Rust types.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::{self, Programs, root};

/// Generated files, each with the example that prints it.
const GENERATED_FILES: [(&str, &str); 2] =
    [("crds/rollouts.rollora.dev.yaml", "crd"), ("docs/sidecar-status.schema.json", "sidecar_status_schema")];

/// What to do with files that are out of date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Write,
    /// Reports them and fails.
    Check,
}

/// Generates or checks the files, and builds the examples first.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let examples = GENERATED_FILES.iter().flat_map(|(_, example)| ["--example", example]);
    let arguments: Vec<_> = ["-p", "rollora-api", "--features", "kube"].into_iter().chain(examples).collect();
    run_with(mode, &workspace::build(&arguments)?)
}

/// Generates or checks the files with examples that are already built.
pub(crate) fn run_with(mode: Mode, programs: &Programs) -> Result<()> {
    let mut stale = Vec::new();
    for (file, example) in GENERATED_FILES {
        let wanted = process::capture(&mut Command::new(workspace::find_program(programs, example)?))?;
        let path = root()?.join(file);
        let present = std::fs::read_to_string(&path).unwrap_or_default();
        if wanted == present {
            eprintln!("{file} is up to date");
        } else if mode == Mode::Check {
            stale.push(format!("{file} (from line {} on)", first_different_line(&present, &wanted)));
        } else {
            std::fs::write(&path, wanted).with_context(|| format!("cannot write {file}"))?;
            eprintln!("wrote {file}");
        }
    }
    if stale.is_empty() {
        return Ok(());
    }
    bail!("out of date: {}; run `cargo xtask crds` to regenerate", stale.join(", "))
}

/// Returns the number of the first line that differs.
fn first_different_line(left: &str, right: &str) -> usize {
    left.lines().zip(right.lines()).take_while(|(left, right)| left == right).count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_different_line_is_reported() {
        for (left, right, expected) in [("a\nb\n", "a\nc\n", 2), ("", "a\n", 1), ("a\n", "a\nb\n", 2)] {
            assert_eq!(first_different_line(left, right), expected, "{left:?} {right:?}");
        }
    }
}
