//! `cargo xtask crds`: the custom resource's definition, from the Rust types.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::{self, root};

const FILE: &str = "crds/rollouts.rollora.dev.yaml";

/// Writes the file, or only compares it.
pub(crate) fn run(check: bool) -> Result<()> {
    let wanted = generate()?;
    let path = root()?.join(FILE);
    let present = std::fs::read_to_string(&path).unwrap_or_default();
    if wanted == present {
        eprintln!("{FILE} is what the Rust types say");
        return Ok(());
    }
    if check {
        bail!(
            "{FILE} is not what the Rust types say, from line {} on; `cargo xtask crds` writes it",
            differs(&present, &wanted)
        );
    }
    std::fs::write(&path, wanted).with_context(|| format!("cannot write {FILE}"))?;
    eprintln!("{FILE} written");
    Ok(())
}

fn generate() -> Result<String> {
    // With the features of the whole workspace, as the tests are built: nothing is compiled for this alone.
    let programs = workspace::build(&["--workspace", "--all-features", "--example", "crd"])?;
    process::capture(&mut Command::new(workspace::find(&programs, "crd")?))
}

/// The number of the first line that is not the same in both.
fn differs(left: &str, right: &str) -> usize {
    left.lines().zip(right.lines()).take_while(|(left, right)| left == right).count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_differs_is_named() {
        for (left, right, expected) in [("a\nb\n", "a\nc\n", 2), ("", "a\n", 1), ("a\n", "a\nb\n", 2)] {
            assert_eq!(differs(left, right), expected, "{left:?} {right:?}");
        }
    }
}
