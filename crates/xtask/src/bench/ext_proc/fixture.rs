//! What the contenders run on: an API server with one rewrite, a simulated vLLM, an Envoy with one worker, and the
//! external processors, each in a process of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::MissingPrerequisite;
use super::super::load_generator::post_request;
use super::super::processes::{ADAPTER, BenchProcess, CHAT_PATH, MODEL, chat_body, fetch_tool, free_address};
use super::envoy::{self, ListenerConfig, ProcessorEndpoint};
use crate::process;
use crate::tools::{BODY_ROUTER, CONTROL_PLANE, ENDPOINT_PICKER, ENVOY, ToolEntry};
use crate::workspace::{self, Programs, find_program};

const POOL: &str = "bench";
const NAMESPACE: &str = "default";

/// A configuration whose cost is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// `rollora-ext-proc` as it is shipped.
    Rollora,
    /// A processor that does nothing, on Rollora's gRPC stack.
    NoOp,
    /// Upstream's body-based router, which rewrites nothing.
    BodyRouter,
    /// Upstream's endpoint picker, which executes the rewrite.
    EndpointPicker,
    /// Envoy without an external processor.
    EnvoyOnly,
}

impl Contender {
    pub(super) const ALL: [Self; 5] =
        [Self::Rollora, Self::NoOp, Self::BodyRouter, Self::EndpointPicker, Self::EnvoyOnly];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rollora => "rollora",
            Self::NoOp => "no-op",
            Self::BodyRouter => "body router",
            Self::EndpointPicker => "endpoint picker",
            Self::EnvoyOnly => "no ext_proc",
        }
    }

    /// Upstream's two processors respond to headers only after the response body, which they must be sent as well.
    pub(super) fn handles_response_headers(self) -> bool {
        matches!(self, Self::Rollora | Self::NoOp)
    }

    /// Model that the clients request: the body router and Envoy alone do not rewrite it.
    fn request_model(self) -> &'static str {
        match self {
            Self::Rollora | Self::EndpointPicker => MODEL,
            Self::NoOp | Self::BodyRouter | Self::EnvoyOnly => ADAPTER,
        }
    }
}

/// All processes of the bench. They end in the order of the fields.
pub(super) struct ExtProcFixture {
    envoy: BenchProcess,
    processors: Vec<(Contender, BenchProcess)>,
    listeners: ListenerAddresses,
    _vllm: BenchProcess,
    _api_server: BenchProcess,
    kubeconfig: PathBuf,
    programs: Programs,
    _tools: FixtureTools,
    folder: TempDir,
}

/// Addresses of Envoy's listeners by contender, without and with response headers.
type ListenerAddresses = Vec<(Contender, bool, SocketAddr)>;

/// Tools from the cache, locked while this lives.
struct FixtureTools {
    envoy: ToolEntry,
    control_plane: ToolEntry,
    endpoint_picker: ToolEntry,
    body_router: ToolEntry,
}

impl FixtureTools {
    fn fetch() -> Result<Self> {
        let get = |tool| fetch_tool(tool, "a contender of ext-proc is not available");
        Ok(Self {
            envoy: get(ENVOY)?,
            control_plane: get(CONTROL_PLANE)?,
            endpoint_picker: get(ENDPOINT_PICKER)?,
            body_router: get(BODY_ROUTER)?,
        })
    }
}

