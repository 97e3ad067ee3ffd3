//! One request of a client and its outcome.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{Response, StatusCode, body::Incoming};
use rollora_testbed::{
    clock,
    http::{self, HttpConnection, ListenAddress},
};
use serde_json::{Value, json};
use std::{
    fmt, io,
    time::{Duration, Instant},
};
use tokio::time::timeout;

/// How long a client waits for the head of a response, and for each further part of its body.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Whether a client requests a whole response or a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseMode {
    /// The whole response as one JSON object.
    Json,
    /// A stream of server-sent events.
    Sse,
}

/// One chat completion request.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    mode: ResponseMode,
    body: Value,
    /// Sent as `Authorization: Bearer`; `None` sends no header.
    pub api_key: Option<String>,
}

impl ChatRequest {
    /// Creates a request for `model` that asks for at most `tokens` tokens.
    pub fn new(model: &str, mode: ResponseMode, tokens: u32) -> Self {
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": tokens,
            "temperature": 0,
        });
        if mode == ResponseMode::Sse {
            // The model must not end a stream early.
            body["stream"] = json!(true);
            body["ignore_eos"] = json!(true);
        }
        Self { mode, body, api_key: None }
    }

    /// Sets the API key.
    #[must_use]
    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.api_key = key.map(str::to_owned);
        self
    }
}

/// One request with its times and outcome.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// Whether a stream was requested.
    pub mode: ResponseMode,
    /// Before the first byte of the request was written.
    pub start: Instant,
    /// When the head of the response was received; `None` if there was none.
    pub first_byte: Option<Instant>,
    /// When the response was complete, or the request failed.
    pub end: Instant,
    /// The response's model and text, or the failure.
    pub outcome: RequestOutcome,
}

/// The result of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    /// A complete response with status 200.
    Succeeded {
        /// The `model` of the response, identical in every event of a stream.
        model: String,
        /// The generated text, joined from all events of a stream.
        text: String,
    },
    /// No complete response with status 200.
    Failed(RequestFailure),
}

/// Why a request has no complete response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// No process listens at the address.
    #[error("the connection was refused")]
    ConnectionRefused,
    /// The connection broke before the head of a response.
    #[error("connection lost before a response: {0}")]
    ConnectionLost(String),
    /// A status other than 200.
    #[error("status {status}: {body}")]
    Status {
        /// The HTTP status code.
        status: u16,
        /// The first 300 characters of the body.
        body: String,
    },
    /// The response broke off, or a stream had no end mark.
    #[error("the response was truncated: {0}")]
    Truncated(String),
    /// The body is not a valid response.
    #[error("the response is not valid: {0}")]
    Malformed(String),
    /// No byte was received for [`READ_TIMEOUT`].
    #[error("received nothing for {READ_TIMEOUT:?}")]
    TimedOut,
}

impl RequestRecord {
    /// Returns the model of the response, if there is one.
    pub fn model(&self) -> Option<&str> {
        match &self.outcome {
            RequestOutcome::Succeeded { model, .. } => Some(model),
            RequestOutcome::Failed(_) => None,
        }
    }

    /// Returns why the request failed, if it did.
    pub fn failure(&self) -> Option<&RequestFailure> {
        match &self.outcome {
            RequestOutcome::Succeeded { .. } => None,
            RequestOutcome::Failed(failure) => Some(failure),
        }
    }
}

/// One client with one connection, which it opens again when it was closed between two requests.
#[derive(Debug)]
pub(super) struct TrafficClient {
    address: ListenAddress,
    request: ChatRequest,
    connection: Option<HttpConnection>,
}

impl TrafficClient {
    pub(super) fn new(address: ListenAddress, request: ChatRequest) -> Self {
        Self { address, request, connection: None }
    }

    /// Sends one request and reads its answer.
    pub(super) async fn send_and_record(&mut self) -> RequestRecord {
        let (start, mut head) = (clock::now(), None);
        let result = self.read_response(&mut head).await;
        let outcome = match result {
            Ok((model, text)) => RequestOutcome::Succeeded { model, text },
            Err(failure) => {
                self.connection = None;
                RequestOutcome::Failed(failure)
            }
        };
        RequestRecord { mode: self.request.mode, start, first_byte: head, end: clock::now(), outcome }
    }

