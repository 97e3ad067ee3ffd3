//! Which endpoint a request is for, and who may call it.

use http::{HeaderMap, Method, header};
use percent_encoding::percent_decode_str;

use super::refusal::Refusal;
use super::reply::Kind;

/// What a server can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/health`, `/ping`
    Health,
    Version,
    /// `/load`: the server's, not an adapter's
    ServerLoad,
    Metrics,
    Docs,
    Models,
    Tokenize,
    /// `/v1/chat/completions`, `/v1/completions`
    Completion(Kind),
    /// `/invocations`, in SageMaker's style: the adapter is named in a header
    Invocation,
    Load,
    Unload,
    /// `POST /adapters`, in SageMaker's style
    AddAdapter,
    /// `DELETE /adapters/{name}`
    DeleteAdapter(String),
}

impl Endpoint {
    /// Whether the engine has to do something, which it does not while it hangs.
    pub(super) fn uses_engine(&self) -> bool {
        matches!(self, Self::Completion(_) | Self::Invocation | Self::Load | Self::AddAdapter)
    }
}

/// Finds the endpoint; `runtime_updating` is whether adapters can be loaded and unloaded at all.
pub(super) fn endpoint(method: &Method, path: &str, runtime_updating: bool) -> Result<Endpoint, Refusal> {
    let (allowed, endpoint) = match path {
        "/health" => (&[Method::GET][..], Endpoint::Health),
        "/ping" => (&[Method::GET, Method::POST][..], Endpoint::Health),
        "/version" => (&[Method::GET][..], Endpoint::Version),
        "/load" => (&[Method::GET][..], Endpoint::ServerLoad),
        "/metrics" => (&[Method::GET][..], Endpoint::Metrics),
        "/docs" => (&[Method::GET][..], Endpoint::Docs),
        "/v1/models" => (&[Method::GET][..], Endpoint::Models),
        "/tokenize" => (&[Method::POST][..], Endpoint::Tokenize),
        "/invocations" => (&[Method::POST][..], Endpoint::Invocation),
        "/v1/chat/completions" => (&[Method::POST][..], Endpoint::Completion(Kind::Chat)),
        "/v1/completions" => (&[Method::POST][..], Endpoint::Completion(Kind::Text)),
        "/v1/load_lora_adapter" if runtime_updating => (&[Method::POST][..], Endpoint::Load),
        "/v1/unload_lora_adapter" if runtime_updating => (&[Method::POST][..], Endpoint::Unload),
        "/adapters" if runtime_updating => (&[Method::POST][..], Endpoint::AddAdapter),
        _ => match path.strip_prefix("/adapters/") {
            Some(name) if runtime_updating => (&[Method::DELETE][..], Endpoint::DeleteAdapter(decoded(name)?)),
            _ => return Err(Refusal::NoSuchPath),
        },
    };
    if allowed.contains(method) { Ok(endpoint) } else { Err(Refusal::WrongMethod) }
}

/// A name in a path. One with a slash, even an encoded one, is not found.
fn decoded(name: &str) -> Result<String, Refusal> {
    let name = percent_decode_str(name).decode_utf8_lossy().into_owned();
    if name.is_empty() || name.contains('/') { Err(Refusal::NoSuchPath) } else { Ok(name) }
}

/// Refuses a call of `/v1/*` without the key. Every other path is open, with vLLM too.
pub(super) fn check_key(path: &str, headers: &HeaderMap, key: Option<&str>) -> Result<(), Refusal> {
    let Some(key) = key.filter(|_| path.starts_with("/v1/")) else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if given.and_then(|given| given.strip_prefix("Bearer ")) == Some(key) { Ok(()) } else { Err(Refusal::Unauthorized) }
}
