//! An Envoy, the ext_proc server, and a model server, each on a port of 127.0.0.1.

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

/// Configuration of Envoy's filters and of the server.
#[derive(Debug, Clone)]
pub(crate) struct EnvoyConfig {
    /// Envoy's `request_body_mode` of the rewriting filter.
    pub(crate) request_body_mode: &'static str,
    pub(crate) rewrite_options: RewriteOptions,
    /// Adds a filter in observability mode before the rewriting filter.
    pub(crate) observability_filter: bool,
    pub(crate) tls: bool,
    pub(crate) rewrites: Vec<InferenceModelRewrite>,
    /// Sends responses to the server, which restores the client's model name.
    pub(crate) restore_model_name: bool,
    /// How long the server accepts new requests after a shutdown was requested.
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
    /// The server; dropping the set ends it with all of its connections.
    server: JoinSet<io::Result<()>>,
    stop: CancellationToken,
    grpc: SocketAddr,
    model_server: SocketAddr,
    metrics: SocketAddr,
    stalled: watch::Sender<bool>,
    _tasks: JoinSet<()>,
    folder: TempDir,
}

/// An Envoy that routes to the model server and calls the ext_proc server.
pub(crate) struct EnvoyGateway {
    envoy: ChildProcess,
    listener: ReservedPort,
    admin: ReservedPort,
}

/// Returns whether Envoy is available; prints that `what` is skipped if not.
pub(crate) fn has_envoy(what: &str) -> bool {
    tools::all_available(&[ENVOY], what)
}

/// Returns a rewrite of one model, or of every model, to a target.
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
    let active_rules =
        ActiveRules::new(PoolRef { name: "pool".to_owned(), ..PoolRef::default() }, &[RewriteGroup::Current]);
    active_rules.reset(rewrites);
    Arc::new(active_rules)
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn cluster_config(name: &str, to: SocketAddr, overrides: &Value) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "circuit_breakers": { "thresholds": [
            { "max_connections": 10000, "max_requests": 10000, "max_pending_requests": 10000 },
        ] },
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [
            { "endpoint": { "address": socket_address(to) } },
        ] }] },
    });
    for (name, value) in overrides.as_object().into_iter().flatten() {
        cluster[name] = value.clone();
    }
    cluster
}

fn filter_config(name: &str, overrides: &Value) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor",
        "grpc_service": { "envoy_grpc": { "cluster_name": "ext-proc" } },
        "message_timeout": "5s",
    });
    for (name, value) in overrides.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    json!({ "name": name, "typed_config": config })
}