    async fn read_response(&mut self, head: &mut Option<Instant>) -> Result<(String, String), RequestFailure> {
        let response = timeout(READ_TIMEOUT, self.send_request()).await.map_err(|_| RequestFailure::TimedOut)??;
        *head = Some(clock::now());
        let status = response.status();
        let body = read(response).await?;
        if status != StatusCode::OK {
            let body = String::from_utf8_lossy(&body).chars().take(300).collect();
            return Err(RequestFailure::Status { status: status.as_u16(), body });
        }
        match self.request.mode {
            ResponseMode::Json => parse_whole(&body),
            ResponseMode::Sse => parse_stream(&body),
        }
    }

    async fn send_request(&mut self) -> Result<Response<Incoming>, RequestFailure> {
        let mut request = http::request("POST", "/v1/chat/completions", Some(&self.request.body));
        if let Some(Ok(key)) = self.request.api_key.as_ref().map(|key| format!("Bearer {key}").try_into()) {
            request.headers_mut().insert(hyper::header::AUTHORIZATION, key);
        }
        if let Some(mut connection) = self.connection.take()
            && connection.is_open().await
        {
            match connection.send(request.clone()).await {
                // Closed while idle, before a byte was written: every client opens another one then.
                Err(error) if error.is_canceled() => {}
                Err(error) => return Err(RequestFailure::ConnectionLost(error_chain(&error))),
                Ok(response) => {
                    self.connection = Some(connection);
                    return Ok(response);
                }
            }
        }
        let mut connection = HttpConnection::open(&self.address).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => RequestFailure::ConnectionRefused,
            _ => RequestFailure::ConnectionLost(error.to_string()),
        })?;
        let response =
            connection.send(request).await.map_err(|error| RequestFailure::ConnectionLost(error_chain(&error)))?;
        self.connection = Some(connection);
        Ok(response)
    }
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>, RequestFailure> {
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    loop {
        match timeout(READ_TIMEOUT, body.frame()).await {
            Err(_) => return Err(RequestFailure::TimedOut),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => return Err(RequestFailure::Truncated(error_chain(&error))),
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new())),
        }
    }
}

fn parse_whole(body: &[u8]) -> Result<(String, String), RequestFailure> {
    let answer = parse(body)?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    Ok((response_model(&answer)?, text.to_owned()))
}

fn parse_stream(body: &[u8]) -> Result<(String, String), RequestFailure> {
    let text = std::str::from_utf8(body).map_err(|error| RequestFailure::Malformed(error.to_string()))?;
    let (mut model, mut content, mut done): (Option<String>, _, _) = (None, String::new(), false);
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let event = parse(data.as_bytes())?;
        let name = response_model(&event)?;
        if let Some(before) = model.as_ref().filter(|before| **before != name) {
            return Err(RequestFailure::Malformed(format!("one stream names {before} and {name}")));
        }
        model = Some(name);
        content += event["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    match model {
        Some(model) if done => Ok((model, content)),
        _ => Err(RequestFailure::Truncated(format!("{} bytes of a stream without [DONE]", body.len()))),
    }
}

fn parse(bytes: &[u8]) -> Result<Value, RequestFailure> {
    let shown = || String::from_utf8_lossy(bytes).chars().take(300).collect::<String>();
    serde_json::from_slice(bytes).map_err(|error| RequestFailure::Malformed(format!("{error}: {}", shown())))
}

fn response_model(answer: &Value) -> Result<String, RequestFailure> {
    let model = answer["model"].as_str();
    model.map(str::to_owned).ok_or_else(|| RequestFailure::Malformed(format!("no model in {answer}")))
}

/// Returns the error with all its causes: hyper's own text names none of them.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = fmt::format(format_args!("{words}: {cause}"));
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_needs_one_model_and_an_end_mark() {
        let event =
            |model, text| format!("data: {}\n\n", json!({"model": model, "choices": [{"delta": {"content": text}}]}));
        let good = format!("{}{}data: [DONE]\n\n", event("v1", "a"), event("v1", "b"));
        assert_eq!(parse_stream(good.as_bytes()), Ok(("v1".to_owned(), "ab".to_owned())));
        let cut = event("v1", "a");
        assert!(matches!(parse_stream(cut.as_bytes()), Err(RequestFailure::Truncated(_))));
        let mixed = format!("{}{}data: [DONE]\n\n", event("v1", "a"), event("v2", "b"));
        assert!(matches!(parse_stream(mixed.as_bytes()), Err(RequestFailure::Malformed(_))));
    }

    #[test]
    fn response_without_a_model_is_malformed() {
        assert!(matches!(parse_whole(b"{}"), Err(RequestFailure::Malformed(_))));
        let answer = json!({"model": "v1", "choices": [{"message": {"content": "a"}}]}).to_string();
        assert_eq!(parse_whole(answer.as_bytes()), Ok(("v1".to_owned(), "a".to_owned())));
    }
}
