//! Configuration of a simulator.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use super::knobs::Knobs;

/// Configuration of a server; all fields but the last three are flags or variables of vLLM.
#[derive(Clone, Debug)]
pub struct SimulatorConfig {
    /// Address to listen on (`--host`).
    pub host: IpAddr,
    /// Port to listen on (`--port`); 0 picks a free one.
    pub port: u16,
    /// Name of the base model (`--served-model-name`).
    pub served_model_name: String,
    /// Path of the base model (`--model`), which `/v1/models` reports as `root`.
    pub model: String,
    /// Maximum length of prompt and completion together, in tokens (`--max-model-len`).
    pub max_model_len: usize,
    /// Whether LoRA is enabled (`--enable-lora`).
    pub enable_lora: bool,
    /// Whether adapters can be loaded and unloaded at run time (`VLLM_ALLOW_RUNTIME_LORA_UPDATING`).
    pub runtime_updating: bool,
    /// Maximum number of adapters in one batch (`--max-loras`); only reported in the metrics, not enforced.
    pub max_loras: usize,
    /// Capacity of the worker's cache, in adapters (`--max-cpu-loras`); the least recently used one is evicted.
    pub max_cpu_loras: usize,
    /// Maximum rank of an adapter (`--max-lora-rank`).
    pub max_lora_rank: u64,
    /// Names and sources of adapters that are loaded at the start (`--lora-modules`).
    pub lora_modules: Vec<(String, String)>,
    /// Folder that relative sources are resolved against: the working directory of vLLM.
    pub working_dir: PathBuf,
    /// Adapter sources that can be loaded.
    pub sources: AllowedSources,
    /// Number of concurrent loads; vLLM was recorded to load one after the other.
    pub parallel_loads: usize,
    /// Initial knobs, which can be changed at run time.
    pub knobs: Knobs,
}

impl Default for SimulatorConfig {
    /// Returns the configuration of the recorded server, on a free port.
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

/// Adapter sources that can be loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowedSources {
    /// Folders that contain an adapter, as with vLLM without access to a hub.
    #[default]
    OnDisk,
    /// Also every source that is no path on this machine, unless it begins with `/nonexistent`.
    Any,
}
