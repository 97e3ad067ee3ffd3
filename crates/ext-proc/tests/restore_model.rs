//! Restoration of the requested model name through a real Envoy, in every body mode that shows responses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test reports failures by panicking")]

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_ext_proc::{ExtProcServer, Listeners, RewriteOptions, ServerSettings};
use rollora_router::active_rules::ActiveRules;
use serde_json::{Value, json};
use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

const MODES: [&str; 3] = ["FULL_DUPLEX_STREAMED", "STREAMED", "BUFFERED"];
const TIMEOUT: Duration = Duration::from_mins(2);

#[tokio::test]
async fn requested_name_is_restored_in_every_response_mode() {
    let Some(envoy) = envoy_path() else {
        let message = "skipped: test with Envoy, because ROLLORA_ENVOY_HOME is not set";
        drop(writeln!(
            std::io::stderr().lock(),
            "{message} (`cargo xtask test` sets it, `cargo xtask tools env` prints it)"
        ));
        return;
    };
    let mut tasks = JoinSet::new();
    let first_event_seen = Arc::new(Notify::new());
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream_address = upstream.local_addr().unwrap();
    tasks.spawn(serve_model(upstream, Arc::clone(&first_event_seen)));
    let processor = serve(&mut tasks).await;
    let ports: Vec<SocketAddr> = MODES.iter().map(|_| free_port()).collect();
    let folder = tempfile::tempdir().unwrap();
    let config_path = folder.path().join("envoy.json");
    std::fs::write(&config_path, envoy_config(&ports, processor, upstream_address).to_string()).unwrap();
    let mut command = Command::new(envoy);
    command.arg("-c").arg(&config_path).args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "error"]);
    let _envoy = ChildGuard(command.stdout(Stdio::null()).spawn().unwrap());

    for (mode, address) in MODES.into_iter().zip(ports) {
        let json = request_via_envoy(address, "/v1/completions", &mut tasks).await;
        assert_eq!(json.headers().get("x-rollora-target").unwrap(), "alias-v2", "{mode}");
        assert_eq!(json.headers().get("content-length").is_some(), mode == "BUFFERED", "{mode}");
        assert_eq!(read_body(json).await, r#"{"id":1,"model":"alias","text":"alias-v2"}"#, "{mode}");
        let zipped = request_via_envoy(address, "/v1/completions/zipped", &mut tasks).await;
        assert_eq!(read_body(zipped).await, r#"{"model":"alias-v2"}"#, "{mode}");
        if mode == "BUFFERED" {
            continue;
        }
        let mut events = request_via_envoy(address, "/v1/chat/completions", &mut tasks).await.into_body();
        let mut text = String::new();
        // The model server sends only the first event and a part of the next one before the client has received these
        // bytes.
        while !text.contains("data: {\"model\":\"alias\"}\n\ndata: {\"model\" : ") {
            let frame = tokio::time::timeout(TIMEOUT, events.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("{mode}: received only {text:?}")).unwrap().unwrap();
            text.push_str(str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
        first_event_seen.notify_one();
        text.push_str(str::from_utf8(&events.collect().await.unwrap().to_bytes()).unwrap());
        let expected = "data: {\"model\":\"alias\"}\n\ndata: {\"model\" : \"alias\"}\n\ndata: [DONE]\n\n";
        assert_eq!(text, expected, "{mode}");
    }
}

fn envoy_path() -> Option<PathBuf> {
    let home = std::env::var_os("ROLLORA_ENVOY_HOME").filter(|value| !value.is_empty())?;
    Some(PathBuf::from(home).join("bin/envoy"))
}

/// A child process, killed at the end of the test.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Starts the ext_proc server, which routes `alias` to `alias-v2`.
async fn serve(tasks: &mut JoinSet<()>) -> SocketAddr {
    let rewrite: InferenceModelRewrite = serde_json::from_value(json!({
        "apiVersion": RewriteGroup::Current.api_version(), "kind": "InferenceModelRewrite",
        "metadata": { "name": "r", "namespace": "ns", "uid": "r" },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{
            "matches": [{ "model": { "value": "alias" } }], "targets": [{ "modelRewrite": "alias-v2" }],
        }] },
    }))
    .unwrap();
    let pool = PoolRef { name: "pool".to_owned(), ..PoolRef::default() };
    let active_rules = Arc::new(ActiveRules::new(pool, &[RewriteGroup::Current]));
    active_rules.reset(&[rewrite]);
    let rewrite = RewriteOptions { restore_model: true, ..RewriteOptions::default() };
    let server = ExtProcServer::new(active_rules, ServerSettings { rewrite, ..ServerSettings::default() });
    server.readiness().set_serving();
    let listen = || TcpListener::bind("127.0.0.1:0");
    let (grpc, health, metrics) = (listen().await.unwrap(), listen().await.unwrap(), listen().await.unwrap());
    let address = grpc.local_addr().unwrap();
    tasks.spawn(async move {
        server.serve(Listeners { grpc, health, metrics }, CancellationToken::new()).await.unwrap();
    });
    address
}

/// A model server whose response depends on the path, and that then closes the connection.
async fn serve_model(listener: TcpListener, first_event_seen: Arc<Notify>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let request = read_request(&mut stream).await;
        assert!(request.contains("alias-v2"), "{request}");
        let json = |headers: &str, body: &str| {
            let length = body.len();
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
            )
        };
        let path = request.split(' ').nth(1).unwrap();
        match path {
            "/v1/completions" => {
                let response = json("", r#"{"id":1,"model":"alias-v2","text":"alias-v2"}"#);
                stream.write_all(response.as_bytes()).await.unwrap();
            }
            "/v1/completions/zipped" => {
                let response = json("content-encoding: gzip\r\n", r#"{"model":"alias-v2"}"#);
                stream.write_all(response.as_bytes()).await.unwrap();
            }
            _ => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
                let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
                let first = chunk("data: {\"model\":\"alias-v2\"}\n\ndata: {\"model\" : \"ali");
                stream.write_all([head, &first].concat().as_bytes()).await.unwrap();
                first_event_seen.notified().await;
                let rest = chunk("as-v2\"}\n\ndata: [DONE]\n\n") + "0\r\n\r\n";
                stream.write_all(rest.as_bytes()).await.unwrap();
            }
        }
        stream.shutdown().await.unwrap();
    }
}

