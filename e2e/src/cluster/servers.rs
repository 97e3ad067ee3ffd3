//! The servers of a cluster environment, each in the container `vllm` of a pod.

use super::server_kind_at;
use anyhow::{Context as _, Result};
use rollora_testbed::{
    kubelet::{ContainerHandle, ImagePrograms, LaunchSpec},
    process::built_program,
    server::{ServerKind, ServerSupervisor},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The port of every server in the manifests.
pub(super) const VLLM_PORT: u16 = 8000;

/// The kind of server that each pod runs.
#[derive(Debug, Clone)]
pub(super) struct ServerKinds {
    /// The kinds at the start, by the number at the end of the pod's name.
    initial: Arc<Vec<ServerKind>>,
    /// Kinds that a scenario chose later, by the pod's name.
    overrides: Arc<Mutex<BTreeMap<String, ServerKind>>>,
}

impl ServerKinds {
    pub(super) fn new(first: &[ServerKind]) -> Self {
        Self { initial: Arc::new(first.to_vec()), overrides: Arc::default() }
    }

    pub(super) fn kind_of(&self, pod: &str) -> ServerKind {
        if let Some(kind) = self.overrides.lock().unwrap_or_else(PoisonError::into_inner).get(pod) {
            return kind.clone();
        }
        let number = pod.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        server_kind_at(&self.initial, number).cloned().unwrap_or_else(|| ServerKind::simulated(&[]))
    }

    fn set_kind(&self, pod: &str, kind: ServerKind) {
        self.overrides.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), kind);
    }
}

/// Returns the programs that stand in for the manifests' images.
pub(super) fn image_programs(kinds: &ServerKinds) -> Result<ImagePrograms> {
    let mut programs = ImagePrograms::new();
    for name in ["rollora-operator", "rollora-sidecar", "rollora-ext-proc"] {
        programs = programs.with_program(name, &built_program(name)?);
    }
    let kinds = kinds.clone();
    let vllm = move |run: &rollora_testbed::kubelet::Invocation| {
        let kind = kinds.kind_of(&run.pod);
        let port = run.args.iter().find_map(|argument| argument.strip_prefix("--port="));
        let port = port.context("the manifest does not say the port of vLLM")?;
        let mut command = kind.command()?;
        command.args(["--host", &run.address.to_string(), "--port", port]);
        // A key among the scenario's own flags takes precedence over the environment variable.
        let has_key = command.get_args().any(|argument| argument == "--api-key");
        if let Some(key) = run.env.get("VLLM_API_KEY").filter(|_| !has_key) {
            command.args(["--api-key", key]);
        }
        Ok(LaunchSpec { command, termination_grace: kind.termination_grace() })
    };
    Ok(programs.with_factory("vllm/vllm-openai", Arc::new(vllm)))
}

/// Supervises a server through the kubelet stand-in.
#[derive(Debug)]
pub(super) struct PodSupervisor {
    container: ContainerHandle,
    kinds: ServerKinds,
}

impl PodSupervisor {
    pub(super) fn new(container: ContainerHandle, kinds: ServerKinds) -> Self {
        Self { container, kinds }
    }
}

impl ServerSupervisor for PodSupervisor {
    fn start(&mut self) -> Result<()> {
        self.container.kill_and_hold();
        self.container.release();
        Ok(())
    }

    fn kill(&mut self) {
        self.container.kill_and_hold();
    }

    fn set_kind(&mut self, kind: ServerKind) {
        self.kinds.set_kind(self.container.pod(), kind);
    }

    fn is_running(&self) -> bool {
        self.container.is_running()
    }

    fn exit_reason(&self) -> Option<String> {
        let exit = self.container.last_exit().filter(|_| self.container.is_held());
        exit.map(|exit| format!("{exit:?}"))
    }

    fn log_tail(&self, lines: usize) -> String {
        self.container.log_tail(lines)
    }
}
