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
const PATIENCE: Duration = Duration::from_secs(30);

/// How the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Whole.
    Json,
    /// As a stream of events.
    Sse,
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    kind: Kind,
    body: Value,
    /// Sent as `Authorization: Bearer`.
    pub api_key: Option<String>,
}

impl Ask {
    /// A chat with `model`.
    pub fn new(model: &str, kind: Kind, tokens: u32) -> Self {
        let mut body = json!({
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "max_completion_tokens": tokens,
            "temperature": 0,
        });
        if kind == Kind::Sse {
            // Long streams are what is wanted, not what the model thinks is enough.
            body["stream"] = json!(true);
            body["ignore_eos"] = json!(true);
        }
        Self { kind, body, api_key: None }
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
pub struct Exchange {
    /// How the answer was wanted.
    pub kind: Kind,
    /// Before the first byte was written.
    pub start: Instant,
    /// When the head of the answer was there.
    pub head: Option<Instant>,
    /// When it was over.
    pub end: Instant,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer with status 200.
    Answered {
        /// Its `.model`, the same in every piece of a stream.
        model: String,
        /// What it says.
        text: String,
    },
    /// Anything else.
    Failed(Failure),
}

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens there.
    #[error("the connection was refused")]
    Refused,
    /// The connection broke before the head of an answer.
    #[error("no answer: {0}")]
    NoAnswer(String),
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
    Cut(String),
    /// Not what an answer looks like.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
    /// Nothing came for [`PATIENCE`].
    #[error("nothing came for {PATIENCE:?}")]
    Silence,
}

impl Exchange {
    /// The version that answered.
    pub fn model(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Answered { model, .. } => Some(model),
            Outcome::Failed(_) => None,
        }
    }

    /// Why there is no answer.
    pub fn failure(&self) -> Option<&Failure> {
        match &self.outcome {
            Outcome::Answered { .. } => None,
            Outcome::Failed(failure) => Some(failure),
        }
    }
}

/// One client with one connection, which it opens again when it was closed between two requests.
#[derive(Debug)]
pub(super) struct Client {
    address: ListenAddress,
    ask: Ask,
    connection: Option<HttpConnection>,
}

impl Client {
    pub(super) fn new(address: ListenAddress, ask: Ask) -> Self {
        Self { address, ask, connection: None }
    }

    /// Sends one request and reads its answer.
    pub(super) async fn exchange(&mut self) -> Exchange {
        let (start, mut head) = (clock::now(), None);
        let result = self.answer(&mut head).await;
        let outcome = match result {
            Ok((model, text)) => Outcome::Answered { model, text },
            Err(failure) => {
                self.connection = None;
                Outcome::Failed(failure)
            }
        };
        Exchange { kind: self.ask.kind, start, head, end: clock::now(), outcome }
    }

    async fn answer(&mut self, head: &mut Option<Instant>) -> Result<(String, String), Failure> {
        let response = timeout(PATIENCE, self.send()).await.map_err(|_| Failure::Silence)??;
        *head = Some(clock::now());
        let status = response.status();
        let body = read(response).await?;
        if status != StatusCode::OK {
            let body = String::from_utf8_lossy(&body).chars().take(300).collect();
            return Err(Failure::Status { status: status.as_u16(), body });
        }
        match self.ask.kind {
            Kind::Json => whole(&body),
            Kind::Sse => stream(&body),
        }
    }

    async fn send(&mut self) -> Result<Response<Incoming>, Failure> {
        let mut request = http::request("POST", "/v1/chat/completions", Some(&self.ask.body));
        if let Some(Ok(key)) = self.ask.api_key.as_ref().map(|key| format!("Bearer {key}").try_into()) {
            request.headers_mut().insert(hyper::header::AUTHORIZATION, key);
        }
        if let Some(mut connection) = self.connection.take()
            && connection.is_open().await
        {
            match connection.send(request.clone()).await {
                // Closed while idle, before a byte was written: every client opens another one then.
                Err(error) if error.is_canceled() => {}
                Err(error) => return Err(Failure::NoAnswer(words(&error))),
                Ok(response) => {
                    self.connection = Some(connection);
                    return Ok(response);
                }
            }
        }
        let mut connection = HttpConnection::open(&self.address).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused,
            _ => Failure::NoAnswer(error.to_string()),
        })?;
        let response = connection.send(request).await.map_err(|error| Failure::NoAnswer(words(&error)))?;
        self.connection = Some(connection);
        Ok(response)
    }
}

async fn read(response: Response<Incoming>) -> Result<Vec<u8>, Failure> {
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    loop {
        match timeout(PATIENCE, body.frame()).await {
            Err(_) => return Err(Failure::Silence),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => return Err(Failure::Cut(words(&error))),
            Ok(Some(Ok(frame))) => bytes.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new())),
        }
    }
}

fn whole(body: &[u8]) -> Result<(String, String), Failure> {
    let answer = parse(body)?;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    Ok((model_of(&answer)?, text.to_owned()))
}

fn stream(body: &[u8]) -> Result<(String, String), Failure> {
    let text = std::str::from_utf8(body).map_err(|error| Failure::Unreadable(error.to_string()))?;
    let (mut model, mut said, mut done): (Option<String>, _, _) = (None, String::new(), false);
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        if data == "[DONE]" {
            done = true;
            continue;
        }
        let piece = parse(data.as_bytes())?;
        let name = model_of(&piece)?;
        if let Some(before) = model.as_ref().filter(|before| **before != name) {
            return Err(Failure::Unreadable(format!("one stream says {before} and {name}")));
        }
        model = Some(name);
        said += piece["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    }
    match model {
        Some(model) if done => Ok((model, said)),
        _ => Err(Failure::Cut(format!("{} bytes of a stream without [DONE]", body.len()))),
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    let shown = || String::from_utf8_lossy(bytes).chars().take(300).collect::<String>();
    serde_json::from_slice(bytes).map_err(|error| Failure::Unreadable(format!("{error}: {}", shown())))
}

fn model_of(answer: &Value) -> Result<String, Failure> {
    let model = answer["model"].as_str();
    model.map(str::to_owned).ok_or_else(|| Failure::Unreadable(format!("no model in {answer}")))
}

/// An error with what caused it: hyper's own texts say little.
fn words(error: &dyn std::error::Error) -> String {
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
        assert_eq!(stream(good.as_bytes()), Ok(("v1".to_owned(), "ab".to_owned())));
        let cut = piece("v1", "a");
        assert!(matches!(stream(cut.as_bytes()), Err(Failure::Cut(_))));
        let mixed = format!("{}{}data: [DONE]\n\n", piece("v1", "a"), piece("v2", "b"));
        assert!(matches!(stream(mixed.as_bytes()), Err(Failure::Unreadable(_))));
    }

    #[test]
    fn an_answer_without_a_model_is_no_answer() {
        assert!(matches!(whole(b"{}"), Err(Failure::Unreadable(_))));
        let answer = json!({"model": "v1", "choices": [{"message": {"content": "a"}}]}).to_string();
        assert_eq!(whole(answer.as_bytes()), Ok(("v1".to_owned(), "a".to_owned())));
    }
}
