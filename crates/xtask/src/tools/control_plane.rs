//! A real Kubernetes API server, etcd and kubectl, built from their Go modules, and upstream's CRDs.
//!
//! The programs are `bin/kube-apiserver`, `bin/etcd` and `bin/kubectl`; the CRDs are in `crds/` under upstream's file
//! names. The CRD of the current group, `llm-d.ai`, is upstream's legacy one with another group: their schemas are
//! identical, and the module with the current one is not available from the Go module proxy.

use std::time::Duration;

use super::host::HostRequirement;
use super::recipe::{RecipeStep, StepKind, StepProgram, ToolRecipe};

/// Allows for a concurrent build that uses every processor, with two processors.
const BUILD_TIMEOUT: Duration = Duration::from_hours(2);

pub(crate) const TOOL: ToolRecipe = ToolRecipe {
    name: "control-plane",
    env_var: Some("ROLLORA_CONTROL_PLANE_HOME"),
    purpose: "the testbed's Kubernetes: kube-apiserver, etcd, kubectl, upstream's CRDs",
    cost: "210 MB on disk, and 4 GB in Go's own caches; about 10 minutes on 2 processors with empty caches",
    requirements: &[HostRequirement::Linux, HostRequirement::Go, HostRequirement::DiskSpaceGb(1)],
    pinned: &["testbed/control-plane/go.mod", "testbed/control-plane/go.sum", "testbed/control-plane/crds.sha256"],
    steps: &[
        RecipeStep {
            description: "fetch the Go modules, about 1 min",
            program: StepProgram::Go,
            arguments: &[
                "list",
                "-deps",
                "go.etcd.io/etcd/server/v3",
                "k8s.io/kubernetes/cmd/kube-apiserver",
                "k8s.io/kubernetes/cmd/kubectl",
            ],
            timeout: Duration::from_mins(30),
            kind: StepKind::Network,
        },
        RecipeStep {
            description: "fetch upstream's CRDs",
            program: StepProgram::Go,
            arguments: &["mod", "download", "sigs.k8s.io/gateway-api-inference-extension@v1.5.0"],
            timeout: Duration::from_mins(10),
            kind: StepKind::Network,
        },
        RecipeStep {
            description: "copy them, and create the one of the group llm-d.ai",
            program: StepProgram::Machine("sh"),
            arguments: &["-euc", CRDS_SCRIPT],
            timeout: Duration::from_mins(2),
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "build etcd, about 1 min",
            program: StepProgram::Go,
            arguments: &["build", "-v", "-ldflags=-s -w", "-o", "bin/etcd", "go.etcd.io/etcd/server/v3"],
            timeout: BUILD_TIMEOUT,
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "build kube-apiserver, about 7 min on 2 processors",
            program: StepProgram::Go,
            arguments: &[
                "build",
                "-v",
                VERSION_LDFLAGS,
                "-o",
                "bin/kube-apiserver",
                "k8s.io/kubernetes/cmd/kube-apiserver",
            ],
            timeout: BUILD_TIMEOUT,
            kind: StepKind::Local,
        },
        RecipeStep {
            description: "build kubectl, about 1 min",
            program: StepProgram::Go,
            arguments: &["build", "-v", VERSION_LDFLAGS, "-o", "bin/kubectl", "k8s.io/kubernetes/cmd/kubectl"],
            timeout: BUILD_TIMEOUT,
            kind: StepKind::Local,
        },
    ],
    verification: RecipeStep {
        description: "query the versions of all three",
        program: StepProgram::Machine("sh"),
        arguments: &["-euc", "bin/etcd --version; bin/kube-apiserver --version; bin/kubectl version --client"],
        timeout: Duration::from_mins(2),
        kind: StepKind::Local,
    },
};

/// Without it the server reports a template as its version, which no client can parse.
const VERSION_LDFLAGS: &str = "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2";

const CRDS_SCRIPT: &str = r#"
mkdir crds
cd crds
from="$("$GO" env GOMODCACHE)/sigs.k8s.io/gateway-api-inference-extension@v1.5.0/config/crd/bases"
while read -r _ file; do cat "$from/$file" > "$file"; done < ../crds.sha256
sha256sum -c ../crds.sha256
sed -e '/^  name: /s/inference\.networking\.x-k8s\.io$/llm-d.ai/' -e '/^  group: /s/inference\.networking\.x-k8s\.io$/llm-d.ai/' \
  inference.networking.x-k8s.io_inferencemodelrewrites.yaml > llm-d.ai_inferencemodelrewrites.yaml
grep -qx '  name: inferencemodelrewrites.llm-d.ai' llm-d.ai_inferencemodelrewrites.yaml
grep -qx '  group: llm-d.ai' llm-d.ai_inferencemodelrewrites.yaml
"#;
