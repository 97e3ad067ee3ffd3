//! Testbed of the gateway: a gateway on loopback, small servers behind it, and a client.

use super::*;
use crate::gateway::{serve, servers::GatewayServer};
use axum::{Router, body::Body as AxumBody, extract::ConnectInfo, extract::Request as AxumRequest};
use futures_util::stream;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use std::{convert::Infallible, net::SocketAddr};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Maximum size of a request body, in bytes.
pub(super) const MAX_BODY: usize = 64 << 10;

pub(super) struct GatewayTestbed {
    address: SocketAddr,
    servers: Arc<GatewayServers>,
    requests: mpsc::Receiver<ReceivedRequest>,
    chunk_tx: Option<mpsc::Sender<Bytes>>,
    stop: CancellationToken,
    gateway_tasks: JoinSet<()>,
    /// Tasks of the servers, which end when this is dropped.
    server_tasks: JoinSet<()>,
}

/// A request as a server received it.
#[derive(Debug)]
pub(super) struct ReceivedRequest {
    pub(super) server: usize,
    pub(super) client_port: u16,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// A request to the gateway.
#[derive(Debug, Default)]
pub(super) struct TestRequest {
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

/// A response of the gateway.
#[derive(Debug)]
pub(super) struct TestResponse {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl TestResponse {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A response that is read chunk by chunk.
pub(super) struct ResponseStream {
    body: Incoming,
    _connection: JoinSet<()>,
}

impl ResponseStream {
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        let frame = self.body.frame().await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }
}

/// A server that records requests. Responses to chat completions are streamed from the chunks that the test sends.
pub(super) struct RecordingServer {
    pub(super) address: SocketAddr,
    requests: mpsc::Receiver<ReceivedRequest>,
    chunk_tx: mpsc::Sender<Bytes>,
    tasks: JoinSet<()>,
}

/// A rewrite of `alias` to one target.
pub(super) fn alias_rewrite(target: &str, weight: i32) -> InferenceModelRewrite {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "llm-d.ai/v1alpha2",
        "kind": "InferenceModelRewrite",
        "metadata": { "name": "alias", "uid": "1" },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{
            "matches": [{ "model": { "value": "alias" } }],
            "targets": [{ "modelRewrite": target, "weight": weight }],
        }]},
    }))
    .unwrap()
}

/// State of a server that is ready and has the models `names`.
pub(super) fn serving(names: &[&str]) -> ServerRoutingState {
    ServerRoutingState {
        ready: true,
        models: names.iter().map(ToString::to_string).collect(),
        ..ServerRoutingState::default()
    }
}

/// A request for a completion, to which recording servers respond immediately.
pub(super) fn completion(body: &str) -> TestRequest {
    TestRequest { path: "/v1/completions".to_owned(), headers: HeaderMap::new(), body: body.to_owned() }
}

/// Reads the head of a request, and a body of the length that it announces.
pub(super) async fn read_request(stream: &mut TcpStream) {
    let mut text = Vec::new();
    let mut byte = [0; 1];
    while !text.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).await.unwrap();
        text.extend_from_slice(&byte);
    }
    let head = String::from_utf8(text).unwrap().to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).await.unwrap();
}

/// Starts a server that runs `serve` on each connection, until the test's runtime ends.
pub(super) async fn raw_server<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    TaskTracker::new().spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream));
        }
    });
    address
}

/// Returns an address on which no process listens.
pub(super) async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Starts a server that records requests.
pub(super) async fn recording_server() -> RecordingServer {
    let (request_tx, requests) = mpsc::channel(100);
    let (chunk_tx, chunks) = mpsc::channel(1);
    let mut tasks = JoinSet::new();
    let address = spawn_recording_server(0, request_tx, Arc::new(Mutex::new(chunks)), &mut tasks).await;
    RecordingServer { address, requests, chunk_tx, tasks }
}

async fn spawn_recording_server(
    server: usize,
    request_tx: mpsc::Sender<ReceivedRequest>,
    chunks: Arc<Mutex<mpsc::Receiver<Bytes>>>,
    tasks: &mut JoinSet<()>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler = move |ConnectInfo(from): ConnectInfo<SocketAddr>, request: AxumRequest| {
        let (request_tx, chunks) = (request_tx.clone(), Arc::clone(&chunks));
        async move {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            if head.uri.path() == "/v1/chat/completions" {
                return AxumBody::from_stream(stream::unfold(chunks, |chunks| async move {
                    let chunk = chunks.lock().await.recv().await?;
                    Some((Ok::<_, Infallible>(chunk), chunks))
                }));
            }
            let path = head.uri.to_string();
            let received = ReceivedRequest { server, client_port: from.port(), path, headers: head.headers, body };
            request_tx.send(received).await.unwrap();
            AxumBody::from("{}")
        }
    };
    let service = Router::new().fallback(handler).into_make_service_with_connect_info::<SocketAddr>();
    tasks.spawn(async move { axum::serve(listener, service).await.unwrap() });
    address
}

