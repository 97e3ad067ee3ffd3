//! Compiles everything once: clippy's driver compiles the crates of the workspace in place of rustc, so that one
//! compilation yields the programs, the tests and the findings.

use anyhow::Result;

use super::CheckOutcome;
use crate::crds;
use crate::workspace::{self, Lints};

/// All targets of the workspace, because tests start programs of other packages.
pub(super) const EVERYTHING: [&str; 2] = ["--workspace", "--all-targets"];

pub(super) fn has_clippy() -> bool {
    workspace::clippy_driver().is_ok()
}

pub(super) fn run(lints: Lints) -> CheckOutcome {
    let build = match workspace::build_with(lints, &EVERYTHING) {
        Ok(build) => build,
        Err(error) => return CheckOutcome::Failed(format!("{error:#}")),
    };
    match (lints, build.findings.len()) {
        (Lints::Off, _) => {
            CheckOutcome::Skipped("the toolchain has no clippy; `rustup component add clippy`".to_owned())
        }
        (Lints::On, 0) => CheckOutcome::Passed,
        (Lints::On, count) => CheckOutcome::Failed(format!("{count} findings, see above")),
    }
}

/// Compares the generated schemas with the types, using examples that were compiled with everything else.
pub(super) fn crds(lints: Lints) -> Result<()> {
    crds::run_with(crds::Mode::Check, &workspace::build_with(lints, &EVERYTHING)?.programs)
}
