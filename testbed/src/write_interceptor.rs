//! A proxy in front of the API server for the programs of one Deployment: it forwards all of their requests and counts
//! the writes. A scenario can run a hook exactly after the n-th write, when the API server has stored it but the client
//! has no response yet. It can also hold a write on its way, and let it through after the state has moved on.
//!
//! The proxy listens with plain HTTP on loopback and authenticates to the API server as the Deployment's service
//! account, so the programs have exactly the permissions of the shipped roles. Writes to Leases are forwarded but not
//! counted, because their number depends only on time.

use super::{
    control_plane::{self, ControlPlane, Credential},
    manifests::{Manifests, push_value},
};
use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;
use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{OnceCell, oneshot, watch},
    task::JoinSet,
};

/// Service account of the Deployments that are routed through the proxy.
const SERVICE_ACCOUNT: &str = "rollora-operator";
/// Lifetime of the service account's token: longer than any scenario.
const TOKEN_LIFETIME: Duration = Duration::from_hours(2);
/// Headers that belong to one connection and are not forwarded.
const HOP_BY_HOP: [HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::HOST, header::AUTHORIZATION];

type ProxyResponse = Response<UnsyncBoxBody<Bytes, kube::Error>>;

/// The proxy, which serves until it is dropped.
pub struct WriteInterceptor {
    proxy: Arc<InterceptingProxy>,
    address: SocketAddr,
    folder: TempDir,
    _serving: JoinSet<()>,
}

/// One write that the API server accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptedWrite {
    /// HTTP method, such as `PUT` or `PATCH`.
    pub method: String,
    /// Path of the request, without the query.
    pub path: String,
}

/// Runs when its write has been accepted.
type WriteHook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct WriteLog {
    writes: Vec<InterceptedWrite>,
    /// Runs when the log has this many writes.
    hook: Option<(usize, WriteHook)>,
    /// Holds the next write whose path contains this text.
    hold_path: Option<String>,
}

struct InterceptingProxy {
    admin: Client,
    /// A kubeconfig that refers to the token file.
    kubeconfig: String,
    token_file: PathBuf,
    /// Namespace of the service account.
    namespace: OnceCell<String>,
    client: OnceCell<Client>,
    /// Requests in flight, even those whose client has disconnected.
    in_flight: Mutex<JoinSet<()>>,
    log: Mutex<WriteLog>,
    /// The write that is held now.
    held_write: watch::Sender<Option<InterceptedWrite>>,
    /// Status of the API server's response to the write that was held last.
    held_response: watch::Sender<Option<StatusCode>>,
}

impl fmt::Debug for WriteInterceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteInterceptor({}, {} writes)", self.address, self.proxy.log().writes.len())
    }
}

impl fmt::Display for InterceptedWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: Vec<_> = self.path.split('/').skip_while(|part| *part != "namespaces").skip(2).collect();
        write!(f, "{} {}", self.method, what.join("/"))
    }
}

impl WriteInterceptor {
    /// Starts a proxy in front of this API server.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, folder) = (listener.local_addr()?, tempfile::tempdir()?);
        let token = folder.path().join("token");
        let proxy = Arc::new(InterceptingProxy {
            admin: plane.admin_client().await?,
            kubeconfig: plane.kubeconfig_for(&Credential::TokenFile(token.clone()), "default"),
            token_file: token,
            namespace: OnceCell::new(),
            client: OnceCell::new(),
            in_flight: Mutex::default(),
            log: Mutex::default(),
            held_write: watch::Sender::new(None),
            held_response: watch::Sender::new(None),
        });
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "testbed", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "pod", "user": {} }],
            "contexts": [{ "name": "pod", "context": { "cluster": "testbed", "user": "pod" } }],
            "current-context": "pod",
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string())?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&proxy)));
        Ok(Self { proxy, address, folder, _serving: serving })
    }

    /// Routes the programs of a Deployment through the proxy; all such Deployments must have the same service account.
    pub fn route_through(&self, objects: &mut Manifests, deployment: &str) -> Result<()> {
        let object = objects.object_mut("Deployment", deployment)?;
        let namespace = object["metadata"]["namespace"].as_str().context("the Deployment has no namespace")?;
        // For a second Deployment the namespace is set already; it is the same one.
        self.proxy.namespace.set(namespace.to_owned()).ok();
        let file = self.folder.path().join("kubeconfig");
        let variable = json!({ "name": "KUBECONFIG", "value": file });
        push_value(&mut object["spec"]["template"]["spec"]["containers"][0]["env"], variable)
    }

    /// Returns the writes since [`Self::clear_writes`] or [`Self::after_write`].
    pub fn writes(&self) -> Vec<InterceptedWrite> {
        self.proxy.log().writes.clone()
    }

    /// Clears the log of writes.
    pub fn clear_writes(&self) {
        self.proxy.log().writes.clear();
    }

    /// Runs `hook` as soon as the API server has accepted the `count`-th write from now on, before the client gets the
    /// response.
    pub fn after_write(&self, count: usize, hook: impl FnOnce() + Send + 'static) {
        let mut log = self.proxy.log();
        log.writes.clear();
        log.hook = Some((count, Box::new(hook)));
    }

    /// Returns whether the hook has run; otherwise removes it.
    pub fn hook_has_run(&self) -> bool {
        self.proxy.log().hook.take().is_none()
    }

    /// Holds the next write whose path contains `path`, as if the network delayed it.
    pub fn hold_next_write(&self, path: &str) {
        self.proxy.held_response.send_replace(None);
        self.proxy.log().hold_path = Some(path.to_owned());
    }

    /// Waits until a write is held, and returns it.
    pub async fn wait_held(&self) -> Result<InterceptedWrite> {
        let mut held = self.proxy.held_write.subscribe();
        let write = held.wait_for(Option::is_some).await?.clone();
        write.context("no write is held")
    }

    /// Lets the held write through, and returns the status of the API server's response.
    pub async fn release_held(&self) -> Result<StatusCode> {
        self.proxy.held_write.send_replace(None);
        let mut responses = self.proxy.held_response.subscribe();
        let status = *responses.wait_for(Option::is_some).await?;
        status.context("no response to the held write")
    }
}

