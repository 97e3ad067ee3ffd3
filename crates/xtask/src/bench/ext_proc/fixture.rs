//! What the contenders run on: an API server with one rewrite, a simulated vLLM, an Envoy of one worker, and the
//! external processors, each a process.

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

/// Whose cost is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// `rollora-ext-proc`, as it is shipped.
    Rollora,
    /// A server of ours that does nothing, on the same stack.
    NoOp,
    /// Upstream's body-based router.
    BodyRouter,
    /// Upstream's endpoint picker.
    EndpointPicker,
    /// Envoy alone.
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

    /// Upstream's two answer them only once the response's body has come, which they want to be sent as well.
    pub(super) fn handles_response_headers(self) -> bool {
        matches!(self, Self::Rollora | Self::NoOp)
    }

    /// What its clients ask for: the body router rewrites nothing, and neither does who is not asked.
    fn request_model(self) -> &'static str {
        match self {
            Self::Rollora | Self::EndpointPicker => MODEL,
            Self::NoOp | Self::BodyRouter | Self::EnvoyOnly => ADAPTER,
        }
    }
}

/// Everything that runs. It ends in this order.
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

/// Where Envoy asks whom, without and with the answers' headers.
type ListenerAddresses = Vec<(Contender, bool, SocketAddr)>;

/// What was not built here. Nobody clears it as long as this lives.
struct FixtureTools {
    envoy: ToolEntry,
    control_plane: ToolEntry,
    endpoint_picker: ToolEntry,
    body_router: ToolEntry,
}

impl FixtureTools {
    fn fetch() -> Result<Self> {
        let get = |tool| fetch_tool(tool, "a peer of ext-proc cannot be had");
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
            return Err(MissingPrerequisite("processes are measured in /proc, which only Linux has".to_owned()).into());
        }
        let tools = FixtureTools::fetch()?;
        eprintln!(
            "building rollora-ext-proc and what it is measured with, optimized; the first time that takes minutes"
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
        for who in Contender::ALL {
            let server = match who {
                Contender::Rollora => {
                    start_ext_proc(&programs, &kubeconfig, [free_address()?, free_address()?], folder.path())?
                }
                Contender::NoOp => start_no_op(&programs, folder.path())?,
                Contender::BodyRouter => start_body_router(&tools, &kubeconfig, folder.path())?,
                Contender::EndpointPicker => start_endpoint_picker(&tools, &kubeconfig, folder.path())?,
                Contender::EnvoyOnly => continue,
            };
            processors.push((who, server));
        }
        let (envoy, ways) = start_envoy(&tools, &processors, &vllm, folder.path())?;
        let mut stage = Self {
            envoy,
            processors,
            listeners: ways,
            _vllm: vllm,
            _api_server: api_server,
            kubeconfig,
            programs,
            _tools: tools,
            folder,
        };
        stage.wait_until_ready()?;
        Ok(stage)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        for (who, _, address) in self.listeners.clone() {
            self.envoy.address = address;
            self.envoy
                .wait_for_success(&contender_request(who, address, 256))
                .with_context(|| format!("behind Envoy: {who:?}"))?;
        }
        Ok(())
    }

    pub(super) fn address(&self, who: Contender, response_headers: bool) -> Result<SocketAddr> {
        let way = self.listeners.iter().find(|way| (way.0, way.1) == (who, response_headers));
        way.map(|way| way.2).with_context(|| format!("no way to {who:?}"))
    }

    /// The process of a contender; none where there is none.
    pub(super) fn pid(&self, who: Contender) -> Option<u32> {
        self.processors.iter().find(|processor| processor.0 == who).map(|(_, server)| server.pid())
    }

    /// A program that was built for this.
    pub(super) fn program(&self, name: &str) -> Result<&Path> {
        find_program(&self.programs, name)
    }

    pub(super) fn envoy_pid(&self) -> u32 {
        self.envoy.pid()
    }

    /// Starts a fresh `rollora-ext-proc` in the place of the one that runs.
    pub(super) fn restart_ext_proc(&mut self) -> Result<()> {
        let (_, server) = self.processors.remove(0);
        let address = server.address;
        drop(server);
        let fresh = start_ext_proc(&self.programs, &self.kubeconfig, [address, free_address()?], self.folder.path())?;
        self.processors.insert(0, (Contender::Rollora, fresh));
        self.wait_until_ready()
    }
}

/// The request of a contender's client.
pub(super) fn contender_request(who: Contender, address: SocketAddr, bytes: usize) -> Vec<u8> {
    post_request(address, CHAT_PATH, &chat_body(who.request_model(), bytes))
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
        bail!("the API server did not start");
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

/// Starts `rollora-ext-proc` at the first address, with its metrics at the second, and waits until it has its rules.
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

/// As upstream's chart sets it up to stream, without what it would tell others.
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

/// One Envoy with one worker, and the ways through it.
fn start_envoy(
    tools: &FixtureTools,
    processors: &[(Contender, BenchProcess)],
    vllm: &BenchProcess,
    folder: &Path,
) -> Result<(BenchProcess, ListenerAddresses)> {
    let mut ways = vec![(Contender::EnvoyOnly, false, ListenerConfig { listen: free_address()?, ext_proc: None })];
    for (who, server) in processors {
        let processor = ProcessorEndpoint { name: who.name(), address: server.address };
        for response_headers in [false, true] {
            if response_headers && !who.handles_response_headers() {
                continue;
            }
            let way = ListenerConfig { listen: free_address()?, ext_proc: Some((processor, response_headers)) };
            ways.push((*who, response_headers, way));
        }
    }
    let admin = free_address()?;
    let file = folder.join("envoy.json");
    let all: Vec<ListenerConfig> = ways.iter().map(|(_, _, way)| way.clone()).collect();
    fs::write(&file, envoy::bootstrap(admin, &all, vllm.address).to_string())?;
    let mut command = Command::new(tools.envoy.path().join("bin/envoy"));
    command.arg("-c").arg(&file);
    command.args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
    let server = BenchProcess::start("envoy", command, admin, folder)?;
    Ok((server, ways.into_iter().map(|(who, headers, way)| (who, headers, way.listen)).collect()))
}
