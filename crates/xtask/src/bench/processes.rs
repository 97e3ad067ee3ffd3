//! Processes of a bench: simulated vLLM, `rollora local`, nginx. Each is terminated when its value is dropped.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rollora_supervise::ChildProcess;

use super::MissingPrerequisite;
use super::load_generator::{LoadGenerator, post_request};
use crate::clock;
use crate::process::{self, Interrupted};
use crate::tools::{CONTROL_PLANE, NGINX, ToolCache, ToolEntry, ToolRecipe};
use crate::workspace::{self, Programs, find_program};

/// Model name that clients request.
pub(super) const MODEL: &str = "small-segment-lora";
/// Adapter that serves the model.
pub(super) const ADAPTER: &str = "small-segment-lora-v1";
pub(super) const CHAT_PATH: &str = "/v1/chat/completions";

/// How long a process may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Time between SIGTERM and SIGKILL.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// Builds the measured programs with optimizations.
pub(super) fn build_programs() -> Result<Programs> {
    if !cfg!(target_os = "linux") {
        return Err(
            MissingPrerequisite("CPU time and memory are read from /proc, which only Linux has".to_owned()).into()
        );
    }
    eprintln!("building rollora and the simulator with optimizations; the first build takes some minutes");
    workspace::build(&["--release", "-p", "rollora", "-p", "rollora-testbed", "--bin", "rollora", "--bin", "vllm-sim"])
}

/// Returns an entry of the tool cache. If it is not available the bench cannot run, and `without` says why.
pub(super) fn fetch_tool(tool: &ToolRecipe, without: &str) -> Result<ToolEntry> {
    match ToolCache::open()?.get(tool) {
        Ok(entry) => Ok(entry),
        Err(error) if error.is::<Interrupted>() => Err(error),
        Err(error) => Err(MissingPrerequisite(format!("{without}: {error:#}")).into()),
    }
}

/// Returns a command that starts an API server, and its tool entry, which stays locked while it lives.
pub(super) fn control_plane_command(programs: &Programs, name: &'static str) -> Result<(Command, ToolEntry)> {
    let entry = fetch_tool(CONTROL_PLANE, "the API server is not available")?;
    let mut command = Command::new(find_program(programs, name)?);
    if let Some(variable) = CONTROL_PLANE.env_var {
        command.env(variable, entry.path());
    }
    Ok((command, entry))
}

/// A running process with its address.
#[derive(Debug)]
pub(super) struct BenchProcess {
    process: ChildProcess,
    /// Kept open: some programs exit when their standard input closes.
    _stdin: Option<ChildStdin>,
    pub(super) address: SocketAddr,
}

/// nginx from PATH, or else from the tool cache.
#[derive(Debug)]
pub(super) struct Nginx {
    program: PathBuf,
    /// Locked while it is used, so that no other process clears it.
    _entry: Option<ToolEntry>,
}

impl Nginx {
    pub(super) fn find() -> Result<Self> {
        if process::output_of(Command::new("nginx").arg("-v")).is_some() {
            return Ok(Self { program: "nginx".into(), _entry: None });
        }
        let entry = fetch_tool(NGINX, "nginx is neither on PATH nor available in the tool cache")?;
        Ok(Self { program: entry.path().join("usr/sbin/nginx"), _entry: Some(entry) })
    }
}

impl BenchProcess {
    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Starts a program that will listen at `address`, with its log in `folder`.
    pub(super) fn start(name: &'static str, command: Command, address: SocketAddr, folder: &Path) -> Result<Self> {
        let process = ChildProcess::start(name, command, folder)?.with_termination_grace(TERMINATION_GRACE);
        Ok(Self { process, _stdin: None, address })
    }

