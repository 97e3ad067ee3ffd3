//! The answers: recordings of a real vLLM, and synthetic ones that could not be recorded.

use rollora_api::names::AdapterId;
use rollora_vllm::{Endpoint, ServerMetrics, Timeouts, VllmClient, VllmError};
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// The kind of the request to vLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RequestKind {
    Load,
    Probe,
    Unload,
    Health,
    Models,
    Metrics,
}

/// The answer to a request, or what came instead of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerReply {
    /// An HTTP response; `adapter_name` is the name in the request.
    Http { status: u16, content_type: Option<String>, body: String, adapter_name: String },
    /// No process listens on the port.
    ConnectionRefused,
    /// The connection is established, and no response comes.
    NoResponse,
    /// These bytes, then the end of the connection.
    Bytes(&'static str),
    /// A response with a body of this many bytes.
    LargeBody(usize),
}

#[derive(Deserialize)]
struct RecordedExchange {
    label: String,
    request: RecordedRequest,
    status: Option<u16>,
    content_type: Option<String>,
    response: Option<String>,
}

#[derive(Deserialize)]
struct RecordedRequest {
    method: String,
    path: String,
    body: Value,
}

/// Returns all recorded answers to requests that a sidecar makes. Chat completions and embeddings stand for the
/// completion of a probe, because vLLM answers them with the same texts.
pub(crate) fn recorded() -> Vec<(String, RequestKind, ServerReply)> {
    let lines = [
        include_str!("../../../../testbed/testdata/vllm/transcript.jsonl"),
        include_str!("../../../../testbed/testdata/vllm/edges.jsonl"),
    ];
    lines
        .into_iter()
        .flat_map(str::lines)
        .filter_map(|line| parse_exchange(serde_json::from_str(line).unwrap()))
        .collect()
}

fn parse_exchange(line: RecordedExchange) -> Option<(String, RequestKind, ServerReply)> {
    let RecordedExchange { label, request: RecordedRequest { method, path, body }, status, content_type, response } =
        line;
    let request_kind = match (method.as_str(), path.as_str()) {
        ("POST", "/v1/load_lora_adapter") => RequestKind::Load,
        ("POST", "/v1/unload_lora_adapter") => RequestKind::Unload,
        ("POST", "/v1/completions" | "/v1/chat/completions" | "/v1/embeddings") => RequestKind::Probe,
        ("GET", "/health") => RequestKind::Health,
        ("GET", "/v1/models") => RequestKind::Models,
        ("GET", "/metrics") => RequestKind::Metrics,
        _ => return None,
    };
    // Streams, which a sidecar never requests, and bodies that the recording truncated.
    if body["stream"] == true || response.as_deref().is_some_and(|body| body.ends_with("…")) {
        return None;
    }
    let name = ["lora_name", "model"].into_iter().find_map(|field| body.get(field)?.as_str());
    let adapter_name = name.filter(|name| AdapterId::new(*name).is_ok()).unwrap_or("a1").to_owned();
    let body = response.unwrap_or_default();
    let reply = match status {
        Some(status) => ServerReply::Http { status, content_type, body, adapter_name },
        None if body.contains("refused") => ServerReply::ConnectionRefused,
        None if body.contains("timed out") => ServerReply::NoResponse,
        None if body.contains("reset") => ServerReply::Bytes(""),
        None => panic!("{label}: unknown failure: {body}"),
    };
    Some((label, request_kind, reply))
}

