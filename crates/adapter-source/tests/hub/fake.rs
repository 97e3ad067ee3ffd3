//! Fake hub: a local server with a hub's endpoints and configurable faults.

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

/// Commit that every revision resolves to.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One file of the repository `org/name`.
#[derive(Debug, Clone)]
pub(crate) struct RepositoryFile {
    pub name: String,
    pub content: Vec<u8>,
    /// Announced as a large file, with a SHA-256.
    pub large: bool,
    /// Announced size, if it differs from the real one.
    pub size: Option<usize>,
    /// Announced hash, if it differs from the real one.
    pub hash: Option<String>,
}

/// Fault that the fake hub injects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum HubFault {
    #[default]
    None,
    /// Every response has this status.
    Status(u16),
    /// The connection breaks after this many bytes of the weights.
    Cut(usize),
    /// No more bytes are sent after this many bytes of the weights.
    Stall(usize),
    /// Requests for weights are redirected to the second listener.
    Redirect,
}

/// A request that the fake hub recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubRequest {
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
    pub on_redirect_target: bool,
}

#[derive(Debug)]
pub(crate) struct FakeHub {
    pub endpoint: String,
    shared: Arc<FakeHubState>,
    _tasks: JoinSet<()>,
}

#[derive(Debug, Default)]
struct FakeHubState {
    files: Mutex<Vec<RepositoryFile>>,
    fault: Mutex<HubFault>,
    requests: Mutex<Vec<HubRequest>>,
    redirect_target: Mutex<Option<SocketAddr>>,
}

impl FakeHub {
    /// Starts a hub that contains one adapter of rank 8.
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(FakeHubState::default());
        *shared.files.lock().unwrap() = adapter_files(8);
        let mut tasks = JoinSet::new();
        let mut serve = async |on_redirect_target: bool| {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let state = (Arc::clone(&shared), on_redirect_target);
            let app = Router::new().fallback(respond).with_state(state);
            tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
            address
        };
        let (address, redirect_target) = (serve(false).await, serve(true).await);
        *shared.redirect_target.lock().unwrap() = Some(redirect_target);
        Self { endpoint: format!("http://{address}"), shared, _tasks: tasks }
    }

    pub(crate) fn set_fault(&self, fault: HubFault) {
        *self.shared.fault.lock().unwrap() = fault;
    }

    pub(crate) fn edit_files(&self, change: impl FnOnce(&mut Vec<RepositoryFile>)) {
        change(&mut self.shared.files.lock().unwrap());
    }

    pub(crate) fn requests(&self) -> Vec<HubRequest> {
        self.shared.requests.lock().unwrap().clone()
    }
}

/// The files of an adapter, and three files that must not be downloaded.
pub(crate) fn adapter_files(rank: u32) -> Vec<RepositoryFile> {
    let config = format!(r#"{{"peft_type":"LORA","r":{rank},"base_model_name_or_path":"org/base"}}"#);
    let item = |name: &str, content: Vec<u8>, large| RepositoryFile {
        name: name.to_owned(),
        content,
        large,
        size: None,
        hash: None,
    };
    vec![
        item("adapter_model.safetensors", tensors(100_000), true),
        item("adapter_config.json", config.into_bytes(), false),
        item("tokenizer_config.json", b"{}".to_vec(), false),
        item("training_args.bin", vec![1; 10], true),
        item("checkpoint-1/adapter_model.safetensors", tensors(10), true),
        item("../outside.json", b"{}".to_vec(), false),
    ]
}

/// A safetensors file with one tensor of `bytes` bytes.
pub(crate) fn tensors(bytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = u64::try_from(header.len()).unwrap().to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend((0..bytes).map(|index| u8::try_from(index % 251).unwrap()));
    file
}

async fn respond(
    State((shared, on_redirect_target)): State<(Arc<FakeHubState>, bool)>,
    uri: Uri,
    request: Request,
) -> Response {
    let text = |headers: &HeaderMap, name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let headers = request.headers();
    let (range, token) = (text(headers, header::RANGE), text(headers, header::AUTHORIZATION));
    let path = uri.path().to_owned();
    shared.requests.lock().unwrap().push(HubRequest {
        path: path.clone(),
        range: range.clone(),
        token,
        on_redirect_target,
    });
    let fault = *shared.fault.lock().unwrap();
    if let HubFault::Status(status) = fault {
        return (StatusCode::from_u16(status).unwrap(), [(header::RETRY_AFTER, "7")]).into_response();
    }
    if path.starts_with("/api/models/org/name/revision/") {
        return format!(r#"{{"sha":"{COMMIT}"}}"#).into_response();
    }
    if path.starts_with("/api/models/org/name/tree/") {
        let files: Vec<_> = shared.files.lock().unwrap().iter().map(tree_entry).collect();
        return format!("[{}]", files.join(",")).into_response();
    }
    let prefix = format!("/org/name/resolve/{COMMIT}/");
    let items = shared.files.lock().unwrap().clone();
    let found = path.strip_prefix(&prefix).and_then(|name| items.iter().find(|item| item.name == name));
    let Some(item) = found else { return StatusCode::NOT_FOUND.into_response() };
    if fault == HubFault::Redirect && item.large && !on_redirect_target {
        let to = shared.redirect_target.lock().unwrap().unwrap();
        return (StatusCode::FOUND, [(header::LOCATION, format!("http://{to}{path}"))]).into_response();
    }
    let from: usize =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0);
    let status = if from > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let bytes = Bytes::from(item.content[from..].to_vec());
    let length = bytes.len();
    let body = match fault {
        HubFault::Cut(after) if item.large => broken_body(bytes.slice(..after.min(length)), false),
        HubFault::Stall(after) if item.large => broken_body(bytes.slice(..after.min(length)), true),
        _ => Body::from(bytes),
    };
    (status, [(header::CONTENT_LENGTH, length.to_string())], body).into_response()
}

/// A body that sends `bytes` and then stalls or breaks the connection.
fn broken_body(bytes: Bytes, stall: bool) -> Body {
    Body::from_stream(futures_util::stream::unfold(Some(bytes), move |left| async move {
        match left {
            Some(bytes) => Some((Ok(bytes), None)),
            None if stall => std::future::pending().await,
            None => {
                // Lets the server write the bytes first; an immediate error would discard them.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("cut")), None))
            }
        }
    }))
}

fn tree_entry(item: &RepositoryFile) -> String {
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
