//! Upstream's body-based router, built from the Go module that its endpoint picker is of.

use std::time::Duration;

use super::machine::Need;
use super::recipe::{Program, Step, StepKind, Tool};

pub(crate) const TOOL: Tool = Tool {
    name: "body-router",
    variable: None,
    purpose: "the router that rollora-ext-proc is measured against: bin/bbr",
    cost: "55 MB on disk; seconds where endpoint-picker was built, else about 3 minutes on 2 processors",
    needs: &[Need::Linux, Need::Go, Need::Room(1)],
    pinned: &["testbed/endpoint-picker/go.mod", "testbed/endpoint-picker/go.sum"],
    steps: &[
        Step {
            what: "fetch the Go modules",
            program: Program::Go,
            arguments: &["list", "-deps", PACKAGE],
            limit: Duration::from_mins(30),
            kind: StepKind::Network,
        },
        Step {
            what: "build it, about 2 min on 2 processors",
            program: Program::Go,
            arguments: &["build", "-v", "-ldflags=-s -w", "-o", "bin/bbr", PACKAGE],
            // Beside a build that takes every processor, on two of them.
            limit: Duration::from_mins(90),
            kind: StepKind::Local,
        },
    ],
    proof: Step {
        what: "ask it for its flags",
        program: Program::Machine("sh"),
        arguments: &["-euc", "bin/bbr --help 2>&1 | grep -q -e --streaming"],
        limit: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};

const PACKAGE: &str = "sigs.k8s.io/gateway-api-inference-extension/cmd/bbr";
