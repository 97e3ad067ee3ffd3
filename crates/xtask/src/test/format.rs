//! Checks the formatting with `cargo fmt`.

use crate::process;
use crate::test::CheckOutcome;
use crate::workspace::cargo;

pub(super) fn run() -> CheckOutcome {
    let there = cargo(&["fmt", "--version"]).ok().and_then(|mut command| process::output_of(&mut command));
    if there.is_none() {
        return CheckOutcome::Skipped("the toolchain has no rustfmt; `rustup component add rustfmt`".to_owned());
    }
    match cargo(&["fmt", "--all", "--", "--check"]).and_then(|mut command| process::run_ok(&mut command)) {
        Ok(()) => CheckOutcome::Passed,
        Err(error) => CheckOutcome::Failed(format!("some code is not formatted; run `cargo fmt --all` ({error:#})")),
    }
}
