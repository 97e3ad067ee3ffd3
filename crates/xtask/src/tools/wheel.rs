//! Programs from Python packages: the package is fetched with its hash, and only the program is kept.

use std::time::Duration;

use super::recipe::{RecipeStep, StepKind, StepProgram};

pub(crate) const CREATE_VENV: RecipeStep = RecipeStep {
    description: "create a Python virtual environment",
    program: StepProgram::AnyPython,
    arguments: &["-m", "venv", "venv"],
    timeout: Duration::from_mins(10),
    kind: StepKind::Local,
};

/// Unpacks the packages that `requirements.txt` pins into `wheel/`.
pub(crate) const fn install_requirements(what: &'static str) -> RecipeStep {
    RecipeStep {
        description: what,
        program: StepProgram::Entry("venv/bin/python"),
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
        timeout: Duration::from_mins(15),
        kind: StepKind::Network,
    }
}

/// Extracts the program from `wheel/` with `script`, and removes everything else.
pub(crate) const fn keep_program(script: &'static [&'static str]) -> RecipeStep {
    RecipeStep {
        description: "extract the program",
        program: StepProgram::Machine("sh"),
        arguments: script,
        timeout: Duration::from_mins(5),
        kind: StepKind::Local,
    }
}
