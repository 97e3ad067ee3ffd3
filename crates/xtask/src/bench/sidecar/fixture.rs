//! Environment of a measured sidecar: its mount, its ConfigMap, its process.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::super::load_generator::LoadGenerator;
use super::super::processes::{BenchProcess, control_plane_command, free_address};
use crate::clock;
use crate::process;
use crate::tools::ToolEntry;
use crate::workspace::Programs;

/// Longer than any condition takes to become true.
const WAIT_TIMEOUT: Duration = Duration::from_mins(1);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
const CONFIG_MAP_KEY: &str = "configmap.yaml";
const CONFIG_MAP_NAME: &str = "bench-adapters";
const NAMESPACE: &str = "default";

/// Returns an adapters file for the server at this port. Sources are paths: adapters of a hub load one by one.
pub(super) fn adapters_yaml(port: u16, adapters: usize) -> String {
    let mut text = format!(
        "vLLMLoRAConfig:\n  name: {CONFIG_MAP_NAME}\n  host: 127.0.0.1\n  port: {port}\n  ensureExist:\n    models:"
    );
    if adapters == 0 {
        text.push_str(" []");
    }
    text.push('\n');
    for number in 0..adapters {
        // Writing to a String cannot fail.
        write!(text, "    - id: adapter-{number:04}\n      source: /adapters/adapter-{number:04}\n").ok();
    }
    text
}

/// A folder like a mounted ConfigMap: the file is a link into `..data`, which is a link that is swapped.
pub(super) struct MountedConfigMap(PathBuf);

impl MountedConfigMap {
    pub(super) fn create(folder: &Path, text: &str) -> Result<Self> {
        fs::create_dir(folder)?;
        let mount = Self(folder.to_owned());
        mount.swap(text)?;
        symlink(Path::new("..data").join(CONFIG_MAP_KEY), mount.file())?;
        Ok(mount)
    }

    pub(super) fn file(&self) -> PathBuf {
        self.0.join(CONFIG_MAP_KEY)
    }

    pub(super) fn swap(&self, text: &str) -> Result<()> {
        let fresh = tempfile::Builder::new().prefix("..").tempdir_in(&self.0)?.keep();
        fs::write(fresh.join(CONFIG_MAP_KEY), text)?;
        let link = self.0.join("..data_tmp");
        symlink(fresh.file_name().context("a temporary folder has a name")?, &link)?;
        fs::rename(link, self.0.join("..data"))?;
        Ok(())
    }
}

/// A real API server with the ConfigMap, reached through `kubectl proxy`, which does the TLS.
pub(super) struct ProxiedApiServer {
    // Fields are dropped in this order.
    _proxy: BenchProcess,
    _control_plane: BenchProcess,
    address: SocketAddr,
    kubeconfig: PathBuf,
    /// Locked while it is used, so that no other process clears it.
    _entry: ToolEntry,
}

impl ProxiedApiServer {
    pub(super) fn start(programs: &Programs) -> Result<Self> {
        let (command, entry) = control_plane_command(programs, "control-plane")?;
        let (plane, kubeconfig) = BenchProcess::start_and_read_line("control-plane", command)?;
        let kubeconfig = PathBuf::from(kubeconfig);
        let mut command = Command::new(entry.path().join("bin/kubectl"));
        command.args(["proxy", "--port=0"]).env("KUBECONFIG", &kubeconfig);
        let (proxy, line) = BenchProcess::start_and_read_line("kubectl", command)?;
        let address = line.rsplit(' ').next().and_then(|address| address.parse().ok());
        let address = address.with_context(|| format!("kubectl printed {line:?} instead of its address"))?;
        Ok(Self { _proxy: proxy, _control_plane: plane, address, kubeconfig, _entry: entry })
    }

    pub(super) fn create_config_map(&self, text: &str) -> Result<()> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": CONFIG_MAP_NAME },
            "data": { CONFIG_MAP_KEY: text }
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        request_json(self.address, "POST", &path, Some(("application/json", &body))).map(drop)
    }

    pub(super) fn update_config_map(&self, text: &str) -> Result<()> {
        let body = json!({ "data": { CONFIG_MAP_KEY: text } });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps/{CONFIG_MAP_NAME}");
        request_json(self.address, "PATCH", &path, Some(("application/merge-patch+json", &body))).map(drop)
    }
}

/// A running sidecar, with the address of its admin endpoints.
pub(super) struct SidecarProcess(BenchProcess);

impl SidecarProcess {
    pub(super) fn start_file_mode(
        name: &'static str,
        program: &Path,
        file: &Path,
        flags: &[&str],
        folder: &Path,
    ) -> Result<Self> {
        Self::spawn(name, Command::new(program), file, flags, folder)
    }

