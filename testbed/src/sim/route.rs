//! Routing of requests, and the check of the API key.

use http::{HeaderMap, Method, header};
use percent_encoding::percent_decode_str;

use super::response::CompletionKind;
use super::vllm_error::VllmError;

/// An endpoint of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Health check at `/health` and `/ping`.
    Health,
    Version,
    /// `/load`: the load of the server, not of an adapter.
    ServerLoad,
    Metrics,
    Docs,
    Models,
    Tokenize,
    /// A completion at `/v1/chat/completions` or `/v1/completions`.
    Completion(CompletionKind),
    /// SageMaker's `/invocations`: a header names the adapter.
    Invocation,
    Load,
    Unload,
    /// SageMaker's `POST /adapters`, which loads an adapter.
    AddAdapter,
    /// SageMaker's `DELETE /adapters/{name}`, which unloads an adapter.
    DeleteAdapter(String),
}

impl Route {
    /// Returns whether the request needs the engine, and so waits while the engine hangs.
    pub(super) fn uses_engine(&self) -> bool {
        matches!(self, Self::Completion(_) | Self::Invocation | Self::Load | Self::AddAdapter)
    }
}

/// Finds the endpoint; `runtime_updating` tells whether adapters can be loaded and unloaded.
pub(super) fn route(method: &Method, path: &str, runtime_updating: bool) -> Result<Route, VllmError> {
    let (allowed, endpoint) = match path {
        "/health" => (&[Method::GET][..], Route::Health),
        "/ping" => (&[Method::GET, Method::POST][..], Route::Health),
        "/version" => (&[Method::GET][..], Route::Version),
        "/load" => (&[Method::GET][..], Route::ServerLoad),
        "/metrics" => (&[Method::GET][..], Route::Metrics),
        "/docs" => (&[Method::GET][..], Route::Docs),
        "/v1/models" => (&[Method::GET][..], Route::Models),
        "/tokenize" => (&[Method::POST][..], Route::Tokenize),
        "/invocations" => (&[Method::POST][..], Route::Invocation),
        "/v1/chat/completions" => (&[Method::POST][..], Route::Completion(CompletionKind::Chat)),
        "/v1/completions" => (&[Method::POST][..], Route::Completion(CompletionKind::Text)),
        "/v1/load_lora_adapter" if runtime_updating => (&[Method::POST][..], Route::Load),
        "/v1/unload_lora_adapter" if runtime_updating => (&[Method::POST][..], Route::Unload),
        "/adapters" if runtime_updating => (&[Method::POST][..], Route::AddAdapter),
        _ => match path.strip_prefix("/adapters/") {
            Some(name) if runtime_updating => (&[Method::DELETE][..], Route::DeleteAdapter(decode_name(name)?)),
            _ => return Err(VllmError::PathNotFound),
        },
    };
    if allowed.contains(method) { Ok(endpoint) } else { Err(VllmError::MethodNotAllowed) }
}

/// Decodes a name in a path. A name with a slash, even an encoded one, is not found.
fn decode_name(name: &str) -> Result<String, VllmError> {
    let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
    if name.is_empty() || name.contains('/') { Err(VllmError::PathNotFound) } else { Ok(name) }
}

/// Rejects a request to `/v1/*` without the API key. As in vLLM, other paths need no key.
pub(super) fn check_key(path: &str, headers: &HeaderMap, key: Option<&str>) -> Result<(), VllmError> {
    let Some(key) = key.filter(|_| path.starts_with("/v1/")) else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given.and_then(|given| given.strip_prefix("Bearer ")) == Some(key) {
        Ok(())
    } else {
        Err(VllmError::Unauthorized)
    }
}
