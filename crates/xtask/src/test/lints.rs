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
    let whole = runs(&["clippy", "--locked", "--workspace", "--all-features", "--all-targets", "--", "-D", "warnings"]);
    // What `cargo xtask demo` builds, the first thing that anybody runs: nothing else is built without all features.
    let one_machine = runs(&[
        "clippy",
        "--locked",
        "-p",
        "rollora-cli",
        "-p",
        "rollora-e2e",
        "--no-default-features",
        "--bins",
        "--",
        "-D",
        "warnings",
    ]);
    match (whole, one_machine) {
        (true, true) => Outcome::Passed,
        (true, false) => Outcome::Failed("clippy finds something where there is no cluster".to_owned()),
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
