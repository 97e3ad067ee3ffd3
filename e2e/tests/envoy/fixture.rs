//! An Envoy, the server, and a model server, each on a port of 127.0.0.1.

use crate::{
    clients::{ClientResponse, GatewayClient, HttpVersion, RequestBody},
    model_server,
};
use http::Request;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef, RewriteGroup};
use rollora_ext_proc::{CertificateFiles, ExtProcServer, Listeners, RewriteOptions, ServerSettings};
use rollora_router::active_rules::ActiveRules;
use rollora_testbed::{
    ports::ReservedPort,
    process::ChildProcess,
    tools::{self, ENVOY},
};
use serde_json::{Value, json};
use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Once},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// How the filter and the server are set up.
#[derive(Debug, Clone)]
pub(crate) struct EnvoyConfig {
    /// `request_body_mode`.
    pub(crate) request_body_mode: &'static str,
    pub(crate) rewrite_options: RewriteOptions,
    /// With a filter in observability mode before it.
    pub(crate) observability_filter: bool,
    pub(crate) tls: bool,
    pub(crate) rewrites: Vec<InferenceModelRewrite>,
    /// Answers are shown to the server, which puts the client's name back.
    pub(crate) restore_model_name: bool,
    /// How long new requests are served when the server is to end.
    pub(crate) drain_delay: Duration,
}

impl Default for EnvoyConfig {
    fn default() -> Self {
        Self {
            request_body_mode: "FULL_DUPLEX_STREAMED",
            rewrite_options: RewriteOptions::default(),
            observability_filter: false,
            tls: false,
            rewrites: vec![rewrite("r", Some("alias"), "alias-v2")],
            restore_model_name: false,
            drain_delay: Duration::ZERO,
        }
    }
}

pub(crate) struct EnvoyFixture {
    config: EnvoyConfig,
    gateway: EnvoyGateway,
    /// The server; it is gone, with all of its connections, when the set is dropped.
    server: JoinSet<io::Result<()>>,
    stop: CancellationToken,
    grpc: SocketAddr,
    model_server: SocketAddr,
    metrics: SocketAddr,
    stalled: watch::Sender<bool>,
    _tasks: JoinSet<()>,
    folder: TempDir,
}

/// An Envoy that listens and asks the server.
pub(crate) struct EnvoyGateway {
    envoy: ChildProcess,
    listener: ReservedPort,
    admin: ReservedPort,
}

/// Whether there is an Envoy; says what is skipped otherwise.
pub(crate) fn has_envoy(what: &str) -> bool {
    tools::all_available(&[ENVOY], what)
}

/// A rewrite that sends a model, or every one, to a target.
pub(crate) fn rewrite(name: &str, model: Option<&str>, target: &str) -> InferenceModelRewrite {
    let matches: Vec<_> = model.into_iter().map(|model| json!({ "model": { "value": model } })).collect();
    serde_json::from_value(json!({
        "apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceModelRewrite",
        "metadata": { "name": name, "namespace": "ns", "uid": name },
        "spec": { "poolRef": { "name": "pool" }, "rules": [{
            "matches": matches, "targets": [{ "modelRewrite": target }],
        }] },
    }))
    .unwrap()
}

fn active_rules(rewrites: &[InferenceModelRewrite]) -> Arc<ActiveRules> {
    let in_force =
        ActiveRules::new(PoolRef { name: "pool".to_owned(), ..PoolRef::default() }, &[RewriteGroup::Current]);
    in_force.reset(rewrites);
    Arc::new(in_force)
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn cluster_config(name: &str, to: SocketAddr, more: &Value) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "circuit_breakers": { "thresholds": [
            { "max_connections": 10000, "max_requests": 10000, "max_pending_requests": 10000 },
        ] },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": socket_address(to) } },
        ] }] },
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        cluster[name] = value.clone();
    }
    cluster
}

fn filter_config(name: &str, more: &Value) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": { "envoy_grpc": { "cluster_name": "ext-proc" } },
        "message_timeout": "5s",
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!({ "name": name, "typed_config": config })
}