impl GatewayTestbed {
    /// Starts a gateway in front of `count` recording servers.
    pub(super) async fn start(count: usize, rewrites: &[InferenceModelRewrite]) -> Self {
        let (request_tx, requests) = mpsc::channel(100);
        let (chunk_tx, chunks) = mpsc::channel(1);
        let (chunks, mut tasks, mut addresses) = (Arc::new(Mutex::new(chunks)), JoinSet::new(), Vec::new());
        for server in 0..count {
            addresses.push(spawn_recording_server(server, request_tx.clone(), Arc::clone(&chunks), &mut tasks).await);
        }
        drop(chunks);
        let mut testbed = Self::with_servers(addresses, rewrites).await;
        (testbed.requests, testbed.chunk_tx, testbed.server_tasks) = (requests, Some(chunk_tx), tasks);
        testbed
    }

    /// Starts a gateway in front of servers at these addresses.
    pub(super) async fn with_servers(addresses: Vec<SocketAddr>, rewrites: &[InferenceModelRewrite]) -> Self {
        let tasks = TaskTracker::new();
        let server = |address: SocketAddr| {
            let (host, port) = (address.ip().to_string(), address.port());
            Arc::new(GatewayServer::new(
                address.to_string(),
                &host,
                port,
                tasks.clone(),
                Arc::default(),
                Arc::default(),
            ))
        };
        let servers = Arc::new(GatewayServers::new(addresses.into_iter().map(server).collect()));
        let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
        let rules = Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current]));
        rules.reset(rewrites);
        let limits = BodyLimits { per_request: MAX_BODY, total: 4 * MAX_BODY };
        let gateway = Arc::new(Gateway::new(Arc::clone(&servers), rules, limits));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let mut gateway_tasks = JoinSet::new();
        gateway_tasks.spawn(serve::serve(listener, gateway, stop.clone(), TIMEOUT));
        let (_, requests) = mpsc::channel(1);
        Self { address, servers, requests, chunk_tx: None, stop, gateway_tasks, server_tasks: JoinSet::new() }
    }

    pub(super) fn attach(&mut self, recording: RecordingServer) {
        (self.requests, self.chunk_tx, self.server_tasks) =
            (recording.requests, Some(recording.chunk_tx), recording.tasks);
    }

    pub(super) fn update_routing(&self, states: &[ServerRoutingState]) {
        self.servers.update_routing(states);
    }

    pub(super) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, sent: TestRequest) -> (Response<Incoming>, JoinSet<()>) {
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.connect().await)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(connection.await) });
        let mut request = Request::new(Full::new(Bytes::from(sent.body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = sent.path.parse().unwrap();
        *request.headers_mut() = sent.headers;
        request.headers_mut().insert(header::HOST, "here".parse().unwrap());
        (timeout(TIMEOUT, sender.send_request(request)).await.expect("a response").unwrap(), tasks)
    }

    /// Sends a request, and reads the whole response.
    pub(super) async fn request(&self, sent: TestRequest) -> TestResponse {
        let (response, _connection) = self.send(sent).await;
        let (head, body) = response.into_parts();
        let body = timeout(TIMEOUT, body.collect()).await.expect("a complete response").unwrap().to_bytes();
        TestResponse { status: head.status, headers: head.headers, body }
    }

    /// Sends a chat completion request, whose response is read chunk by chunk.
    pub(super) async fn stream(&self, body: &str) -> ResponseStream {
        let sent = TestRequest { path: "/v1/chat/completions".to_owned(), ..completion(body) };
        let (response, connection) = self.send(sent).await;
        assert_eq!(response.status(), StatusCode::OK);
        ResponseStream { body: response.into_body(), _connection: connection }
    }

    /// Returns the next request that a recording server received.
    pub(super) async fn next_request(&mut self) -> ReceivedRequest {
        timeout(TIMEOUT, self.requests.recv()).await.expect("a request").expect("a server")
    }

    pub(super) fn received_nothing(&mut self) -> bool {
        self.requests.try_recv().is_err()
    }

    /// Has the streaming server write one chunk of its response.
    pub(super) async fn send_chunk(&self, chunk: Bytes) {
        self.chunk_tx.as_ref().unwrap().send(chunk).await.unwrap();
    }

    /// Ends the response of the streaming server.
    pub(super) fn end_stream(&mut self) {
        self.chunk_tx = None;
    }

    pub(super) fn in_flight(&self, server: usize) -> usize {
        self.servers.all()[server].in_flight()
    }

    pub(super) fn is_suspect(&self, server: usize) -> bool {
        self.servers.all()[server].is_suspect()
    }

    pub(super) fn has_no_idle_connection(&self, server: usize) -> bool {
        self.servers.all()[server].pool.take().is_none_or(|connection| {
            self.servers.all()[server].pool.put(connection);
            false
        })
    }

    /// Waits until `condition` holds.
    pub(super) async fn wait_for(&self, condition: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(TIMEOUT, waiting).await.expect("the condition holds in time");
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
    }

    pub(super) async fn wait_until_closed(&self) {
        let waiting = async { while TcpStream::connect(self.address).await.is_ok() {} };
        timeout(TIMEOUT, waiting).await.expect("the gateway stops listening");
    }

    pub(super) async fn wait_until_stopped(mut self) {
        while self.gateway_tasks.join_next().await.is_some() {}
    }
}
