//! Formatting, by the toolchain's own program.

use crate::process;
use crate::test::Outcome;
use crate::workspace::cargo;

pub(super) fn run() -> Outcome {
    let there = cargo(&["fmt", "--version"]).ok().and_then(|mut command| process::output_of(&mut command));
    if there.is_none() {
        return Outcome::Skipped("the toolchain has no rustfmt; `rustup component add rustfmt`".to_owned());
    }
    match cargo(&["fmt", "--all", "--", "--check"]).and_then(|mut command| process::run_ok(&mut command)) {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("some code is not formatted; `cargo fmt --all` does it ({error:#})")),
    }
}
