//! vLLM's API key: from the environment, or from a file that is watched.

use crate::watched::Watched;
use rollora_sidecar::watch_file::read_text;
use rollora_vllm::ApiKey;
use std::path::{Path, PathBuf};

/// The variable that vLLM itself reads.
const VARIABLE: &str = "VLLM_API_KEY";
const WHAT: &str = "vLLM's API key";

/// The key in `file`, else the one of the environment, else none.
pub(crate) fn open(file: Option<PathBuf>) -> Result<Watched<ApiKey>, String> {
    if let Some(file) = file {
        return Watched::open(WHAT, file, read).map_err(|problem| format!("--api-key-file: {problem}"));
    }
    let text = std::env::var(VARIABLE).ok().filter(|text| !text.trim().is_empty());
    Ok(Watched::fixed(WHAT, text.map(|text| key(&text, VARIABLE)).transpose()?))
}

fn read(path: &Path) -> Result<ApiKey, String> {
    let text = read_text(path)?;
    let place = path.display().to_string();
    if text.trim().is_empty() {
        return Err(format!("{place} is empty: write the key into it"));
    }
    key(&text, &place)
}

fn key(text: &str, place: &str) -> Result<ApiKey, String> {
    ApiKey::parse(text)
        .map_err(|_| format!("{place} holds characters that cannot be sent: write the key alone, on one line"))
}
