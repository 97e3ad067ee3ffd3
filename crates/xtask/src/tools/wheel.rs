//! Programs that a Python package brings along: the package is fetched with its hash, and only the program is kept.

use std::time::Duration;

use super::recipe::{Program, Step, StepKind};

pub(crate) const ENVIRONMENT: Step = Step {
    what: "make a Python environment",
    program: Program::AnyPython,
    arguments: &["-m", "venv", "venv"],
    limit: Duration::from_mins(10),
    kind: StepKind::Local,
};

/// Unpacks what `requirements.txt` pins into `wheel/`.
pub(crate) const fn install(what: &'static str) -> Step {
    Step {
        what,
        program: Program::Entry("venv/bin/python"),
        arguments: &[
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-deps",
            "--no-compile",
            "--require-hashes",
            "--target",
            "wheel",
            "-r",
            "requirements.txt",
        ],
        limit: Duration::from_mins(15),
        kind: StepKind::Network,
    }
}

/// Keeps what `script` takes out of `wheel/`, and nothing else.
pub(crate) const fn keep(script: &'static [&'static str]) -> Step {
    Step {
        what: "keep the program alone",
        program: Program::Machine("sh"),
        arguments: script,
        limit: Duration::from_mins(5),
        kind: StepKind::Local,
    }
}
