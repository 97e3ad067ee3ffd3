//! One request and what came of it.

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

/// How long a client waits for the head of an answer, and then for every further piece.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseMode {
    /// Whole.
    Json,
    /// As a stream of events.
    Sse,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct ChatRequest {
    mode: ResponseMode,
    body: Value,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<String>,
}

impl ChatRequest {
    /// A chat with `model`.
    pub fn new(model: &str, mode: ResponseMode, tokens: u32) -> Self {
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": tokens,
            "temperature": 0,
        });
        if mode == ResponseMode::Sse {
            // Long streams are what is wanted, not what the model thinks is enough.
            body["stream"] = json!(true);
            body["ignore_eos"] = json!(true);
        }
        Self { mode, body, api_key: None }
    }

    /// The same, with a key.
    #[must_use]
    pub fn with_key(mut self, key: Option<&str>) -> Self {
        self.api_key = key.map(str::to_owned);
        self
    }
}

/// One request, from its start to its end.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    /// How the answer was wanted.
    pub mode: ResponseMode,
    /// Before the first byte was written.
    pub start: Instant,
    /// When the head of the answer was there.
    pub first_byte: Option<Instant>,
    /// When it was over.
    pub end: Instant,
    /// What came of it.
    pub outcome: RequestOutcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestOutcome {
    /// A whole answer with status 200.
    Succeeded {
        /// Its `.model`, the same in every piece of a stream.
        model: String,
        /// What it says.
        text: String,
    },
    /// Anything else.
    Failed(RequestFailure),
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// Nobody listens there.
    #[error("the connection was refused")]
    ConnectionRefused,
    /// The connection broke before the head of an answer.
    #[error("no answer: {0}")]
    ConnectionLost(String),
    /// Another status than 200.
    #[error("status {status}: {body}")]
    Status {
        /// The status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// The answer broke off, or a stream had no end mark.
    #[error("the answer was cut: {0}")]
    Truncated(String),
    /// Not what an answer looks like.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    /// Nothing came for [`PATIENCE`].
    #[error("nothing came for {READ_TIMEOUT:?}")]
    TimedOut,
}

impl RequestRecord {
    /// The version that answered.
    pub fn model(&self) -> Option<&str> {
        match &self.outcome {
            RequestOutcome::Succeeded { model, .. } => Some(model),
            RequestOutcome::Failed(_) => None,
        }
    }

    /// Why there is no answer.
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
    let (mut model, mut said, mut done): (Option<String>, _, _) = (None, String::new(), false);
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let piece = parse(data.as_bytes())?;
        let name = response_model(&piece)?;
        if let Some(before) = model.as_ref().filter(|before| **before != name) {
            return Err(RequestFailure::Malformed(format!("one stream says {before} and {name}")));
        }
        model = Some(name);
        said += piece["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    match model {
        Some(model) if done => Ok((model, said)),
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

/// An error with what caused it: hyper's own texts say little.
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
    fn a_stream_is_whole_when_every_piece_names_one_model_and_the_end_is_marked() {
        let piece =
            |model, text| format!("data: {}\n\n", json!({"model": model, "choices": [{"delta": {"content": text}}]}));
        let good = format!("{}{}data: [DONE]\n\n", piece("v1", "a"), piece("v1", "b"));
        assert_eq!(parse_stream(good.as_bytes()), Ok(("v1".to_owned(), "ab".to_owned())));
        let cut = piece("v1", "a");
        assert!(matches!(parse_stream(cut.as_bytes()), Err(RequestFailure::Truncated(_))));
        let mixed = format!("{}{}data: [DONE]\n\n", piece("v1", "a"), piece("v2", "b"));
        assert!(matches!(parse_stream(mixed.as_bytes()), Err(RequestFailure::Malformed(_))));
    }

    #[test]
    fn an_answer_without_a_model_is_no_answer() {
        assert!(matches!(parse_whole(b"{}"), Err(RequestFailure::Malformed(_))));
        let answer = json!({"model": "v1", "choices": [{"message": {"content": "a"}}]}).to_string();
        assert_eq!(parse_whole(answer.as_bytes()), Ok(("v1".to_owned(), "a".to_owned())));
    }
}
