//! External programs: entries of the tool cache, which `cargo xtask test` and `cargo xtask demo --cluster` build and
//! pass in environment variables.

use anyhow::{Context as _, Result};
use std::{io::Write as _, path::PathBuf};

/// An entry of the tool cache.
#[derive(Debug, Clone, Copy)]
pub struct CachedTool {
    /// Name in `cargo xtask tools`.
    pub tool: &'static str,
    /// Environment variable that holds the entry's folder.
    pub env_var: &'static str,
}

/// Kubernetes: `bin/kube-apiserver`, `bin/etcd`, `bin/kubectl`, and upstream's CRDs in `crds/`.
pub const CONTROL_PLANE: CachedTool = CachedTool { tool: "control-plane", env_var: "ROLLORA_CONTROL_PLANE_HOME" };
/// Envoy, the gateway: `bin/envoy`.
pub const ENVOY: CachedTool = CachedTool { tool: "envoy", env_var: "ROLLORA_ENVOY_HOME" };
/// Upstream's endpoint picker: `bin/epp`.
pub const ENDPOINT_PICKER: CachedTool = CachedTool { tool: "endpoint-picker", env_var: "ROLLORA_ENDPOINT_PICKER_HOME" };

impl CachedTool {
    /// Returns the folder, or `None` if the environment variable is not set.
    pub fn dir(&self) -> Option<PathBuf> {
        std::env::var_os(self.env_var).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// Returns the path of one of the entry's programs.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let Self { tool, env_var: variable } = self;
        let message = || format!("{variable} is not set: `cargo xtask tools fetch {tool}` prepares the folder for it");
        let path = self.dir().with_context(message)?.join("bin").join(name);
        anyhow::ensure!(path.is_file(), "{} does not exist: {variable} refers to the wrong folder", path.display());
        Ok(path)
    }
}

/// Returns whether all of these tools are available. If not, it writes a line to standard error, past the test harness,
/// that says what is skipped; `cargo xtask test` counts that as a skip and knows the reason.
pub fn all_available(tools: &[CachedTool], what: &str) -> bool {
    let missing: Vec<_> = tools.iter().filter(|tool| tool.dir().is_none()).map(|tool| tool.env_var).collect();
    if missing.is_empty() {
        return true;
    }
    let message = format!("skipped: {what}, because {} is not set", missing.join(" and "));
    drop(writeln!(
        std::io::stderr().lock(),
        "{message} (`cargo xtask test` sets it, and `cargo xtask tools env` prints it)"
    ));
    false
}