impl EnvoyFixture {
    pub(crate) async fn start(plan: EnvoyConfig) -> Self {
        static CRYPTO: Once = Once::new();
        CRYPTO.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let mut tasks = JoinSet::new();
        let models = model_server::start(&mut tasks).await;
        let mut server = ExtProcServer::new(
            active_rules(&plan.rewrites),
            ServerSettings {
                rewrite: plan.rewrite_options.clone(),
                drain_delay: plan.drain_delay,
                max_body: 100_000,
                ..ServerSettings::default()
            },
        );
        let folder = tempfile::tempdir().unwrap();
        if plan.tls {
            let file = |name: &str| folder.path().join(name);
            set_certificate(folder.path(), "one");
            server.enable_tls(CertificateFiles { certificate: file("tls.crt"), key: file("tls.key") }).unwrap();
        }
        server.readiness().set_serving();
        let listen = || TcpListener::bind("127.0.0.1:0");
        let listeners = Listeners {
            grpc: listen().await.unwrap(),
            health: listen().await.unwrap(),
            metrics: listen().await.unwrap(),
        };
        let [grpc, metrics] = [&listeners.grpc, &listeners.metrics].map(|listener| listener.local_addr().unwrap());
        let (stalled, _) = watch::channel(false);
        let grpc = start_proxy(grpc, &stalled, &mut tasks).await;
        let mut running = JoinSet::new();
        let stop = CancellationToken::new();
        running.spawn(server.serve(listeners, stop.clone()));
        let gate = EnvoyGateway::start("envoy", &plan, "one", [models, grpc], folder.path()).await;
        Self {
            config: plan,
            gateway: gate,
            server: running,
            stop,
            grpc,
            model_server: models,
            metrics,
            stalled,
            _tasks: tasks,
            folder,
        }
    }

    /// A second Envoy, which trusts nobody but this certificate.
    pub(crate) async fn start_gateway_trusting(&self, certificate: &str) -> EnvoyGateway {
        EnvoyGateway::start(
            "second-envoy",
            &self.config,
            certificate,
            [self.model_server, self.grpc],
            self.folder.path(),
        )
        .await
    }

    /// The server's certificate is another one now.
    pub(crate) fn renew_certificate(&self, certificate: &str) {
        set_certificate(self.folder.path(), certificate);
    }

    /// The server is asked to end.
    pub(crate) fn request_shutdown(&self) {
        self.stop.cancel();
    }

    /// The server ends by itself.
    pub(crate) async fn wait_for_shutdown(&mut self) {
        self.server.join_next().await.unwrap().unwrap().unwrap();
    }

    pub(crate) fn gateway_address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// One request on a connection of its own.
    pub(crate) async fn fetch(&self, version: HttpVersion, request: Request<RequestBody>) -> ClientResponse {
        GatewayClient::connect(self.gateway_address(), version).await.fetch(request).await
    }

    /// What Envoy says about itself.
    pub(crate) async fn get_admin(&self, path: &str) -> String {
        self.gateway.get_admin(path).await
    }

    /// One of Envoy's figures, over all of its filters.
    pub(crate) async fn sum_stats(&self, name: &str) -> u64 {
        let stats = self.get_admin(&format!("/stats?filter={name}")).await;
        let values = stats.lines().filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok());
        values.sum()
    }

    /// What the server has counted.
    pub(crate) async fn get_metrics(&self) -> String {
        get_text(self.metrics, "/metrics").await
    }

    /// The server is gone, as if it had been killed.
    pub(crate) async fn kill_server(&mut self) {
        self.server.shutdown().await;
    }

    /// Nothing of what Envoy says reaches the server, or everything does.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

impl EnvoyGateway {
    async fn start(
        name: &str,
        plan: &EnvoyConfig,
        trusted: &str,
        [models, grpc]: [SocketAddr; 2],
        folder: &Path,
    ) -> Self {
        let (listener, admin) = (ReservedPort::reserve().unwrap(), ReservedPort::reserve().unwrap());
        let config = envoy_bootstrap(plan, trusted, [listener.address(), admin.address(), models, grpc]);
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(ENVOY.program("envoy").unwrap());
        command.arg("-c").arg(&file).args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
        let gate = Self { envoy: ChildProcess::start(name, command, folder).unwrap(), listener, admin };
        gate.wait_until_ready().await;
        gate
    }