/// Reads a whole request, by its length or until the last chunk.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "incomplete request: {text}");
        text.push_str(str::from_utf8(&buffer[..read]).unwrap());
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let is_whole = match length {
            Some(length) => body.len() >= length.parse().unwrap(),
            None => body.ends_with("0\r\n\r\n"),
        };
        if is_whole {
            return text;
        }
    }
}

/// Sends a request to Envoy as soon as it listens.
async fn request_via_envoy(address: SocketAddr, path: &str, tasks: &mut JoinSet<()>) -> Response<Incoming> {
    let connected = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let stream = tokio::time::timeout(TIMEOUT, connected).await.expect("Envoy listens");
    let (mut sender, connection) = http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    tasks.spawn(async move { connection.await.unwrap() });
    let body = Full::new(Bytes::from_static(br#"{"prompt":"x","model":"alias"}"#));
    let request = Request::post(path).header("host", "models").header("content-type", "application/json").body(body);
    let response =
        tokio::time::timeout(TIMEOUT, sender.send_request(request.unwrap())).await.expect("a response").unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response
}

async fn read_body(response: Response<Incoming>) -> String {
    let body =
        tokio::time::timeout(TIMEOUT, response.collect()).await.expect("a complete response").unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Envoy's configuration, with one listener for each of [`MODES`].
fn envoy_config(ports: &[SocketAddr], processor: SocketAddr, upstream: SocketAddr) -> Value {
    let listeners = MODES.into_iter().zip(ports).map(|(mode, address)| listener(mode, *address));
    let mut processor_cluster = cluster("rollora", processor);
    processor_cluster["typed_extension_protocol_options"] = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } });
    let clusters = [processor_cluster, cluster("vllm", upstream)];
    json!({ "static_resources": { "listeners": listeners.collect::<Value>(), "clusters": clusters } })
}

fn listener(mode: &str, address: SocketAddr) -> Value {
    let trailers = if mode == "FULL_DUPLEX_STREAMED" { "SEND" } else { "SKIP" };
    let filter = json!({
        "name": "envoy.filters.http.ext_proc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": { "envoy_grpc": { "cluster_name": "rollora" } },
            "message_timeout": "10s",
            "processing_mode": {
                "request_header_mode": "SEND", "request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND",
                "response_header_mode": "SEND", "response_body_mode": mode, "response_trailer_mode": trailers,
            },
        },
    });
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    });
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "vllm", "timeout": "0s" } });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "test",
        "route_config": { "virtual_hosts": [{ "name": "models", "domains": ["*"], "routes": [route] }] },
        "http_filters": [filter, router],
    });
    let chain = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    json!({ "name": mode, "address": socket(address), "filter_chains": [{ "filters": [chain] }] })
}

fn cluster(name: &str, address: SocketAddr) -> Value {
    let endpoint = json!({ "endpoint": { "address": socket(address) } });
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}