impl ExtProcFixture {
    pub(super) fn start() -> Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(MissingPrerequisite(
                "CPU time and memory are read from /proc, which only Linux has".to_owned(),
            )
            .into());
        }
        let tools = FixtureTools::fetch()?;
        eprintln!(
            "building rollora-ext-proc and its contenders with optimizations; the first build takes some minutes"
        );
        let programs = workspace::build(
            &[
                &["--release", "-p", "rollora-ext-proc", "-p", "rollora-ext-proc-bin", "-p", "rollora-testbed"][..],
                &[
                    "--bin",
                    "rollora-ext-proc",
                    "--bin",
                    "vllm-sim",
                    "--bin",
                    "control-plane",
                    "--example",
                    "no_op",
                    "--example",
                    "fixed_exchange",
                ],
            ]
            .concat(),
        )?;
        let folder = tempfile::tempdir()?;
        let module = format!("{ADAPTER}=bench/{ADAPTER}");
        let vllm = BenchProcess::start_simulator_with(
            &programs,
            0,
            &["--lora-modules", &module, "--max-model-len", "1000000000"],
        )?;
        let (api_server, kubeconfig) = start_api_server(&programs, &tools, &vllm, folder.path())?;
        let mut processors = Vec::new();
        for contender in Contender::ALL {
            let server = match contender {
                Contender::Rollora => {
                    start_ext_proc(&programs, &kubeconfig, [free_address()?, free_address()?], folder.path())?
                }
                Contender::NoOp => start_no_op(&programs, folder.path())?,
                Contender::BodyRouter => start_body_router(&tools, &kubeconfig, folder.path())?,
                Contender::EndpointPicker => start_endpoint_picker(&tools, &kubeconfig, folder.path())?,
                Contender::EnvoyOnly => continue,
            };
            processors.push((contender, server));
        }
        let (envoy, listeners) = start_envoy(&tools, &processors, &vllm, folder.path())?;
        let mut fixture = Self {
            envoy,
            processors,
            listeners,
            _vllm: vllm,
            _api_server: api_server,
            kubeconfig,
            programs,
            _tools: tools,
            folder,
        };
        fixture.wait_until_ready()?;
        Ok(fixture)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        for (contender, _, address) in self.listeners.clone() {
            self.envoy.address = address;
            self.envoy
                .wait_for_success(&contender_request(contender, address, 256))
                .with_context(|| format!("behind Envoy: {contender:?}"))?;
        }
        Ok(())
    }

    pub(super) fn address(&self, contender: Contender, response_headers: bool) -> Result<SocketAddr> {
        let listener = self.listeners.iter().find(|listener| (listener.0, listener.1) == (contender, response_headers));
        listener.map(|listener| listener.2).with_context(|| format!("Envoy has no listener for {contender:?}"))
    }

    /// Returns the process id of a contender, or `None` if it has no process.
    pub(super) fn pid(&self, contender: Contender) -> Option<u32> {
        self.processors.iter().find(|processor| processor.0 == contender).map(|(_, server)| server.pid())
    }

    /// Returns the path of a program of this build.
    pub(super) fn program(&self, name: &str) -> Result<&Path> {
        find_program(&self.programs, name)
    }

    pub(super) fn envoy_pid(&self) -> u32 {
        self.envoy.pid()
    }

    /// Replaces the running `rollora-ext-proc` by a new process.
    pub(super) fn restart_ext_proc(&mut self) -> Result<()> {
        let (_, server) = self.processors.remove(0);
        let address = server.address;
        drop(server);
        let fresh = start_ext_proc(&self.programs, &self.kubeconfig, [address, free_address()?], self.folder.path())?;
        self.processors.insert(0, (Contender::Rollora, fresh));
        self.wait_until_ready()
    }
}

/// Returns the request that a contender's clients send.
pub(super) fn contender_request(contender: Contender, address: SocketAddr, bytes: usize) -> Vec<u8> {
    post_request(address, CHAT_PATH, &chat_body(contender.request_model(), bytes))
}

fn start_api_server(
    programs: &Programs,
    tools: &FixtureTools,
    vllm: &BenchProcess,
    folder: &Path,
) -> Result<(BenchProcess, PathBuf)> {
    let home = tools.control_plane.path();
    let mut command = Command::new(find_program(programs, "control-plane")?);
    command.env("ROLLORA_CONTROL_PLANE_HOME", home);
    let (server, line) = BenchProcess::start_and_read_line("control-plane", command)?;
    let kubeconfig = PathBuf::from(line);
    if !kubeconfig.is_file() {
        bail!("the API server did not start; its output is above");
    }
    let kubectl = |arguments: &[&str]| {
        let mut command = Command::new(home.join("bin/kubectl"));
        command.env("KUBECONFIG", &kubeconfig).args(arguments);
        process::capture(&mut command)
    };
    let file = folder.join("objects.json");
    fs::write(&file, cluster_objects(vllm.address).to_string())?;
    kubectl(&["create", "-f", &file.to_string_lossy()])?;
    let status = json!({ "status": {
        "phase": "Running",
        "podIP": vllm.address.ip(),
        "podIPs": [{ "ip": vllm.address.ip() }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    kubectl(&["patch", "pod", "vllm", "--subresource=status", "--type=merge", "-p", &status.to_string()])?;
    Ok((server, kubeconfig))
}

fn cluster_objects(vllm: SocketAddr) -> Value {
    let labels = json!({ "app": "vllm" });
    json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "vllm" } },
        {
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "vllm", "labels": labels },
            "spec": {
                "serviceAccountName": "vllm", "automountServiceAccountToken": false,
                "containers": [{ "name": "vllm", "image": "vllm", "ports": [{ "containerPort": vllm.port() }] }],
            },
        },
        {
            "apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": { "name": POOL },
            "spec": {
                "selector": { "matchLabels": labels },
                "targetPorts": [{ "number": vllm.port() }],
                "endpointPickerRef": { "name": "picker", "port": { "number": 9002 } },
            },
        },
        {
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferenceModelRewrite",
            "metadata": { "name": MODEL },
            "spec": {
                "poolRef": { "group": "inference.networking.k8s.io", "kind": "InferencePool", "name": POOL },
                "rules": [{
                    "matches": [{ "model": { "type": "Exact", "value": MODEL } }],
                    "targets": [{ "modelRewrite": ADAPTER, "weight": 100 }],
                }],
            },
        },
    ] })
}

