//! Upstream's body-based router, built from the Go module of its endpoint picker.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "body-router",
    env_var: None,
    purpose: "the router that the bench compares rollora-ext-proc with: bin/bbr",
    cost: "55 MB on disk; seconds if endpoint-picker was built, otherwise about 3 minutes on 2 processors",
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
            description: "build it, about 2 min on 2 processors",
            program: StepProgram::Go,
            arguments: &["build", "-v", "-ldflags=-s -w", "-o", "bin/bbr", PACKAGE],
            // Allows for a concurrent build that uses every processor, with two processors.
            timeout: Duration::from_mins(90),
            kind: StepKind::Local,
        },
    ],
    verification: RecipeStep {
        description: "query its flags",
        program: StepProgram::Machine("sh"),
        arguments: &["-euc", "bin/bbr --help 2>&1 | grep -q -e --streaming"],
        timeout: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};

const PACKAGE: &str = "sigs.k8s.io/gateway-api-inference-extension/cmd/bbr";
