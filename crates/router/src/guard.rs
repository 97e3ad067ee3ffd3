//! Path guard: which request paths are open to clients. It is a convenience and no security boundary: the
//! administration endpoints of the servers should be unreachable for clients anyway.
//!
//! A path is closed in every spelling that a server or proxy on the way might decode: percent-escapes (also nested
//! ones), backslashes, double slashes, dots, parameters, letter case, a prefix. The guard prefers to close too much; no
//! closed word occurs in an inference path.

use crate::refusal::RequestRefusal;
use percent_encoding::percent_decode;
use std::borrow::Cow;

/// Which paths the guard closes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathGuard {
    /// Closes no path, for a proxy that has its own guard.
    Off,
    /// Closes the administration paths.
    #[default]
    Administration,
    /// Closes all paths except the inference paths in their plain spelling.
    Strict,
}

/// Path segments that occur only in administration paths: loading and unloading of adapters (`adapters` is SageMaker's
/// path, which requires no API key), and vLLM's development endpoints.
const ADMIN_SEGMENTS: &[&str] = &[
    "load_lora_adapter",
    "unload_lora_adapter",
    "adapters",
    "sleep",
    "wake_up",
    "is_sleeping",
    "pause",
    "resume",
    "is_paused",
    "collective_rpc",
    "reset_prefix_cache",
    "reset_mm_cache",
    "reset_encoder_cache",
    "start_profile",
    "stop_profile",
    "scale_elastic_ep",
    "is_scaling_elastic_ep",
    "server_info",
    "init_weight_transfer_engine",
    "update_weights",
];

/// Paths that `Strict` leaves open. `/invocations` is excluded because it requires no API key.
const INFERENCE_PATHS: &[&str] = &[
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/v1/audio/speech",
    "/v1/images/generations",
    "/v1/score",
    "/v1/rerank",
    "/v2/rerank",
    "/score",
    "/rerank",
    "/pooling",
    "/classify",
    "/tokenize",
    "/detokenize",
    "/v1/models",
    "/health",
    "/ping",
    "/version",
];

/// Prefixes that `Strict` leaves open if one or two plain segments follow: `/v1/responses/ID/cancel`.
const INFERENCE_PREFIXES: &[&str] = &["/v1/responses/", "/v1/models/"];

/// A path that still changes after this many rounds of decoding is closed; no honest client sends one.
const MAX_DECODINGS: usize = 8;

impl PathGuard {
    /// Checks whether a request for `path_and_query`, as the client sent it, may pass. Returns the refusal if not.
    ///
    /// ```
    /// use rollora_router::guard::PathGuard;
    /// assert!(PathGuard::Administration.check("/v1/chat/completions?x=1").is_ok());
    /// assert!(PathGuard::Administration.check("//v1/load%5Flora_adapter").is_err());
    /// assert!(PathGuard::Strict.check("/metrics").is_err());
    /// ```
    pub fn check(self, path_and_query: &str) -> Result<(), RequestRefusal> {
        if self == Self::Off {
            return Ok(());
        }
        let path = path_of(path_and_query);
        if is_inference(path) {
            return Ok(());
        }
        if is_admin_path(path) {
            return Err(RequestRefusal::AdministrationPath);
        }
        if self == Self::Strict { Err(RequestRefusal::UnknownPath) } else { Ok(()) }
    }
}

/// Returns whether a path in its plain spelling is an inference path.
pub(crate) fn is_inference(path: &str) -> bool {
    INFERENCE_PATHS.contains(&path)
        || INFERENCE_PREFIXES.iter().any(|prefix| path.strip_prefix(prefix).is_some_and(is_item_path))
}

/// Returns the path of a request target: without query and fragment, and without scheme and host of an absolute form.
pub(crate) fn path_of(path_and_query: &str) -> &str {
    let end = path_and_query.find(['?', '#']).unwrap_or(path_and_query.len());
    let path = path_and_query.get(..end).unwrap_or_default();
    match path.split_once("://") {
        Some((_, rest)) if !path.starts_with('/') => rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/"),
        _ => path,
    }
}

fn is_item_path(rest: &str) -> bool {
    let mut segments = rest.split('/');
    let plain = |segment: &str| {
        let bytes =
            segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':'));
        bytes && !segment.bytes().all(|byte| byte == b'.')
    };
    segments.next().is_some_and(plain) && segments.next().is_none_or(plain) && segments.next().is_none()
}

fn is_admin_path(path: &str) -> bool {
    let mut path = Cow::Borrowed(path.as_bytes());
    for _ in 0..MAX_DECODINGS {
        if has_admin_segment(&path) {
            return true;
        }
        let decoded: Vec<u8> = percent_decode(&path).collect();
        if decoded == path.as_ref() {
            return false;
        }
        path = Cow::Owned(decoded);
    }
    true
}

/// Returns whether a segment is one of [`ADMIN_SEGMENTS`]. Empty segments and dots need no handling: they change which
/// segments are adjacent, not which exist.
fn has_admin_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|byte| matches!(byte, b';' | b'?' | b'#')).next().unwrap_or_default();
        let name = name.trim_ascii();
        ADMIN_SEGMENTS.iter().any(|word| name.eq_ignore_ascii_case(word.as_bytes()))
    })
}

#[cfg(test)]
mod tests;