impl EnvoyFixture {
    pub(crate) async fn start(envoy_config: EnvoyConfig) -> Self {
        static CRYPTO: Once = Once::new();
        CRYPTO.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let mut tasks = JoinSet::new();
        let models = model_server::start(&mut tasks).await;
        let mut server = ExtProcServer::new(
            active_rules(&envoy_config.rewrites),
            ServerSettings {
                rewrite: envoy_config.rewrite_options.clone(),
                drain_delay: envoy_config.drain_delay,
                max_body: 100_000,
                ..ServerSettings::default()
            },
        );
        let folder = tempfile::tempdir().unwrap();
        if envoy_config.tls {
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
        let gateway = EnvoyGateway::start("envoy", &envoy_config, "one", [models, grpc], folder.path()).await;
        Self {
            config: envoy_config,
            gateway,
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

    /// Starts a second Envoy, which trusts this certificate only.
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

    /// Replaces the server's certificate file.
    pub(crate) fn renew_certificate(&self, certificate: &str) {
        set_certificate(self.folder.path(), certificate);
    }

    /// Asks the server to shut down; does not wait for it.
    pub(crate) fn request_shutdown(&self) {
        self.stop.cancel();
    }

    /// Waits until the server has shut down.
    pub(crate) async fn wait_for_shutdown(&mut self) {
        self.server.join_next().await.unwrap().unwrap().unwrap();
    }

    pub(crate) fn gateway_address(&self) -> SocketAddr {
        self.gateway.address()
    }

    /// Sends one request on a connection of its own.
    pub(crate) async fn fetch(&self, version: HttpVersion, request: Request<RequestBody>) -> ClientResponse {
        GatewayClient::connect(self.gateway_address(), version).await.fetch(request).await
    }

    /// Reads a page of Envoy's admin interface.
    pub(crate) async fn get_admin(&self, path: &str) -> String {
        self.gateway.get_admin(path).await
    }

    /// Returns the sum of one of Envoy's statistics over all of its filters.
    pub(crate) async fn sum_stats(&self, name: &str) -> u64 {
        let stats = self.get_admin(&format!("/stats?filter={name}")).await;
        let values = stats.lines().filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok());
        values.sum()
    }

    /// Reads the server's metrics.
    pub(crate) async fn get_metrics(&self) -> String {
        get_text(self.metrics, "/metrics").await
    }

    /// Ends the server without a drain, as if it had been killed.
    pub(crate) async fn kill_server(&mut self) {
        self.server.shutdown().await;
    }

    /// Holds back everything that Envoy sends to the server, or lets it through again.
    pub(crate) fn set_stalled(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

impl EnvoyGateway {
    async fn start(
        name: &str,
        envoy_config: &EnvoyConfig,
        trusted_certificate: &str,
        [models, grpc]: [SocketAddr; 2],
        folder: &Path,
    ) -> Self {
        let (listener, admin) = (ReservedPort::reserve().unwrap(), ReservedPort::reserve().unwrap());
        let config =
            envoy_bootstrap(envoy_config, trusted_certificate, [listener.address(), admin.address(), models, grpc]);
        let file = folder.join(format!("{name}.json"));
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(ENVOY.program("envoy").unwrap());
        command.arg("-c").arg(&file).args(["--concurrency", "1", "--log-level", "warning", "--disable-hot-restart"]);
        let gateway = Self { envoy: ChildProcess::start(name, command, folder).unwrap(), listener, admin };
        gateway.wait_until_ready().await;
        gateway
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

/// Copies a certificate and its key to the paths that the server reads.
fn set_certificate(folder: &Path, name: &str) {
    for kind in ["key", "crt"] {
        fs::copy(testdata_path(&format!("{name}.{kind}")), folder.join(format!("tls.{kind}"))).unwrap();
    }
}

async fn get_text(from: SocketAddr, path: &str) -> String {
    let answer = GatewayClient::connect(from, HttpVersion::Http1).await.fetch(crate::clients::get(path)).await;
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// Forwards both directions of every connection; the direction to the server stops while stalled.
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
                let forward = async {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(length @ 1..) = near_read.read(&mut buffer).await {
                        if stalled.wait_for(|stalled| !stalled).await.is_err()
                            || far_write.write_all(&buffer[..length]).await.is_err()
                        {
                            break;
                        }
                    }
                };
                let backward = async { drop(tokio::io::copy(&mut far_read, &mut near_write).await) };
                // The connection ends when either side closes it.
                tokio::select! { () = forward => {}, () = backward => {} }
            });
        }
    });
    address
}

fn envoy_bootstrap(
    envoy_config: &EnvoyConfig,
    trusted_certificate: &str,
    [listener, admin, models, grpc]: [SocketAddr; 4],
) -> Value {
    let duplex = envoy_config.request_body_mode == "FULL_DUPLEX_STREAMED";
    let mut filters = vec![filter_config(
        "rewriting",
        &json!({ "processing_mode": {
            "request_header_mode": "SEND", "request_body_mode": envoy_config.request_body_mode,
            "request_trailer_mode": if duplex { "SEND" } else { "SKIP" },
            "response_header_mode": "SEND",
            "response_body_mode": if envoy_config.restore_model_name { "FULL_DUPLEX_STREAMED" } else { "NONE" },
            "response_trailer_mode": if envoy_config.restore_model_name { "SEND" } else { "SKIP" },
        } }),
    )];
    if envoy_config.observability_filter {
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
    if envoy_config.tls {
        ext_proc["transport_socket"] = json!({ "name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "validation_context": { "trusted_ca": { "filename": testdata_path(&format!("{trusted_certificate}.crt")) } },
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
