//! nginx from Debian's packages, without being root and without installing anything.
//!
//! The lists and the downloads of `apt-get` live in the entry's own folder, so that the system's stay as they are.

use std::time::Duration;

use super::machine::Need;
use super::recipe::{Program, Step, StepKind, Tool};

pub(crate) const TOOL: Tool = Tool {
    name: "nginx",
    variable: None,
    purpose: "what the gateway is measured against, where no nginx is on PATH",
    cost: "some 15 MB to download, about 20 seconds",
    needs: &[Need::Apt, Need::Room(1)],
    pinned: &[],
    steps: &[
        Step {
            what: "ask for the package lists, and for nginx",
            program: Program::Machine("sh"),
            arguments: &["-euc", FETCH],
            limit: Duration::from_mins(3),
            kind: StepKind::Network,
        },
        Step {
            what: "unpack it",
            program: Program::Machine("sh"),
            arguments: &["-euc", "for package in *.deb; do dpkg-deb -x \"$package\" .; done; rm -rf apt *.deb"],
            limit: Duration::from_mins(1),
            kind: StepKind::Local,
        },
    ],
    proof: Step {
        what: "ask for its version",
        program: Program::Entry("usr/sbin/nginx"),
        arguments: &["-v"],
        limit: Duration::from_secs(10),
        kind: StepKind::Local,
    },
};

const FETCH: &str = r#"
mkdir -p apt/state/lists/partial apt/cache/archives/partial
apt() { apt-get -q -o Dir::State="$PWD/apt/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$PWD/apt/cache" -o APT::Sandbox::User= "$@"; }
apt update
apt download nginx
"#;