/// Returns synthetic answers: of proxies in between, of other vLLM versions, and failures without an answer.
pub(crate) fn synthetic() -> Vec<(String, RequestKind, ServerReply)> {
    use RequestKind::{Health, Load, Metrics, Models, Probe, Unload};
    let http = |status, content_type: Option<&str>, body: &str| ServerReply::Http {
        status,
        content_type: content_type.map(str::to_owned),
        body: body.to_owned(),
        adapter_name: "a1".to_owned(),
    };
    let (json, html, text) = (Some("application/json"), Some("text/html; charset=utf-8"), Some("text/plain"));
    let engine_dead = "{\"error\":{\"message\":\"EngineCore encountered an issue.\"}}";
    let after_shutdown = "{\"error\":{\"message\":\"cannot schedule new futures after shutdown\"}}";
    let http_replies = [
        ("login page of a proxy", http(200, html, "<html>please log in</html>")),
        ("proxy without a backend", http(502, html, "<html>bad gateway</html>")),
        ("overloaded server", http(503, json, "{\"error\":{\"message\":\"overloaded\"}}")),
        ("rate limit", http(429, text, "slow down")),
        ("error without a message", http(500, None, "Internal Server Error")),
        ("dead engine", http(500, json, engine_dead)),
        ("server that shuts down", http(500, json, after_shutdown)),
        ("redirect", http(302, None, "")),
        ("other program", http(404, text, "404 page not found")),
        ("wrong API key", http(401, json, "{\"error\":\"Unauthorized\"}")),
        ("forbidden by a proxy", http(403, None, "")),
        ("request body too large", http(413, json, "{\"error\":{\"message\":\"too large\"}}")),
    ];
    let failures = [
        ("connection refused", ServerReply::ConnectionRefused),
        ("no response", ServerReply::NoResponse),
        ("end before the first byte", ServerReply::Bytes("")),
        ("end in the head", ServerReply::Bytes("HTTP/1.1 200 O")),
        ("end in the body", ServerReply::Bytes("HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{\"data\":[")),
        ("not HTTP", ServerReply::Bytes("SSH-2.0-OpenSSH_9.2\r\n")),
        ("more than 8 MiB", ServerReply::LargeBody((8 << 20) + 1)),
    ];
    let mut all = Vec::new();
    for request_kind in [Load, Probe, Unload, Health, Models, Metrics] {
        for (label, reply) in http_replies.iter().chain(&failures) {
            all.push((format!("{label} ({request_kind:?})"), request_kind, reply.clone()));
        }
    }
    let single = [
        (
            "load refused by an older version",
            Load,
            http(400, json, "{\"error\":{\"message\":\"Call to add_lora method failed: no space\"}}"),
        ),
        ("load with an empty response", Load, http(200, None, "")),
        ("invalid completion", Probe, http(200, json, "{\"model\":")),
        ("completion of another model", Probe, http(200, json, "{\"model\":\"base\",\"choices\":[]}")),
        ("no model list", Models, http(200, json, "{\"models\":[]}")),
        ("truncated model list", Models, http(200, json, "{\"data\":[{\"id\":")),
        ("closed metrics", Metrics, http(404, json, "{\"detail\":\"Not Found\"}")),
        ("metrics of another program", Metrics, http(200, text, "up 1\n")),
    ];
    all.extend(single.into_iter().map(|(label, request_kind, reply)| (label.to_owned(), request_kind, reply)));
    all
}

impl ServerReply {
    /// Returns the adapter name in the request.
    pub(crate) fn adapter_id(&self) -> AdapterId {
        let name = if let Self::Http { adapter_name, .. } = self { adapter_name } else { "a1" };
        AdapterId::new(name).unwrap()
    }

    fn to_bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Http { status, content_type, body, .. } => {
                let kind = content_type.as_ref().map(|kind| format!("content-type: {kind}\r\n")).unwrap_or_default();
                let length = body.len();
                Some(format!("HTTP/1.1 {status} -\r\n{kind}content-length: {length}\r\n\r\n{body}").into_bytes())
            }
            Self::Bytes(bytes) => Some(bytes.as_bytes().to_owned()),
            Self::LargeBody(length) => {
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
                Some([head.into_bytes(), vec![b' '; *length]].concat())
            }
            Self::NoResponse | Self::ConnectionRefused => None,
        }
    }
}

/// The result of the client for an answer.
#[derive(Debug)]
pub(crate) enum ParsedReply {
    Done,
    Models(Vec<rollora_vllm::ModelCard>),
    Metrics(ServerMetrics),
}

/// Sends the request to a server that gives this answer to everything.
pub(crate) async fn send_request(request_kind: RequestKind, reply: &ServerReply) -> Result<ParsedReply, VllmError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    match reply {
        ServerReply::ConnectionRefused => drop(listener),
        _ => drop(server.spawn(serve(listener, reply.to_bytes()))),
    }
    let timeout = Duration::from_millis(if *reply == ServerReply::NoResponse { 50 } else { 20_000 });
    let timeouts = Timeouts { connect: Duration::from_secs(20), call: timeout, load: timeout, probe: timeout };
    let client = VllmClient::new(Endpoint::parse(&url).unwrap(), timeouts).unwrap();
    let id = reply.adapter_id();
    match request_kind {
        RequestKind::Load => client.load(&id, "/adapters/a1").await.map(|()| ParsedReply::Done),
        RequestKind::Probe => client.probe(&id).await.map(|()| ParsedReply::Done),
        RequestKind::Unload => client.unload(&id).await.map(|()| ParsedReply::Done),
        RequestKind::Health => client.health().await.map(|()| ParsedReply::Done),
        RequestKind::Models => client.models().await.map(ParsedReply::Models),
        RequestKind::Metrics => client.metrics().await.map(ParsedReply::Metrics),
    }
}

/// Answers every request with these bytes and closes the connection; `None` never answers.
async fn serve(listener: TcpListener, answer: Option<Vec<u8>>) {
    let mut open_connections = Vec::new();
    loop {
        let (mut connection, _) = listener.accept().await.unwrap();
        if !read_request(&mut connection).await {
            continue;
        }
        match &answer {
            // The client may close the connection before it has read everything.
            Some(answer) => drop(connection.write_all(answer).await),
            None => open_connections.push(connection),
        }
    }
}

/// Reads a whole request; returns `false` if the client sent none.
async fn read_request(connection: &mut TcpStream) -> bool {
    let mut read = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&read).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return true;
            }
        }
        match connection.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(count) => read.extend_from_slice(&buffer[..count]),
        }
    }
}
