//! What a simulator is started with.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::knobs::Knobs;

/// How a server is set up; each field but the last three is a flag or a variable of the real one.
#[derive(Clone, Debug)]
pub struct SimulatorConfig {
    /// `--host`.
    pub host: IpAddr,
    /// `--port`; 0 takes a free one.
    pub port: u16,
    /// `--served-model-name`: the base model's name.
    pub served_model_name: String,
    /// `--model`: what `/v1/models` calls the base model's `root`.
    pub model: String,
    /// `--max-model-len`, in tokens.
    pub max_model_len: usize,
    /// `--enable-lora`.
    pub enable_lora: bool,
    /// `VLLM_ALLOW_RUNTIME_LORA_UPDATING`.
    pub runtime_updating: bool,
    /// `--max-loras`; shown in the metrics, not enforced.
    pub max_loras: usize,
    /// `--max-cpu-loras`: how many adapters the worker keeps before it forgets the one unused for longest.
    pub max_cpu_loras: usize,
    /// `--max-lora-rank`.
    pub max_lora_rank: u64,
    /// `--lora-modules`: names and sources loaded at the start.
    pub lora_modules: Vec<(String, String)>,
    /// Where relative sources start from: the server's working directory.
    pub working_dir: PathBuf,
    /// Which sources can be loaded.
    pub sources: AllowedSources,
    /// How many adapters are loaded at a time; as recorded, one.
    pub parallel_loads: usize,
    /// What can be turned at run time too.
    pub knobs: Knobs,
}

impl Default for SimulatorConfig {
    /// A server as recorded, on a free port.
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            served_model_name: "tiny".to_owned(),
            model: "tiny/base".to_owned(),
            max_model_len: 1024,
            enable_lora: true,
            runtime_updating: true,
            max_loras: 2,
            max_cpu_loras: 4,
            max_lora_rank: 16,
            lora_modules: Vec::new(),
            working_dir: PathBuf::from("."),
            sources: AllowedSources::OnDisk,
            parallel_loads: 1,
            knobs: Knobs::default(),
        }
    }
}

/// Which sources can be loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedSources {
    /// Folders with an adapter in them, as with vLLM without a hub.
    #[default]
    OnDisk,
    /// These, and every source that is no path on this machine and does not start with `/nonexistent`.
    Any,
}
