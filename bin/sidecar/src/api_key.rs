//! vLLM's API key: from the environment, or from a file that is watched.

use crate::reloadable::Reloadable;
use rollora_sidecar::file_watch::read_text;
use rollora_vllm::ApiKey;
use std::path::{Path, PathBuf};

/// The environment variable that vLLM reads too.
const ENV_VAR: &str = "VLLM_API_KEY";
const DESCRIPTION: &str = "vLLM's API key";

/// Opens the key in `file`, or else the one in the environment, which may be absent.
pub(crate) fn open(file: Option<PathBuf>) -> Result<Reloadable<ApiKey>, String> {
    if let Some(file) = file {
        return Reloadable::open(DESCRIPTION, file, read_file).map_err(|problem| format!("--api-key-file: {problem}"));
    }
    let text = std::env::var(ENV_VAR).ok().filter(|text| !text.trim().is_empty());
    Ok(Reloadable::fixed(DESCRIPTION, text.map(|text| parse_key(&text, ENV_VAR)).transpose()?))
}

fn read_file(path: &Path) -> Result<ApiKey, String> {
    let text = read_text(path)?;
    let location = path.display().to_string();
    if text.trim().is_empty() {
        return Err(format!("{location} is empty: write the key into it"));
    }
    parse_key(&text, &location)
}

fn parse_key(text: &str, location: &str) -> Result<ApiKey, String> {
    ApiKey::parse(text)
        .map_err(|_| format!("{location} holds characters that cannot be sent: write the key alone, on one line"))
}
