//! Where the programs are that are not built here: entries of the tool cache, which `cargo xtask test` and
//! `cargo xtask demo --cluster` make and name in variables.

use anyhow::{Context as _, Result};
use std::{io::Write as _, path::PathBuf};

/// An entry of the tool cache.
#[derive(Debug, Clone, Copy)]
pub struct CachedTool {
    /// What `cargo xtask tools` calls it.
    pub tool: &'static str,
    /// The variable that says where it is.
    pub env_var: &'static str,
}

/// `bin/kube-apiserver`, `bin/etcd`, `bin/kubectl`, and upstream's definitions in `crds/`.
pub const CONTROL_PLANE: CachedTool = CachedTool { tool: "control-plane", env_var: "ROLLORA_CONTROL_PLANE_HOME" };
/// `bin/envoy`.
pub const ENVOY: CachedTool = CachedTool { tool: "envoy", env_var: "ROLLORA_ENVOY_HOME" };
/// `bin/epp`.
pub const ENDPOINT_PICKER: CachedTool = CachedTool { tool: "endpoint-picker", env_var: "ROLLORA_ENDPOINT_PICKER_HOME" };

impl CachedTool {
    /// Its folder, where somebody named it.
    pub fn dir(&self) -> Option<PathBuf> {
        std::env::var_os(self.env_var).filter(|value| !value.is_empty()).map(PathBuf::from)
    }

    /// One of its programs.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let Self { tool, env_var: variable } = self;
        let words =
            || format!("{variable} is not set: `cargo xtask tools fetch {tool}` makes the folder that it names");
        let path = self.dir().with_context(words)?.join("bin").join(name);
        anyhow::ensure!(path.is_file(), "{variable} names a folder without {}", path.display());
        Ok(path)
    }
}

/// Whether all of these are known. Where one is not, a line says past the test harness what is skipped therefore;
/// `cargo xtask test` counts that as a skip, and knows the reason.
pub fn all_available(homes: &[CachedTool], what: &str) -> bool {
    let missing: Vec<_> = homes.iter().filter(|home| home.dir().is_none()).map(|home| home.env_var).collect();
    if missing.is_empty() {
        return true;
    }
    let words = format!("skipped: {what}, because {} is not set", missing.join(" and "));
    drop(writeln!(
        std::io::stderr().lock(),
        "{words} (`cargo xtask test` sets it, and `cargo xtask tools env` says it)"
    ));
    false
}