async fn serve(listener: TcpListener, proxy: Arc<InterceptingProxy>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let proxy = Arc::clone(&proxy);
                connections.spawn(async move {
                        let service = service_fn(move |request| handle(Arc::clone(&proxy), request));
                    // A client that was killed does not read its response.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Forwards a request in a task of its own: like a request on the network, it continues if its client dies.
async fn handle(proxy: Arc<InterceptingProxy>, request: Request<Incoming>) -> Result<ProxyResponse, Infallible> {
    let (response_sender, response) = oneshot::channel();
    {
        let mut in_flight = proxy.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        while in_flight.try_join_next().is_some() {}
        let proxy = Arc::clone(&proxy);
        in_flight.spawn(async move {
            let response = proxy.forward(request).await;
            // The receiver is gone if the client was killed.
            response_sender.send(response).ok();
        });
    }
    Ok(match response.await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => bad_gateway(&format!("{error:#}")),
        Err(_) => bad_gateway("the testbed is shutting down"),
    })
}

/// The response of a load balancer whose API server is unavailable.
fn bad_gateway(message: &str) -> ProxyResponse {
    let body = Full::new(Bytes::from(message.to_owned())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}

impl InterceptingProxy {
    fn log(&self) -> MutexGuard<'_, WriteLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<&Client> {
        let make = async || {
            let namespace = self.namespace.get().context("no Deployment is routed through the write interceptor")?;
            let token = control_plane::request_token(&self.admin, namespace, SERVICE_ACCOUNT, TOKEN_LIFETIME).await?;
            std::fs::write(&self.token_file, token)?;
            let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig)?;
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            config.proxy_url = None;
            config.default_retry = false;
            anyhow::Ok(Client::try_from(config)?)
        };
        self.client.get_or_try_init(make).await
    }

    async fn forward(&self, request: Request<Incoming>) -> Result<ProxyResponse> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        remove_hop_by_hop(&mut head.headers);
        let path = head.uri.path().to_owned();
        let is_write = head.method != Method::GET && !path.contains("/leases");
        let write = InterceptedWrite { method: head.method.to_string(), path };
        let was_held = is_write && self.hold_if_matching(&write).await;
        let response = self.client().await?.send(Request::from_parts(head, Body::from(body))).await;
        if was_held {
            let status = response.as_ref().map_or(StatusCode::BAD_GATEWAY, Response::status);
            self.held_response.send_replace(Some(status));
        }
        let (mut head, body) = response?.into_parts();
        if is_write && head.status.is_success() {
            self.record_write(write);
        }
        remove_hop_by_hop(&mut head.headers);
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    /// Holds a write if a scenario asked for it. Returns whether it was held.
    async fn hold_if_matching(&self, write: &InterceptedWrite) -> bool {
        let is_matching = self.log().hold_path.take_if(|text| write.path.contains(text.as_str())).is_some();
        if is_matching {
            let mut held = self.held_write.subscribe();
            self.held_write.send_replace(Some(write.clone()));
            // An error means that the testbed ends.
            drop(held.wait_for(Option::is_none).await);
        }
        is_matching
    }

    fn record_write(&self, write: InterceptedWrite) {
        let mut log = self.log();
        log.writes.push(write);
        let count = log.writes.len();
        if let Some((_, hook)) = log.hook.take_if(|(after, _)| *after <= count) {
            hook();
        }
    }
}

fn remove_hop_by_hop(headers: &mut http::HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