    /// Starts a program that prints one line when it is ready, and exits when its standard input closes.
    pub(super) fn start_and_read_line(name: &'static str, command: Command) -> Result<(Self, String)> {
        let (process, stdin, stdout) = ChildProcess::start_with_pipes(name, command)?;
        let unknown_address = SocketAddr::from(([127, 0, 0, 1], 0));
        let server = Self {
            process: process.with_termination_grace(TERMINATION_GRACE),
            _stdin: Some(stdin),
            address: unknown_address,
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok((server, line.trim().to_owned()))
    }

    /// Starts a simulated vLLM that responds without delay.
    pub(super) fn start_simulator(programs: &Programs) -> Result<Self> {
        Self::start_simulator_with(programs, 0, &[])
    }

    /// Starts a simulated vLLM with more flags, at this port or at a free one (0). It is ready when this returns.
    pub(super) fn start_simulator_with(programs: &Programs, port: u16, flags: &[&str]) -> Result<Self> {
        let mut command = Command::new(find_program(programs, "vllm-sim")?);
        command.args(["--port", &port.to_string(), "--any-source", "--until-stdin-closes"]).args(flags);
        let (mut server, url) = Self::start_and_read_line("vllm-sim", command)?;
        let address = url.strip_prefix("http://").and_then(|address| address.parse().ok());
        server.address = address.with_context(|| format!("vllm-sim printed {url:?} instead of its URL"))?;
        Ok(server)
    }

    /// Kills the process as a power cut would.
    pub(super) fn kill(self) {
        self.process.kill();
    }

    /// Returns how the process exited and what it logged, or `None` if it is running.
    pub(super) fn log_if_exited(&self) -> Option<String> {
        let process = &self.process;
        process.exit_reason().map(|exit| format!("{} exited with {exit}; its log:\n{}", process.name(), process.log()))
    }

    /// Starts `rollora local` in front of these servers, and waits until it serves [`MODEL`].
    pub(super) fn start_rollora_local(programs: &Programs, servers: &[Self], folder: &Path) -> Result<Self> {
        let address = free_address()?;
        let (rollout, adapters) = (folder.join("rollout.yaml"), folder.join("adapters.yaml"));
        std::fs::write(&rollout, rollout_yaml())?;
        std::fs::write(&adapters, adapters_yaml())?;
        let mut command = Command::new(find_program(programs, "rollora")?);
        command.arg("local").arg("--rollout").arg(rollout).arg("--adapters").arg(adapters);
        command.arg("--state").arg(folder.join("state")).arg("--listen").arg(address.to_string());
        for server in servers {
            command.arg("--vllm").arg(format!("http://{}", server.address));
        }
        let mut server = Self::start("rollora", command, address, folder)?;
        server.wait_until_serving(MODEL)?;
        Ok(server)
    }

    /// Starts nginx as a plain reverse proxy with keep-alive connections to one server, and waits until it serves.
    pub(super) fn start_nginx(nginx: &Nginx, vllm: &Self, folder: &Path) -> Result<Self> {
        let address = free_address()?;
        let configuration = folder.join("nginx.conf");
        std::fs::write(&configuration, nginx_conf(address, vllm.address, folder))?;
        let mut command = Command::new(&nginx.program);
        command.arg("-p").arg(folder).arg("-c").arg(&configuration).args(["-e", "stderr"]);
        let mut server = Self::start("nginx", command, address, folder)?;
        server.wait_until_serving(ADAPTER)?;
        Ok(server)
    }

    fn wait_until_serving(&mut self, model: &str) -> Result<()> {
        self.wait_for_success(&post_request(self.address, CHAT_PATH, &chat_body(model, 256)))
    }

    /// Waits until this request, sent to the process's address, gets a response with status 200.
    pub(super) fn wait_for_success(&mut self, request: &[u8]) -> Result<()> {
        let load = LoadGenerator { address: self.address, request: request.to_owned(), connections: 1 };
        let start = clock::now();
        loop {
            let response = load.send_once();
            if response.as_ref().is_ok_and(|response| response.status == 200) {
                return Ok(());
            }
            let ended = self.process.exit_reason();
            if ended.is_some() || start.elapsed() > READY_TIMEOUT {
                let reason = ended.map_or_else(|| format!("{response:?}"), |exit| exit.to_string());
                bail!("{} is not ready: {reason}; its log:\n{}", self.process.name(), self.process.log());
            }
            process::interruptible_sleep(Duration::from_millis(50))?;
        }
    }
}

/// Returns a chat request of exactly this many bytes that asks for one token.
pub(super) fn chat_body(model: &str, bytes: usize) -> String {
    let with = |text: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"{text}"}}],"max_tokens":1,"model":"{model}"}}"#)
    };
    with(&"x".repeat(bytes.saturating_sub(with("").len())))
}

/// Returns an address with a free port. If another program takes the port meanwhile, the start of the server fails.
pub(super) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn nginx_conf(listen: SocketAddr, vllm: SocketAddr, folder: &Path) -> String {
    // When nginx is started by root, its workers would switch to a user that cannot read the folder.
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let folder = folder.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("    {what}_temp_path {folder}/{what};\n"))
        .concat();
    format!(
        "{user}daemon off;\n\
         pid {folder}/nginx.pid;\n\
         worker_processes auto;\n\
         events {{}}\n\
         http {{\n    \
             access_log off;\n{temporary}    \
             upstream vllm {{\n        server {vllm};\n        keepalive 32;\n        keepalive_requests 1000000;\n    }}\n    \
             server {{\n        listen {listen};\n        keepalive_requests 1000000;\n        \
                 location / {{\n            proxy_pass http://vllm;\n            proxy_http_version 1.1;\n            \
                     proxy_set_header Connection \"\";\n        }}\n    }}\n}}\n"
    )
}

fn rollout_yaml() -> String {
    format!(
        "apiVersion: rollora.dev/v1alpha1\n\
         kind: Rollout\n\
         metadata: {{ name: {MODEL} }}\n\
         spec:\n  \
           model: {MODEL}\n  \
           poolRef: {{ name: bench }}\n  \
           adapter: {{ id: {ADAPTER} }}\n  \
           adaptersRef: {{ name: bench-adapters, key: configmap.yaml }}\n  \
           strategy: {{ steps: [{{ setWeight: 100 }}] }}\n"
    )
}

fn adapters_yaml() -> String {
    format!(
        "vLLMLoRAConfig:\n  \
           name: bench-adapters\n  \
           defaultBaseModel: tiny\n  \
           ensureExist:\n    \
             models:\n    \
             - id: {ADAPTER}\n      \
               source: bench/{ADAPTER}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_is_json_of_the_requested_size() {
        for bytes in [256, 1024, 16 * 1024] {
            let text = chat_body(MODEL, bytes);
            assert_eq!(text.len(), bytes);
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["model"], MODEL);
        }
    }
}
