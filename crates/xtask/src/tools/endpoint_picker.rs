//! Upstream's endpoint picker, built from its Go module.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "endpoint-picker",
    env_var: Some("ROLLORA_ENDPOINT_PICKER_HOME"),
    purpose: "the picker that scenarios use instead of rollora-ext-proc, or behind it: bin/epp",
    cost: "60 MB on disk, and 1 GB in Go's own caches; about 4 minutes on 2 processors with empty caches",
    requirements: &[HostRequirement::Linux, HostRequirement::Go, HostRequirement::DiskSpaceGb(1)],
    pinned: &["testbed/endpoint-picker/go.mod", "testbed/endpoint-picker/go.sum"],
    steps: &[
        RecipeStep {
            description: "fetch the Go modules",
            program: StepProgram::Go,
            arguments: &["list", "-deps", PACKAGE],
            timeout: Duration::from_mins(30),
            kind: StepKind::Network,
        },
        RecipeStep {
            description: "build it, about 3 min on 2 processors",
            program: StepProgram::Go,
            arguments: &["build", "-v", "-ldflags=-s -w", "-o", "bin/epp", PACKAGE],
            // Allows for a concurrent build that uses every processor, with two processors.
            timeout: Duration::from_mins(90),
            kind: StepKind::Local,
        },
    ],
    verification: RecipeStep {
        description: "query its flags",
        program: StepProgram::Machine("sh"),
        arguments: &["-euc", "bin/epp --help 2>&1 | grep -q -e --pool-name"],
        timeout: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};

const PACKAGE: &str = "sigs.k8s.io/gateway-api-inference-extension/cmd/epp";
