//! HTTP client: timeouts, one connection pool, and [`classify_response`] applied to every response.

use crate::{
    ApiCall, Endpoint, ModelCard, ServerMetrics, VllmError,
    response::{classify_response, unexpected_response},
    tls,
};
use bytes::{Bytes, BytesMut};
use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect,
};
use rollora_api::{cause::root_cause, names::AdapterId};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// A longer response is an error. A list of 10,000 registered adapters fits.
const MAX_RESPONSE_BYTES: usize = 8 << 20;
/// vLLM closes idle connections after five seconds. The client closes its own earlier, so that no request is written to
/// a connection that the server is closing.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Time limit for each kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Limit for establishing a connection.
    pub connect: Duration,
    /// Limit for health, models, metrics and unload calls.
    pub call: Duration,
    /// Limit for a load, during which vLLM may download from a hub.
    pub load: Duration,
    /// Limit for a probe, a completion of one token that may queue behind other requests.
    pub probe: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            call: Duration::from_secs(5),
            load: Duration::from_mins(5),
            probe: Duration::from_secs(30),
        }
    }
}

/// Reason why a client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum VllmClientError {
    /// The API key contains characters that are not allowed in an HTTP header.
    #[error("the API key contains characters that cannot be sent: check the file or variable that it comes from")]
    InvalidApiKey,
    /// The TLS configuration was rejected, for example because the system has no CA certificates.
    #[error(
        "cannot set up TLS for {endpoint} ({detail}): check the system's CA certificates, or configure the CA \
         certificate that signed vLLM's certificate"
    )]
    Tls {
        /// Base URL of the server.
        endpoint: String,
        /// Error message of the TLS library.
        detail: String,
    },
}

/// Client of one vLLM server. Cheap to clone: clones share one connection pool.
#[derive(Debug, Clone)]
pub struct VllmClient {
    endpoint: Arc<Endpoint>,
    timeouts: Timeouts,
    http: reqwest::Client,
}

