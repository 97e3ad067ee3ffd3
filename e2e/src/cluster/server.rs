//! The servers of a bed, each the container `vllm` of a pod.

use super::kind_at;
use anyhow::{Context as _, Result};
use rollora_testbed::{
    kubelet::{Container, Launch, Programs},
    process::program,
    server::{Keeper, Kind},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The port of every server, as the manifests have it.
pub(super) const PORT: u16 = 8000;

/// Which kind of server each pod has.
#[derive(Debug, Clone)]
pub(super) struct Kinds {
    /// At the start, by the pod's number.
    first: Arc<Vec<Kind>>,
    /// Where a scenario wants another one.
    changed: Arc<Mutex<BTreeMap<String, Kind>>>,
}

impl Kinds {
    pub(super) fn new(first: &[Kind]) -> Self {
        Self { first: Arc::new(first.to_vec()), changed: Arc::default() }
    }

    pub(super) fn of(&self, pod: &str) -> Kind {
        if let Some(kind) = self.changed.lock().unwrap_or_else(PoisonError::into_inner).get(pod) {
            return kind.clone();
        }
        let number = pod.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        kind_at(&self.first, number).cloned().unwrap_or_else(|| Kind::simulated(&[]))
    }

    fn change(&self, pod: &str, kind: Kind) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(pod.to_owned(), kind);
    }
}

/// The programs of the manifests' images.
pub(super) fn programs(kinds: &Kinds) -> Result<Programs> {
    let mut programs = Programs::new();
    for name in ["rollora-operator", "rollora-sidecar", "rollora-ext-proc"] {
        programs = programs.with_file(name, &program(name)?);
    }
    let kinds = kinds.clone();
    let vllm = move |run: &rollora_testbed::kubelet::Invocation| {
        let kind = kinds.of(&run.pod);
        let port = run.args.iter().find_map(|argument| argument.strip_prefix("--port="));
        let port = port.context("the manifest does not say the port of vLLM")?;
        let mut command = kind.command()?;
        command.args(["--host", &run.address.to_string(), "--port", port]);
        // A flag of the scenario's own would come first and win otherwise.
        let has_key = command.get_args().any(|argument| argument == "--api-key");
        if let Some(key) = run.env.get("VLLM_API_KEY").filter(|_| !has_key) {
            command.args(["--api-key", key]);
        }
        Ok(Launch { command, farewell: kind.farewell() })
    };
    Ok(programs.with("vllm/vllm-openai", Arc::new(vllm)))
}

/// A server that the kubelet keeps.
#[derive(Debug)]
pub(super) struct PodServer {
    container: Container,
    kinds: Kinds,
}

impl PodServer {
    pub(super) fn new(container: Container, kinds: Kinds) -> Self {
        Self { container, kinds }
    }
}

impl Keeper for PodServer {
    fn start(&mut self) -> Result<()> {
        self.container.kill_and_hold();
        self.container.release();
        Ok(())
    }

    fn kill(&mut self) {
        self.container.kill_and_hold();
    }

    fn become_kind(&mut self, kind: Kind) {
        self.kinds.change(self.container.pod(), kind);
    }

    fn runs(&self) -> bool {
        self.container.runs()
    }

    fn ended(&self) -> Option<String> {
        let ending = self.container.last_ending().filter(|_| self.container.is_held());
        ending.map(|ending| format!("{ending:?}"))
    }

    fn log_tail(&self, lines: usize) -> String {
        self.container.log_tail(lines)
    }
}
