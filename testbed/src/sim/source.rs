//! Validates the folder of an adapter, as vLLM 0.32.0 was observed to do.
//!
//! Checked are `adapter_config.json` (exists, is JSON, DoRA, rank) and `adapter_model.safetensors` (exists, header,
//! length, names of modules). Not checked is whether the tensor shapes fit the model, because the simulator has no
//! model; vLLM rejects such an adapter with status 500.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::AllowedSources;
use super::text::TextGenerator;

/// Modules of a Llama-like model that an adapter may target, in the order in which vLLM printed them.
const MODULES: &str = "{'k_proj', 'lm_head', 'gate_proj', 'o_proj', 'q_proj', 'v_proj', 'down_proj', 'embed_tokens', \
                       'up_proj'}";

/// Maximum header length of the safetensors format.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Why a source cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SourceError {
    /// Status 404: the source does not exist or has no `adapter_config.json`. Holds the source as vLLM shows it.
    #[error("No adapter found for {0}")]
    NotFound(String),
    /// Status 500, with the error of the engine's worker.
    #[error("{0}")]
    WorkerFailed(String),
}

impl SourceError {
    pub(super) fn rank_too_high(rank: u64, max_rank: u64) -> Self {
        Self::WorkerFailed(format!("LoRA rank {rank} is greater than max_lora_rank {max_rank}."))
    }
}

fn worker_error<T>(message: impl Into<String>) -> Result<T, SourceError> {
    Err(SourceError::WorkerFailed(message.into()))
}

/// Validates sources with the settings of one server.
#[derive(Clone, Debug)]
pub(super) struct SourceValidator {
    pub(super) sources: AllowedSources,
    pub(super) working_dir: PathBuf,
    pub(super) max_rank: u64,
}

impl SourceValidator {
    /// Validates a source, and returns the generator of its text.
    pub(super) fn validate(&self, source: &str) -> Result<TextGenerator, SourceError> {
        let path = self.working_dir.join(source);
        if path.exists() {
            return validate_dir(&path, self.max_rank);
        }
        match self.sources {
            AllowedSources::Any if !source.starts_with("/nonexistent") => {
                Ok(TextGenerator::from_weights(source.as_bytes()))
            }
            _ => Err(SourceError::NotFound(source.to_owned())),
        }
    }
}

fn validate_dir(path: &Path, max_rank: u64) -> Result<TextGenerator, SourceError> {
    let shown = path.display();
    if !path.is_dir() {
        return worker_error(format!("[Errno 20] Not a directory: '{shown}/adapter_config.json'"));
    }
    let Ok(config) = fs::read_to_string(path.join("adapter_config.json")) else {
        return Err(SourceError::NotFound(shown.to_string()));
    };
    check_config(&config, max_rank)?;
    let weights = fs::read(path.join("adapter_model.safetensors"))
        .map_err(|error: io::Error| error.kind())
        .or_else(|_| worker_error(format!("{shown} doesn't contain tensors")))?;
    check_weights(&weights, path)?;
    Ok(TextGenerator::from_weights(&[config.as_bytes(), &weights].concat()))
}

fn check_config(text: &str, max_rank: u64) -> Result<(), SourceError> {
    #[derive(Deserialize)]
    struct Config {
        r: Option<u64>,
        #[serde(default)]
        use_dora: bool,
    }
    let Ok(config) = serde_json::from_str::<Config>(text) else {
        // vLLM forwards the error of Python's decoder, which differs from case to case; this is the recorded one.
        return worker_error("Expecting property name enclosed in double quotes: line 1 column 2 (char 1)");
    };
    if config.use_dora {
        return worker_error("vLLM does not yet support DoRA.");
    }
    match config.r {
        Some(rank) if rank > max_rank => Err(SourceError::rank_too_high(rank, max_rank)),
        _ => Ok(()),
    }
}

fn check_weights(weights: &[u8], path: &Path) -> Result<(), SourceError> {
    let Some((length, rest)) = weights.split_first_chunk::<8>() else {
        return worker_error("Error while deserializing header: header too small");
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return worker_error("Error while deserializing header: header too large");
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length));
    let Some((header, data)) = header else {
        return worker_error("Error while deserializing header: invalid header length");
    };
    let Ok(tensors) = serde_json::from_slice::<Map<String, Value>>(header) else {
        return worker_error("Error while deserializing header: invalid JSON in header");
    };
    let ends = tensors.values().filter_map(|tensor| tensor.pointer("/data_offsets/1")?.as_u64());
    if ends.max().unwrap_or(0) != data.len() as u64 {
        return worker_error("Error while deserializing header: incomplete metadata, file not fully covered");
    }
    check_modules(tensors.keys().map(String::as_str), path)
}

fn check_modules<'a>(tensors: impl Iterator<Item = &'a str>, path: &Path) -> Result<(), SourceError> {
    let unexpected: Vec<String> = tensors
        .filter(|name| name.contains(".lora_"))
        .filter_map(|name| name.strip_prefix("base_model.model.").unwrap_or(name).split(".lora_").next())
        .filter(|module| !MODULES.contains(&format!("'{}'", module.rsplit('.').next().unwrap_or(module))))
        .map(|module| format!("'{module}'"))
        .collect();
    if unexpected.is_empty() {
        return Ok(());
    }
    worker_error(format!(
        "While loading {}, expected target modules in {MODULES} but received [{}]. Please verify that the loaded LoRA \
         module is correct",
        path.display(),
        unexpected.join(", ")
    ))
}
