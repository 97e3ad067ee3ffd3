//! Validation of a downloaded LoRA adapter: its files, its configuration, and the header of its tensors.
//!
//! The formats are PEFT's `adapter_config.json` and safetensors: a length of eight bytes, little endian; a JSON header
//! of that length; then the bytes of the tensors, with offsets that count from the end of the header.

use crate::{FetchError, FetchReason, manifest::RemoteFile};
use serde::Deserialize;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// Optional embeddings of an adapter.
const EMBEDDINGS_FILE: &str = "new_embeddings.safetensors";
/// Optional tokenizer of an adapter, which some versions of vLLM read.
const TOKENIZER_FILES: [&str; 9] = [
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];
/// A configuration has a few hundred bytes and is read as a whole.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Maximum header size that the safetensors library accepts.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Constraints of the vLLM server that adapters are validated against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerConstraints {
    /// vLLM's `max_lora_rank`; `None` if it is not known.
    pub max_rank: Option<u32>,
    /// Base models of the server, by name and by the path or hub name they were loaded from; empty if not known.
    pub base_models: Vec<String>,
}

/// Selects the files of a repository that an adapter needs. Selects by exact name, so that no file in a subdirectory
/// and no path outside of the repository is ever included.
pub(crate) fn select_files(adapter: &str, all: Vec<RemoteFile>) -> Result<Vec<RemoteFile>, FetchError> {
    let pickles: Vec<_> = all.iter().filter(|file| is_pickle(&file.name)).map(|file| file.name.clone()).collect();
    let is_needed =
        |name: &str| [CONFIG_FILE, WEIGHTS_FILE, EMBEDDINGS_FILE].contains(&name) || TOKENIZER_FILES.contains(&name);
    let mut needed: Vec<_> = all.into_iter().filter(|file| is_needed(&file.name)).collect();
    // The configuration comes first: a bad one ends the fetch before the large tensors are downloaded.
    needed.sort_by_key(|file| (file.name != CONFIG_FILE, file.size));
    let has = |name: &str| needed.iter().any(|file| file.name == name);
    if !has(CONFIG_FILE) {
        return Err(bad_adapter(
            adapter,
            &format!("has no {CONFIG_FILE} in its root folder: publish the adapter as PEFT saves it"),
        ));
    }
    if !has(WEIGHTS_FILE) {
        return Err(match pickles.first() {
            Some(pickle) => bad_adapter(
                adapter,
                &format!(
                    "has its weights only as {pickle}, and a pickle could run code: publish them as {WEIGHTS_FILE}"
                ),
            ),
            None => bad_adapter(
                adapter,
                &format!("has no {WEIGHTS_FILE} in its root folder: publish the adapter as PEFT saves it"),
            ),
        });
    }
    match needed.iter().find(|file| file.name == CONFIG_FILE && file.size > MAX_CONFIG_BYTES) {
        Some(file) => Err(bad_adapter(
            adapter,
            &format!("has a {CONFIG_FILE} of {} bytes, which is too large for a configuration", file.size),
        )),
        None => Ok(needed),
    }
}

fn is_pickle(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    !name.contains('/') && extension.is_some_and(|extension| ["bin", "pt", "pth", "pkl"].contains(&extension))
}

fn bad_adapter(adapter: &str, what: &str) -> FetchError {
    FetchError::new(FetchReason::BadAdapter, format!("`{adapter}` {what}"))
}

/// Fields of PEFT's configuration that decide whether vLLM can load an adapter.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    peft_type: Option<String>,
    r: Option<u32>,
    #[serde(default)]
    rank_pattern: Option<BTreeMap<String, u32>>,
    base_model_name_or_path: Option<String>,
}

/// Checks that vLLM can load an adapter with this configuration.
pub(crate) fn check_config(adapter: &str, text: &[u8], constraints: &ServerConstraints) -> Result<(), FetchError> {
    let config: PeftConfig = serde_json::from_slice(text)
        .map_err(|error| bad_adapter(adapter, &format!("has a {CONFIG_FILE} that cannot be parsed: {error}")))?;
    match config.peft_type.as_deref() {
        Some(kind) if kind.eq_ignore_ascii_case("lora") => {}
        Some(kind) => {
            return Err(bad_adapter(adapter, &format!("is an adapter of type {kind}, and vLLM loads only LORA")));
        }
        None => return Err(bad_adapter(adapter, &format!("has a {CONFIG_FILE} without `peft_type`: it must be LORA"))),
    }
    let Some(rank) = config.r.filter(|rank| *rank > 0) else {
        return Err(bad_adapter(adapter, &format!("has a {CONFIG_FILE} without a rank `r`")));
    };
    let highest = config.rank_pattern.into_iter().flatten().map(|(_, rank)| rank).fold(rank, u32::max);
    if let Some(max) = constraints.max_rank.filter(|max| highest > *max) {
        return Err(FetchError::new(
            FetchReason::RankTooHigh,
            format!(
                "`{adapter}` has rank {highest} and vLLM takes at most {max}: start vLLM with --max-lora-rank \
                 {highest}, or train with a lower rank"
            ),
        ));
    }
    // A different name is not an error: quantized and renamed copies of one base model accept the same adapters.
    if let Some(base) = config.base_model_name_or_path
        && !constraints.base_models.is_empty()
        && !constraints.base_models.contains(&base)
    {
        let served = constraints.base_models.join(", ");
        tracing::warn!(
            "the configuration of `{adapter}` names the base model {base}, and this server has {served}: check that \
             they are the same model"
        );
    }
    Ok(())
}

/// Checks that the safetensors file at `path` contains all tensors of its header and nothing else.
pub(crate) fn check_tensors(adapter: &str, path: &Path) -> Result<(), FetchError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let broken = |what: &str| bad_adapter(adapter, &format!("has a broken {name}: {what}"));
    let disk = |error: io::Error| FetchError::disk(path, &error);
    let mut file = File::open(path).map_err(disk)?;
    let size = file.metadata().map_err(disk)?.len();
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| broken("it is shorter than its header's length"))?;
    let length = u64::from_le_bytes(length);
    let Some(tensors) = size.checked_sub(8).and_then(|rest| rest.checked_sub(length)) else {
        return Err(broken("its header is longer than the file"));
    };
    if length > MAX_HEADER_BYTES {
        return Err(broken("its header is longer than safetensors allows"));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(disk)?;
    let header: BTreeMap<String, Value> =
        serde_json::from_slice(&header).map_err(|_| broken("its header is not a JSON object"))?;
    let mut end = 0;
    for (tensor, value) in header.iter().filter(|(name, _)| *name != "__metadata__") {
        let offsets = value.get("data_offsets").and_then(Value::as_array);
        let offset = |index| offsets.and_then(|offsets| offsets.get(index)).and_then(Value::as_u64);
        match (offset(0), offset(1)) {
            (Some(from), Some(to)) if from <= to && to <= tensors => end = end.max(to),
            _ => return Err(broken(&format!("the tensor {tensor} is outside of the file"))),
        }
    }
    if end == tensors { Ok(()) } else { Err(broken("some of its bytes belong to no tensor")) }
}
