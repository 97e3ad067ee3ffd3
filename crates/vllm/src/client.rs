//! HTTP client of one vLLM server: timeouts, a connection pool, and [`classify_response`] for every response.

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

/// Longer responses are an error. A list of 10,000 registered adapters fits.
const MAX_RESPONSE_BYTES: usize = 8 << 20;
/// vLLM closes idle connections after five seconds. The client closes them earlier, so that no request is written to a
/// connection that vLLM is closing.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// Timeouts of each kind of call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Maximum time to establish a connection.
    pub connect: Duration,
    /// Timeout of health, models, metrics and unload.
    pub call: Duration,
    /// Timeout of a load, during which vLLM may download from a hub.
    pub load: Duration,
    /// Timeout of a completion of one token, which may queue behind other requests.
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

/// Why a client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum VllmClientError {
    /// The key contains characters that are not allowed in a header.
    #[error("the API key contains characters that cannot be sent: check the file or variable that it comes from")]
    InvalidApiKey,
    /// TLS could not be set up.
    #[error(
        "cannot set up TLS for {endpoint} ({detail}): check the system's CA certificates, or configure the CA that \
         signed vLLM's certificate"
    )]
    Tls {
        /// Base URL of the server.
        endpoint: String,
        /// Error of the TLS library.
        detail: String,
    },
}

/// Client of one vLLM server. Cheap to clone: clones share their connections.
#[derive(Debug, Clone)]
pub struct VllmClient {
    endpoint: Arc<Endpoint>,
    timeouts: Timeouts,
    http: reqwest::Client,
}

impl VllmClient {
    /// Creates a client of `endpoint`. Does not connect yet.
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
            // The server is in the cluster or on this machine: proxy settings of the environment are not for it.
            .no_proxy();
        let tls_error = |detail: String| VllmClientError::Tls { endpoint: endpoint.base_url().to_owned(), detail };
        let builder = match (endpoint.is_https(), &endpoint.tls().ca_bundle) {
            (true, None) => {
                if rustls::crypto::CryptoProvider::get_default().is_none() {
                    // Our programs install a provider at startup; this covers other users of the library. The call
                    // fails only if another thread installed one meanwhile.
                    drop(rustls::crypto::ring::default_provider().install_default());
                }
                builder
            }
            (true, Some(authorities)) => {
                builder.tls_backend_preconfigured(authorities.client_config().map_err(tls_error)?)
            }
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

    /// Returns the server that this client calls.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns the timeouts of this client.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Calls `/health`. The server also reports healthy while a hub download blocks its engine.
    pub async fn health(&self) -> Result<(), VllmError> {
        self.send(ApiCall::Health, "/health", None).await.map(drop)
    }

    /// Lists the base models and the registered adapters.
    pub async fn models(&self) -> Result<Vec<ModelCard>, VllmError> {
        let body = self.send(ApiCall::Models, "/v1/models", None).await?;
        ModelCard::parse_list(&body)
    }

    /// Reads the server's identity and the last use of each adapter. Costs 50 KB and 10 ms of the server's time.
    pub async fn metrics(&self) -> Result<ServerMetrics, VllmError> {
        let body = self.send(ApiCall::Metrics, "/metrics", None).await?;
        Ok(ServerMetrics::parse(&String::from_utf8_lossy(&body)))
    }

    /// Registers `id` with the weights at `path`, as vLLM sees it. Never replaces the weights of a loaded id.
    pub async fn load(&self, id: &AdapterId, path: &str) -> Result<(), VllmError> {
        let body = json!({ "lora_name": id.as_str(), "lora_path": path });
        self.send(ApiCall::Load { id, path }, "/v1/load_lora_adapter", Some(&body)).await.map(drop)
    }

    /// Unregisters `id`. Running requests with it complete normally.
    pub async fn unload(&self, id: &AdapterId) -> Result<(), VllmError> {
        let body = json!({ "lora_name": id.as_str() });
        self.send(ApiCall::Unload { id }, "/v1/unload_lora_adapter", Some(&body)).await.map(drop)
    }

    /// Proves that the adapter works: requests a completion of one token, or an embedding if the server does not serve
    /// completions. Fails if another model answered.
    pub async fn probe(&self, id: &AdapterId) -> Result<(), VllmError> {
        let call = ApiCall::Probe { id };
        // Unlike chat completions, plain completions need no chat template, which a base model may lack.
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

    /// Sends one call, waits for the whole response, and classifies it.
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
        let failed = |error: reqwest::Error| self.transport_error(call, timeout, &error);
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status().as_u16();
        let content_type = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok().map(str::to_owned));
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
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
            detail.push_str("; does it speak TLS?");
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

/// Checks that the adapter itself answered: a proxy between the client and vLLM could have replaced the model.
fn check_served_by(call: ApiCall<'_>, id: &AdapterId, response: &[u8]) -> Result<(), VllmError> {
    let response: Value = serde_json::from_slice(response)
        .map_err(|error| unexpected_response(call, 200, &format!("not a completion: {error}")))?;
    match response.get("model").and_then(Value::as_str) {
        Some(model) if model == id.as_str() => Ok(()),
        model => Err(unexpected_response(call, 200, &format!("the response came from model {model:?}"))),
    }
}

#[cfg(test)]
mod tests;