    pub(super) fn start_watch_mode(
        name: &'static str,
        program: &Path,
        file: &Path,
        cluster: &ProxiedApiServer,
        folder: &Path,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command.env("KUBECONFIG", &cluster.kubeconfig);
        Self::spawn(name, command, file, &["--configmap", &format!("{NAMESPACE}/{CONFIG_MAP_NAME}")], folder)
    }

    fn spawn(name: &'static str, mut command: Command, file: &Path, flags: &[&str], folder: &Path) -> Result<Self> {
        let address = free_address()?;
        command.args(["--address", "127.0.0.1", "--metrics-port", &address.port().to_string()]);
        command.arg("--config").arg(file).args(["--pod-name", name]).args(flags);
        command.arg("--state-dir").arg(folder.join(format!("{name}-state")));
        for variable in ["RUST_LOG", "VLLM_API_KEY", "ROLLORA_VLLM_HOST"] {
            command.env_remove(variable);
        }
        Ok(Self(BenchProcess::start(name, command, address, folder)?))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Returns whether the sidecar reaches its vLLM server.
    pub(super) fn is_server_reachable(&self) -> Result<bool> {
        Ok(get_json(self.0.address, "/status")?["server"].is_object())
    }

    /// Waits until there are exactly `adapters` adapters and all are verified; returns the start of their server.
    pub(super) fn wait_until_verified(&mut self, adapters: usize) -> Result<String> {
        let address = self.0.address;
        wait_for("all adapters to be verified", POLL_INTERVAL, || {
            if let Some(message) = self.0.log_if_exited() {
                bail!("{message}");
            }
            // Fails until the sidecar listens.
            let Ok(status) = get_json(address, "/status") else { return Ok(None) };
            Ok(all_verified(&status, adapters).then(|| status["server"]["start"].as_str().map(str::to_owned)).flatten())
        })
    }
}

fn all_verified(status: &Value, adapters: usize) -> bool {
    let listed = status["adapters"].as_array().map_or(&[][..], Vec::as_slice);
    listed.len() == adapters && listed.iter().all(|adapter| adapter["state"] == "Verified")
}

/// Polls until `find` returns a value; an error after a minute.
pub(super) fn wait_for<T>(what: &str, interval: Duration, mut find: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = clock::now();
    loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        if start.elapsed() > WAIT_TIMEOUT {
            bail!("timed out waiting for {what}");
        }
        process::interruptible_sleep(interval)?;
    }
}

pub(super) fn get_json(address: SocketAddr, path: &str) -> Result<Value> {
    request_json(address, "GET", path, None)
}

fn request_json(address: SocketAddr, method: &str, path: &str, body: Option<(&str, &Value)>) -> Result<Value> {
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n");
    let text = body.map(|(_, body)| body.to_string()).unwrap_or_default();
    if let Some((kind, _)) = body {
        // Writing to a String cannot fail.
        write!(request, "content-type: {kind}\r\ncontent-length: {}\r\n", text.len()).ok();
    }
    let request = format!("{request}\r\n{text}").into_bytes();
    let response = LoadGenerator { address, request, connections: 1 }.send_once()?;
    if !matches!(response.status, 200 | 201) {
        bail!("{method} {path} returned {}: {}", response.status, String::from_utf8_lossy(&response.body));
    }
    Ok(serde_json::from_slice(&response.body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swapped_mount_has_the_new_text_at_the_same_path() {
        let folder = tempfile::tempdir().unwrap();
        let mount = MountedConfigMap::create(&folder.path().join("mount"), "old").unwrap();
        assert_eq!(fs::read_to_string(mount.file()).unwrap(), "old");
        mount.swap("new").unwrap();
        assert_eq!(fs::read_to_string(mount.file()).unwrap(), "new");
    }

    #[test]
    fn adapters_file_lists_the_requested_number() {
        assert!(adapters_yaml(8000, 0).ends_with("models: []\n"));
        let text = adapters_yaml(8000, 12);
        assert_eq!(text.matches("- id: adapter-").count(), 12);
        assert!(text.contains("port: 8000\n") && text.ends_with("source: /adapters/adapter-0011\n"));
    }

    #[test]
    fn exact_number_of_verified_adapters_is_required() {
        let status =
            |states: &[&str]| json!({ "adapters": states.iter().map(|s| json!({ "state": s })).collect::<Vec<_>>() });
        assert!(all_verified(&status(&["Verified", "Verified"]), 2));
        assert!(!all_verified(&status(&["Verified"]), 2));
        assert!(!all_verified(&status(&["Verified", "Loaded"]), 2));
        assert!(all_verified(&status(&[]), 0) && !all_verified(&json!({}), 1));
    }
}
