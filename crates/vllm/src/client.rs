//! The calls themselves. Thin: timeouts, one connection pool, and [`interpret`] over every answer.

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

/// Longer answers are cut off with an error; 10,000 registered adapters fit.
const MAX_RESPONSE_BYTES: usize = 8 << 20;
/// vLLM closes idle connections after five seconds. Ours are given up before that, so that no request is written into
/// a connection that is being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long each kind of call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// Health, models, metrics and unload.
    pub call: Duration,
    /// A load: vLLM may download from a hub meanwhile.
    pub load: Duration,
    /// A completion of one token: it may queue behind other requests.
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

/// Why no client could be made.
#[derive(Debug, thiserror::Error)]
pub enum VllmClientError {
    /// The key cannot stand in a header.
    #[error("the API key contains characters that cannot be sent: check the file or variable that it comes from")]
    InvalidApiKey,
    /// TLS could not be set up.
    #[error(
        "TLS to {endpoint} could not be set up ({detail}): check the system's CA certificates, or give the one that \
         signed vLLM's"
    )]
    Tls {
        /// The server's base URL.
        endpoint: String,
        /// What the TLS library said.
        detail: String,
    },
}

/// A client of one vLLM server. Cheap to clone: clones share their connections.
#[derive(Debug, Clone)]
pub struct VllmClient {
    endpoint: Arc<Endpoint>,
    timeouts: Timeouts,
    http: reqwest::Client,
}

impl VllmClient {
    /// A client of `endpoint`. Connects to nothing yet.
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
            // The server stands beside us: a proxy of the environment is meant for others.
            .no_proxy();
        let tls_error = |detail: String| VllmClientError::Tls { endpoint: endpoint.base_url().to_owned(), detail };
        let builder = match (endpoint.is_https(), &endpoint.tls().ca_bundle) {
            (true, None) => {
                if rustls::crypto::CryptoProvider::get_default().is_none() {
                    // Programs install it first thing; this is for whoever uses the library alone. Losing the race
                    // against another thread means that it is installed.
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

    /// The server.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The timeouts in force.
    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Whether the server says that it is healthy. It says so also while a hub download blocks its engine.
    pub async fn health(&self) -> Result<(), VllmError> {
        self.send(ApiCall::Health, "/health", None).await.map(drop)
    }

    /// Everything that requests can name.
    pub async fn models(&self) -> Result<Vec<ModelCard>, VllmError> {
        let body = self.send(ApiCall::Models, "/v1/models", None).await?;
        ModelCard::parse_list(&body)
    }

    /// The server's identity, and when adapters were last used. 50 KB and 10 ms of the server's time.
    pub async fn metrics(&self) -> Result<ServerMetrics, VllmError> {
        let body = self.send(ApiCall::Metrics, "/metrics", None).await?;
        Ok(ServerMetrics::parse(&String::from_utf8_lossy(&body)))
    }

    /// Registers `id`, with the weights at `path` as vLLM sees it. Never replaces weights under a loaded id.
    pub async fn load(&self, id: &AdapterId, path: &str) -> Result<(), VllmError> {
        let body = json!({ "lora_name": id.as_str(), "lora_path": path });
        self.send(ApiCall::Load { id, path }, "/v1/load_lora_adapter", Some(&body)).await.map(drop)
    }

    /// Takes `id` out of the server's table. Running requests with it end undisturbed.
    pub async fn unload(&self, id: &AdapterId) -> Result<(), VllmError> {
        let body = json!({ "lora_name": id.as_str() });
        self.send(ApiCall::Unload { id }, "/v1/unload_lora_adapter", Some(&body)).await.map(drop)
    }

    /// Has the adapter do its work once: a completion of one token, or an embedding where the server completes nothing.
    pub async fn probe(&self, id: &AdapterId) -> Result<(), VllmError> {
        let call = ApiCall::Probe { id };
        // Plain completions need no chat template, which a base model may not have.
        let body = json!({ "model": id.as_str(), "prompt": "Hello", "max_tokens": 1, "temperature": 0 });
        let answer = match self.send(call, "/v1/completions", Some(&body)).await {
            Err(VllmError::UnexpectedResponse { status: 404, .. }) => {
                let body = json!({ "model": id.as_str(), "input": "Hello" });
                self.send(call, "/v1/embeddings", Some(&body)).await?
            }
            answer => answer?,
        };
        check_served_by(call, id, &answer)
    }

    /// One call: sent, waited for, interpreted.
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
        let mut answer = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.len() + chunk.len() > MAX_RESPONSE_BYTES {
                return Err(unexpected_response(call, status, "an answer of more than 8 MiB"));
            }
            answer.extend_from_slice(&chunk);
        }
        classify_response(call, status, content_type.as_deref(), &answer)?;
        Ok(answer.freeze())
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

/// Whether it was the adapter that answered: something between us and vLLM could have put another model in.
fn check_served_by(call: ApiCall<'_>, id: &AdapterId, answer: &[u8]) -> Result<(), VllmError> {
    let answer: Value = serde_json::from_slice(answer)
        .map_err(|error| unexpected_response(call, 200, &format!("no completion: {error}")))?;
    match answer.get("model").and_then(Value::as_str) {
        Some(model) if model == id.as_str() => Ok(()),
        model => Err(unexpected_response(call, 200, &format!("answered by model {model:?}"))),
    }
}

#[cfg(test)]
mod tests;
