//! A local server that speaks a hub's endpoints, and misbehaves as it is told to.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{net::TcpListener, task::JoinSet};

/// The commit of everything.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One file of the repository `org/name`.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub name: String,
    pub content: Vec<u8>,
    /// Told as a large file, with a SHA-256.
    pub large: bool,
    /// What is announced in the place of the truth.
    pub size: Option<usize>,
    pub hash: Option<String>,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Fault {
    #[default]
    None,
    /// Every answer has this status.
    Status(u16),
    /// Weights end after so many bytes, as if the connection broke.
    Cut(usize),
    /// Weights stop coming after so many bytes.
    Stall(usize),
    /// Weights are to be had at the other listener.
    Redirect,
}

/// What was asked: the path, the range, whether a token came along, and at which listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    pub elsewhere: bool,
}

/// The hub.
#[derive(Debug)]
pub(crate) struct Hub {
    pub endpoint: String,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    items: Mutex<Vec<Item>>,
    fault: Mutex<Fault>,
    asked: Mutex<Vec<Asked>>,
    elsewhere: Mutex<Option<SocketAddr>>,
}

impl Hub {
    /// Starts one with an adapter of rank 8 in it.
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        *shared.items.lock().unwrap() = adapter(8);
        let mut tasks = JoinSet::new();
        let mut serve = async |elsewhere: bool| {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let state = (Arc::clone(&shared), elsewhere);
            let app = Router::new().fallback(answer).with_state(state);
            tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
            address
        };
        let (address, elsewhere) = (serve(false).await, serve(true).await);
        *shared.elsewhere.lock().unwrap() = Some(elsewhere);
        Self { endpoint: format!("http://{address}"), shared, _tasks: tasks }
    }

    pub(crate) fn set(&self, fault: Fault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Vec<Item>)) {
        change(&mut self.shared.items.lock().unwrap());
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }
}

/// The files of an adapter, and two that must not be taken.
pub(crate) fn adapter(rank: u32) -> Vec<Item> {
    let config = format!(r#"{{"peft_type":"LORA","r":{rank},"base_model_name_or_path":"org/base"}}"#);
    let item =
        |name: &str, content: Vec<u8>, large| Item { name: name.to_owned(), content, large, size: None, hash: None };
    vec![
        item("adapter_model.safetensors", tensors(100_000), true),
        item("adapter_config.json", config.into_bytes(), false),
        item("tokenizer_config.json", b"{}".to_vec(), false),
        item("training_args.bin", vec![1; 10], true),
        item("checkpoint-1/adapter_model.safetensors", tensors(10), true),
        item("../outside.json", b"{}".to_vec(), false),
    ]
}

/// A file of safetensors with one tensor of so many bytes.
pub(crate) fn tensors(bytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..bytes).map(|index| u8::try_from(index % 251).unwrap()));
    file
}

async fn answer(State((shared, elsewhere)): State<(Arc<Shared>, bool)>, uri: Uri, request: Request) -> Response {
    let text = |headers: &HeaderMap, name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let headers = request.headers();
    let (range, token) = (text(headers, header::RANGE), text(headers, header::AUTHORIZATION));
    let path = uri.path().to_owned();
    shared.asked.lock().unwrap().push(Asked { path: path.clone(), range: range.clone(), token, elsewhere });
    let fault = *shared.fault.lock().unwrap();
    if let Fault::Status(status) = fault {
        return (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, "7")]).into_response();
    }
    if path.starts_with("/api/models/org/name/revision/") {
        return format!(r#"{{"sha":"{COMMIT}"}}"#).into_response();
    }
    if path.starts_with("/api/models/org/name/tree/") {
        let files: Vec<_> = shared.items.lock().unwrap().iter().map(told).collect();
        return format!("[{}]", files.join(",")).into_response();
    }
    let prefix = format!("/org/name/resolve/{COMMIT}/");
    let items = shared.items.lock().unwrap().clone();
    let found = path.strip_prefix(&prefix).and_then(|name| items.iter().find(|item| item.name == name));
    let Some(item) = found else { return StatusCode::NOT_FOUND.into_response() };
    if fault == Fault::Redirect && item.large && !elsewhere {
        let to = shared.elsewhere.lock().unwrap().unwrap();
        return (StatusCode::FOUND, [(header::LOCATION, format!("http://{to}{path}"))]).into_response();
    }
    let from: usize =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let bytes = Bytes::from(item.content[from..].to_vec());
    let length = bytes.len();
    let body = match fault {
        Fault::Cut(after) if item.large => broken(bytes.slice(..after.min(length)), false),
        Fault::Stall(after) if item.large => broken(bytes.slice(..after.min(length)), true),
        _ => Body::from(bytes),
    };
    (status, [(header::CONTENT_LENGTH, length.to_string())], body).into_response()
}

/// Some bytes, and then the end of the connection or nothing at all.
fn broken(bytes: Bytes, stall: bool) -> Body {
    Body::from_stream(futures_util::stream::unfold(Some(bytes), move |left| async move {
        match left {
            Some(bytes) => Some((Ok(bytes), None)),
            None if stall => std::future::pending().await,
            None => {
                // What came before is written out while this waits; an error at once would take it along.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("cut")), None))
            }
        }
    }))
}

fn told(item: &Item) -> String {
    let size = item.size.unwrap_or(item.content.len());
    let git =
        hex(&Sha1::new_with_prefix(format!("blob {}\0", item.content.len())).chain_update(&item.content).finalize());
    let sha256 = item.hash.clone().unwrap_or_else(|| hex(&Sha256::digest(&item.content)));
    let git = if item.large { git } else { item.hash.clone().unwrap_or(git) };
    let name = &item.name;
    let lfs = format!(r#","lfs":{{"oid":"{sha256}","size":{size},"pointerSize":130}}"#);
    let lfs = if item.large { lfs.as_str() } else { "" };
    format!(r#"{{"type":"file","oid":"{git}","size":{size},"path":"{name}"{lfs}}}"#)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}