/// Starts `rollora-ext-proc` with gRPC and metrics at these addresses, and waits until it has its rules.
fn start_ext_proc(
    programs: &Programs,
    kubeconfig: &Path,
    [grpc, metrics]: [SocketAddr; 2],
    folder: &Path,
) -> Result<BenchProcess> {
    let mut command = Command::new(find_program(programs, "rollora-ext-proc")?);
    command.env("KUBECONFIG", kubeconfig).env("RUST_LOG", "warn");
    command.args(["--pool", POOL, "--namespace", NAMESPACE, "--address", "127.0.0.1"]);
    for (flag, port) in [
        ("--grpc-port", grpc.port()),
        ("--grpc-health-port", free_address()?.port()),
        ("--metrics-port", metrics.port()),
    ] {
        command.arg(flag).arg(port.to_string());
    }
    let mut server = BenchProcess::start("rollora-ext-proc", command, metrics, folder)?;
    server.wait_for_success(format!("GET /readyz HTTP/1.1\r\nhost: {metrics}\r\n\r\n").as_bytes())?;
    server.address = grpc;
    Ok(server)
}

fn start_no_op(programs: &Programs, folder: &Path) -> Result<BenchProcess> {
    let address = free_address()?;
    let mut command = Command::new(find_program(programs, "no_op")?);
    command.arg(address.port().to_string());
    BenchProcess::start("no-op", command, address, folder)
}

/// Starts the body router as upstream's chart configures it for streaming, without tracing.
fn start_body_router(tools: &FixtureTools, kubeconfig: &Path, folder: &Path) -> Result<BenchProcess> {
    let address = free_address()?;
    let mut command = Command::new(tools.body_router.path().join("bin/bbr"));
    command.env("KUBECONFIG", kubeconfig).env("NAMESPACE", NAMESPACE);
    command.args([
        "--streaming",
        "--secure-serving=false",
        "--metrics-endpoint-auth=false",
        "--tracing=false",
        "--v=1",
    ]);
    command.arg(format!("--grpc-port={}", address.port()));
    command.arg(format!("--grpc-health-port={}", free_address()?.port()));
    command.arg(format!("--metrics-port={}", free_address()?.port()));
    BenchProcess::start("body-router", command, address, folder)
}

fn start_endpoint_picker(tools: &FixtureTools, kubeconfig: &Path, folder: &Path) -> Result<BenchProcess> {
    let address = free_address()?;
    let mut command = Command::new(tools.endpoint_picker.path().join("bin/epp"));
    command.env("KUBECONFIG", kubeconfig);
    command.args(["--secure-serving=false", "--metrics-endpoint-auth=false", "--tracing=false", "--v=1"]);
    command.arg(format!("--pool-name={POOL}")).arg(format!("--pool-namespace={NAMESPACE}"));
    command.arg(format!("--grpc-port={}", address.port()));
    command.arg(format!("--grpc-health-port={}", free_address()?.port()));
    command.arg(format!("--metrics-port={}", free_address()?.port()));
    BenchProcess::start("endpoint-picker", command, address, folder)
}

/// Starts Envoy with one worker, and returns its listeners.
fn start_envoy(
    tools: &FixtureTools,
    processors: &[(Contender, BenchProcess)],
    vllm: &BenchProcess,
    folder: &Path,
) -> Result<(BenchProcess, ListenerAddresses)> {
    let mut listeners = vec![(Contender::EnvoyOnly, false, ListenerConfig { listen: free_address()?, ext_proc: None })];
    for (contender, server) in processors {
        let processor = ProcessorEndpoint { name: contender.name(), address: server.address };
        for response_headers in [false, true] {
            if response_headers && !contender.handles_response_headers() {
                continue;
            }
            let listener = ListenerConfig { listen: free_address()?, ext_proc: Some((processor, response_headers)) };
            listeners.push((*contender, response_headers, listener));
        }
    }
    let admin = free_address()?;
    let file = folder.join("envoy.json");
    let all: Vec<ListenerConfig> = listeners.iter().map(|(_, _, listener)| listener.clone()).collect();
    fs::write(&file, envoy::bootstrap(admin, &all, vllm.address).to_string())?;
    let mut command = Command::new(tools.envoy.path().join("bin/envoy"));
    command.arg("-c").arg(&file);
    command.args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
    let server = BenchProcess::start("envoy", command, admin, folder)?;
    Ok((
        server,
        listeners.into_iter().map(|(contender, headers, listener)| (contender, headers, listener.listen)).collect(),
    ))
}