impl VllmClient {
    /// Creates a client of `endpoint` without connecting to it.
    pub fn new(endpoint: Endpoint, timeouts: Timeouts) -> Result<Self, VllmClientError> {
        let mut headers = HeaderMap::new();
        if let Some(key) = endpoint.api_key() {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.as_str()))
                .map_err(|_| VllmClientError::InvalidApiKey)?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let builder = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(timeouts.connect)
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(2)
            .http1_only()
            .redirect(redirect::Policy::none())
            // The server runs next to this process: a proxy that the environment configures is not for it.
            .no_proxy();
        let tls_error = |detail: String| VllmClientError::Tls { endpoint: endpoint.base_url().to_owned(), detail };
        let builder = match (endpoint.is_https(), &endpoint.tls().ca_bundle) {
            (true, None) => {
                if rustls::crypto::CryptoProvider::get_default().is_none() {
                    // Rollora's programs install a provider first; other users of this library may not. Losing the race
                    // against another thread means that a provider is installed.
                    drop(rustls::crypto::ring::default_provider().install_default());
                }
                builder
            }
            (true, Some(ca_bundle)) => builder.tls_backend_preconfigured(ca_bundle.client_config().map_err(tls_error)?),
            (false, _) => builder.tls_backend_preconfigured(tls::empty_trust_config().map_err(tls_error)?),
        };
        let builder = match &endpoint.tls().server_name {
            Some(_) if endpoint.is_https() => {
                builder.dns_resolver(Arc::new(tls::FixedHostResolver { host: endpoint.host().to_owned() }))
            }
            _ => builder,
        };
        let http = builder.build().map_err(|error| tls_error(root_cause(&error)))?;
        Ok(Self { endpoint: Arc::new(endpoint), timeouts, http })
    }

    /// Returns the address of the server.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the time limits of this client's calls.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Checks the server's health. vLLM reports itself healthy even while a hub download blocks its engine.
    pub async fn health(&self) -> Result<(), VllmError> {
        self.send(ApiCall::Health, "/health", None).await.map(drop)
    }

    /// Lists the base models and registered adapters, which are the names that requests can use.
    pub async fn models(&self) -> Result<Vec<ModelCard>, VllmError> {
        let body = self.send(ApiCall::Models, "/v1/models", None).await?;
        ModelCard::parse_list(&body)
    }

    /// Reads the server's identity and the last use of each adapter. Costs 50 KB and 10 ms of the server's time.
    pub async fn metrics(&self) -> Result<ServerMetrics, VllmError> {
        let body = self.send(ApiCall::Metrics, "/metrics", None).await?;
        Ok(ServerMetrics::parse(&String::from_utf8_lossy(&body)))
    }

    /// Loads adapter `id` from `path`, a path in vLLM's file system or a hub name. Never replaces the weights of a
    /// loaded id.
    pub async fn load(&self, id: &AdapterId, path: &str) -> Result<(), VllmError> {
        let body = json!({ "lora_name": id.as_str(), "lora_path": path });
        self.send(ApiCall::Load { id, path }, "/v1/load_lora_adapter", Some(&body)).await.map(drop)
    }

    /// Unloads adapter `id`. Running requests that use it finish normally.
    pub async fn unload(&self, id: &AdapterId) -> Result<(), VllmError> {
        let body = json!({ "lora_name": id.as_str() });
        self.send(ApiCall::Unload { id }, "/v1/unload_lora_adapter", Some(&body)).await.map(drop)
    }

    /// Runs the adapter once: a completion of one token, or an embedding if the server has no completions endpoint.
    pub async fn probe(&self, id: &AdapterId) -> Result<(), VllmError> {
        let call = ApiCall::Probe { id };
        // Plain completions need no chat template, which a base model may not have.
        let body = json!({ "model": id.as_str(), "prompt": "Hello", "max_tokens": 1, "temperature": 0 });
        let response = match self.send(call, "/v1/completions", Some(&body)).await {
            Err(VllmError::UnexpectedResponse { status: 404, .. }) => {
                let body = json!({ "model": id.as_str(), "input": "Hello" });
                self.send(call, "/v1/embeddings", Some(&body)).await?
            }
            response => response?,
        };
        check_served_by(call, id, &response)
    }

    async fn send(&self, call: ApiCall<'_>, path: &str, body: Option<&Value>) -> Result<Bytes, VllmError> {
        let timeout = match call {
            ApiCall::Load { .. } => self.timeouts.load,
            ApiCall::Probe { .. } => self.timeouts.probe,
            ApiCall::Health | ApiCall::Models | ApiCall::Metrics | ApiCall::Unload { .. } => self.timeouts.call,
        };
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let mut request = self.http.request(method, self.endpoint.url(path)).timeout(timeout);
        if let Some(body) = body {
            request = request.json(body);
        }
        let transport_error = |error: reqwest::Error| self.transport_error(call, timeout, &error);
        let mut response = request.send().await.map_err(transport_error)?;
        let status = response.status().as_u16();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok().map(str::to_owned));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(transport_error)? {
            if body.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(unexpected_response(call, status, "a response of more than 8 MiB"));
            }
            body.extend_from_slice(&chunk);
        }
        classify_response(call, status, content_type.as_deref(), &body)?;
        Ok(body.freeze())
    }

    fn transport_error(&self, call: ApiCall<'_>, after: Duration, error: &reqwest::Error) -> VllmError {
        let tls = tls::tls_error_advice(error);
        let mut detail = tls.clone().unwrap_or_else(|| root_cause(error));
        if detail.contains("invalid HTTP version") {
            detail.push_str("; does the server expect TLS?");
        }
        if tls.is_some() && error.is_connect() {
            VllmError::TlsFailed { endpoint: self.endpoint.base_url().to_owned(), detail }
        } else if error.is_connect() {
            VllmError::Unreachable { endpoint: self.endpoint.base_url().to_owned(), detail }
        } else if error.is_timeout() {
            VllmError::Timeout { call: call.to_string(), after }
        } else {
            VllmError::ConnectionLost { call: call.to_string(), detail }
        }
    }
}

/// Verifies that the adapter produced the response: a proxy in front of vLLM could have chosen another model.
fn check_served_by(call: ApiCall<'_>, id: &AdapterId, body: &[u8]) -> Result<(), VllmError> {
    let response: Value = serde_json::from_slice(body)
        .map_err(|error| unexpected_response(call, 200, &format!("not a completion: {error}")))?;
    match response.get("model").and_then(Value::as_str) {
        Some(model) if model == id.as_str() => Ok(()),
        model => Err(unexpected_response(call, 200, &format!("answered by model {model:?}"))),
    }
}

#[cfg(test)]
mod tests;
