//! Formatting and lints, by the toolchain's own programs.

use crate::process;
use crate::test::Outcome;
use crate::workspace::cargo;

pub(super) fn format() -> Outcome {
    if let Some(missing) = component("fmt", "rustfmt") {
        return missing;
    }
    if runs(&["fmt", "--all", "--", "--check"]) {
        Outcome::Passed
    } else {
        Outcome::Failed("some code is not formatted; `cargo fmt --all` does it".to_owned())
    }
}

pub(super) fn clippy() -> Outcome {
    if let Some(missing) = component("clippy", "clippy") {
        return missing;
    }
    let workspace = runs(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    let derives = runs(&[
        "clippy",
        "--locked",
        "-p",
        "rollora-api",
        "--features",
        "kube",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    match (workspace, derives) {
        (true, true) => Outcome::Passed,
        (true, false) => Outcome::Failed("clippy finds something in rollora-api with the feature kube".to_owned()),
        (false, _) => Outcome::Failed("clippy finds something".to_owned()),
    }
}

fn runs(arguments: &[&str]) -> bool {
    match cargo(arguments).and_then(|mut command| process::run_ok(&mut command)) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("{error:#}");
            false
        }
    }
}

/// What to say where a component of the toolchain is not installed.
fn component(verb: &str, name: &str) -> Option<Outcome> {
    let there = cargo(&[verb, "--version"]).ok().and_then(|mut command| process::output_of(&mut command));
    there.is_none().then(|| Outcome::Skipped(format!("the toolchain has no {name}; `rustup component add {name}`")))
}
