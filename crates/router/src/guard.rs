//! Which paths clients may ask. A convenience, not the boundary: the servers' administration should be out of
//! clients' reach anyway.
//!
//! A path is closed in every spelling that some server or proxy on the way may decode: percent-escapes, also
//! escaped ones, backslashes, doubled slashes, dots, parameters, letter case, a prefix in front. So it is closed
//! rather too often than too rarely; none of the closed words stands in a path of inference.

use crate::refusal::RequestRefusal;
use percent_encoding::percent_decode;
use std::borrow::Cow;

/// How much is closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PathGuard {
    /// Everything is open; for a proxy that has guards of its own.
    Off,
    /// The administration paths are closed.
    #[default]
    Administration,
    /// Only the inference paths are open, and only in their plain spelling.
    Strict,
}

/// A path segment that occurs in administration only: loading and unloading of adapters (the second spelling is
/// SageMaker's, which asks for no key), and what vLLM opens for development.
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

/// The paths that `Strict` leaves open. `/invocations` is none of them: it asks for no key.
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

/// Prefixes that `Strict` leaves open when one plain segment follows, or two: `/v1/responses/ID/cancel`.
const INFERENCE_PREFIXES: &[&str] = &["/v1/responses/", "/v1/models/"];

/// More rounds of decoding than this are nobody's honest path.
const MAX_DECODINGS: usize = 8;

impl PathGuard {
    /// Whether a request for `target`, path and query as sent, may pass.
    ///
    /// ```
    /// use rollora_router::guard::Guard;
    /// assert!(Guard::Administration.check("/v1/chat/completions?x=1").is_ok());
    /// assert!(Guard::Administration.check("//v1/load%5Flora_adapter").is_err());
    /// assert!(Guard::Strict.check("/metrics").is_err());
    /// ```
    pub fn check(self, target: &str) -> Result<(), RequestRefusal> {
        if self == Self::Off {
            return Ok(());
        }
        let path = path_of(target);
        if is_inference(path) {
            return Ok(());
        }
        if is_admin_path(path) {
            return Err(RequestRefusal::AdministrationPath);
        }
        if self == Self::Strict { Err(RequestRefusal::UnknownPath) } else { Ok(()) }
    }
}

/// Whether a path, in its plain spelling, is one of inference.
pub(crate) fn is_inference(path: &str) -> bool {
    INFERENCE_PATHS.contains(&path)
        || INFERENCE_PREFIXES.iter().any(|prefix| path.strip_prefix(prefix).is_some_and(is_item_path))
}

/// The path of a request target: without query and fragment, and without scheme and host of an absolute form.
pub(crate) fn path_of(target: &str) -> &str {
    let end = target.find(['?', '#']).unwrap_or(target.len());
    let path = target.get(..end).unwrap_or_default();
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

/// Whether a segment is a word of administration. Empty segments and dots need no care: they change which
/// segments stand beside each other, not which there are.
fn has_admin_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|segment| {
        let name = segment.split(|byte| matches!(byte, b';' | b'?' | b'#')).next().unwrap_or_default();
        let name = name.trim_ascii();
        ADMIN_SEGMENTS.iter().any(|word| name.eq_ignore_ascii_case(word.as_bytes()))
    })
}

#[cfg(test)]
mod tests;
