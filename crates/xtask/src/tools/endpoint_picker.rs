//! Upstream's endpoint picker, built from its Go module.

use std::time::Duration;

use super::machine::Need;
use super::recipe::{Program, Step, StepKind, Tool};

pub(crate) const TOOL: Tool = Tool {
    name: "endpoint-picker",
    variable: Some("ROLLORA_ENDPOINT_PICKER_HOME"),
    purpose: "the picker that scenarios put in the place of rollora-ext-proc, or behind it: bin/epp",
    cost: "60 MB on disk, and 1 GB in Go's own caches; about 4 minutes on 2 processors where those are empty",
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
            what: "build it, about 3 min on 2 processors",
            program: Program::Go,
            arguments: &["build", "-v", "-ldflags=-s -w", "-o", "bin/epp", PACKAGE],
            // Beside a build that takes every processor, on two of them.
            limit: Duration::from_mins(90),
            kind: StepKind::Local,
        },
    ],
    proof: Step {
        what: "ask it for its flags",
        program: Program::Machine("sh"),
        arguments: &["-euc", "bin/epp --help 2>&1 | grep -q -e --pool-name"],
        limit: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};

const PACKAGE: &str = "sigs.k8s.io/gateway-api-inference-extension/cmd/epp";
