//! nginx from Debian's packages, without root privileges and without an installation.
//!
//! Lists and downloads of `apt-get` are in the entry's own folder, so that those of the system stay unchanged.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "nginx",
    env_var: None,
    purpose: "the proxy that the bench compares the gateway with, if no nginx is on PATH",
    cost: "about 15 MB to download, about 20 seconds",
    requirements: &[HostRequirement::Apt, HostRequirement::DiskSpaceGb(1)],
    pinned: &[],
    steps: &[
        RecipeStep {
            description: "fetch the package lists and nginx",
            program: StepProgram::Machine("sh"),
            arguments: &["-euc", FETCH_SCRIPT],
            timeout: Duration::from_mins(3),
            kind: StepKind::Network,
        },
        RecipeStep {
            description: "unpack it",
            program: StepProgram::Machine("sh"),
            arguments: &["-euc", "for package in *.deb; do dpkg-deb -x \"$package\" .; done; rm -rf apt *.deb"],
            timeout: Duration::from_mins(1),
            kind: StepKind::Local,
        },
    ],
    verification: RecipeStep {
        description: "query its version",
        program: StepProgram::Entry("usr/sbin/nginx"),
        arguments: &["-v"],
        timeout: Duration::from_secs(10),
        kind: StepKind::Local,
    },
};

const FETCH_SCRIPT: &str = r#"
mkdir -p apt/state/lists/partial apt/cache/archives/partial
apt() { apt-get -q -o Dir::State="$PWD/apt/state" -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache="$PWD/apt/cache" -o APT::Sandbox::User= "$@"; }
apt update
apt download nginx
"#;