    async fn wait_until_ready(&self) {
        loop {
            assert!(self.envoy.exit_reason().is_none(), "{}", self.envoy.log());
            if TcpStream::connect(self.admin.address()).await.is_ok()
                && TcpStream::connect(self.listener.address()).await.is_ok()
                && self.get_admin("/ready").await.starts_with("LIVE")
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    async fn get_admin(&self, path: &str) -> String {
        get_text(self.admin.address(), path).await
    }
}

fn testdata_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates/ext-proc/testdata").join(name)
}

/// Puts a certificate and its key where the server looks for them.
fn set_certificate(folder: &Path, name: &str) {
    for kind in ["key", "crt"] {
        fs::copy(testdata_path(&format!("{name}.{kind}")), folder.join(format!("tls.{kind}"))).unwrap();
    }
}

async fn get_text(from: SocketAddr, path: &str) -> String {
    let answer = GatewayClient::connect(from, HttpVersion::Http1).await.fetch(crate::clients::get(path)).await;
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// Passes on what comes, both ways, unless it is stalled.
async fn start_proxy(to: SocketAddr, stalled: &watch::Sender<bool>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stalled = stalled.clone();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            let mut stalled = stalled.subscribe();
            connections.spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                drop((near.set_nodelay(true), far.set_nodelay(true)));
                let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
                    (near.into_split(), far.into_split());
                let there = async {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(length @ 1..) = near_read.read(&mut buffer).await {
                        if stalled.wait_for(|stalled| !stalled).await.is_err()
                            || far_write.write_all(&buffer[..length]).await.is_err()
                        {
                            break;
                        }
                    }
                };
                let back = async { drop(tokio::io::copy(&mut far_read, &mut near_write).await) };
                // Whoever ends it, it is over for both.
                tokio::select! { () = there => {}, () = back => {} }
            });
        }
    });
    address
}

fn envoy_bootstrap(plan: &EnvoyConfig, trusted: &str, [listener, admin, models, grpc]: [SocketAddr; 4]) -> Value {
    let duplex = plan.request_body_mode == "FULL_DUPLEX_STREAMED";
    let mut filters = vec![filter_config(
        "rewriting",
        &json!({ "processing_mode": {
            "request_header_mode": "SEND", "request_body_mode": plan.request_body_mode,
            "request_trailer_mode": if duplex { "SEND" } else { "SKIP" },
            "response_header_mode": "SEND",
            "response_body_mode": if plan.restore_model_name { "FULL_DUPLEX_STREAMED" } else { "NONE" },
            "response_trailer_mode": if plan.restore_model_name { "SEND" } else { "SKIP" },
        } }),
    )];
    if plan.observability_filter {
        let observing = json!({
            "observability_mode": true, "failure_mode_allow": true,
            "processing_mode": {
                "request_header_mode": "SEND", "request_body_mode": "NONE", "request_trailer_mode": "SKIP",
                "response_header_mode": "SEND", "response_body_mode": "STREAMED", "response_trailer_mode": "SEND",
            },
        });
        filters.insert(0, filter_config("observing", &observing));
    }
    filters.push(json!({ "name": "router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
    } }));
    let route = |name: &str, matches: Value| {
        json!({
            "match": matches, "route": { "cluster": "models", "timeout": "0s" },
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": name } }],
        })
    };
    let by_model = json!({ "prefix": "/", "headers": [
        { "name": "x-gateway-model-name", "string_match": { "exact": "alias" } },
    ] });
    let mut ext_proc = json!({ "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {
                "max_concurrent_streams": 10000,
                "initial_stream_window_size": 65536, "initial_connection_window_size": 1_048_576,
            } },
        },
    } });
    if plan.tls {
        ext_proc["transport_socket"] = json!({ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "validation_context": { "trusted_ca": { "filename": testdata_path(&format!("{trusted}.crt")) } },
            },
        } });
    }
    json!({
        "admin": { "address": socket_address(admin) },
        "static_resources": {
            "listeners": [{ "name": "gateway", "address": socket_address(listener), "filter_chains": [{ "filters": [{
                "name": "http",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "gateway",
                    "http_protocol_options": { "enable_trailers": true },
                    "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                        route("by-model", by_model), route("by-default", json!({ "prefix": "/" })),
                    ] }] },
                    "http_filters": filters,
                },
            }] }] }],
            "clusters": [
                cluster_config("models", models, &json!({ "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http_protocol_options": { "enable_trailers": true } },
                    },
                } })),
                cluster_config("ext-proc", grpc, &ext_proc),
            ],
        },
    })
}
