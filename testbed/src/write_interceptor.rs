//! A turnstile in front of the API server, for one Deployment's programs: whatever they ask goes through it, and every
//! write is counted. So a scenario does something exactly after the n-th write: the API server has it, and whoever wrote
//! has not been told. Or it holds a write on its way, and lets it through when the world has moved on.
//!
//! It speaks plain HTTP on loopback and shows the Deployment's own service account to the API server: what the programs
//! may do is what the shipped roles say. Renewals of Leases pass without being counted, because how many there are is a
//! matter of time alone.

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

/// The service account of those who are led through it.
const SERVICE_ACCOUNT: &str = "rollora-operator";
/// How long the service account's token lives: longer than a scenario.
const TOKEN_LIFETIME: Duration = Duration::from_hours(2);
/// What belongs to one connection and not to what is carried over it.
const HOP_BY_HOP: [HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::HOST, header::AUTHORIZATION];

type ProxyResponse = Response<UnsyncBoxBody<Bytes, kube::Error>>;

/// Stands in front of the API server until it is dropped.
pub struct WriteInterceptor {
    proxy: Arc<InterceptingProxy>,
    address: SocketAddr,
    folder: TempDir,
    _serving: JoinSet<()>,
}

/// One write that the API server took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterceptedWrite {
    /// `PUT` and its like.
    pub method: String,
    /// What was written, without the query.
    pub path: String,
}

/// What a scenario does when its write has come through.
type WriteHook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct WriteLog {
    writes: Vec<InterceptedWrite>,
    /// After so many writes of the book.
    hook: Option<(usize, WriteHook)>,
    /// The next write whose path has this in it is held.
    hold_path: Option<String>,
}

struct InterceptingProxy {
    admin: Client,
    /// A kubeconfig that names the file of the token.
    kubeconfig: String,
    token_file: PathBuf,
    /// The namespace whose account is shown.
    namespace: OnceCell<String>,
    client: OnceCell<Client>,
    /// What is on its way, whether or not anybody still waits for the answer.
    in_flight: Mutex<JoinSet<()>>,
    log: Mutex<WriteLog>,
    /// Whether a write is held at present.
    held_write: watch::Sender<Option<InterceptedWrite>>,
    /// How the API server answered the last write that was held.
    held_response: watch::Sender<Option<StatusCode>>,
}

impl fmt::Debug for WriteInterceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turnstile({}, {} writes)", self.address, self.proxy.log().writes.len())
    }
}

impl fmt::Display for InterceptedWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: Vec<_> = self.path.split('/').skip_while(|part| *part != "namespaces").skip(2).collect();
        write!(f, "{} {}", self.method, what.join("/"))
    }
}

impl WriteInterceptor {
    /// One in front of this API server.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, folder) = (listener.local_addr()?, tempfile::tempdir()?);
        let token = folder.path().join("token");
        let way = Arc::new(InterceptingProxy {
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
            "clusters": [{ "name": "bed", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "pod", "user": {} }],
            "contexts": [{ "name": "pod", "context": { "cluster": "bed", "user": "pod" } }],
            "current-context": "pod",
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string())?;
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&way)));
        Ok(Self { proxy: way, address, folder, _serving: serving })
    }

    /// Sends the programs of a Deployment through it; all such have one service account.
    pub fn route_through(&self, objects: &mut Manifests, deployment: &str) -> Result<()> {
        let object = objects.object_mut("Deployment", deployment)?;
        let namespace = object["metadata"]["namespace"].as_str().context("a Deployment without namespace")?;
        // A second Deployment of the same namespace changes nothing.
        self.proxy.namespace.set(namespace.to_owned()).ok();
        let file = self.folder.path().join("kubeconfig");
        let variable = json!({ "name": "KUBECONFIG", "value": file });
        push_value(&mut object["spec"]["template"]["spec"]["containers"][0]["env"], variable)
    }

    /// The writes since the last [`Self::forget`].
    pub fn writes(&self) -> Vec<InterceptedWrite> {
        self.proxy.log().writes.clone()
    }

    /// Begins to count anew.
    pub fn clear_writes(&self) {
        self.proxy.log().writes.clear();
    }

    /// Does this as soon as the API server has taken the `count`-th write from now on, before anybody is told.
    pub fn after_write(&self, count: usize, deed: impl FnOnce() + Send + 'static) {
        let mut book = self.proxy.log();
        book.writes.clear();
        book.hook = Some((count, Box::new(deed)));
    }

    /// Whether the deed was done; it is taken back where it was not.
    pub fn hook_has_run(&self) -> bool {
        self.proxy.log().hook.take().is_none()
    }

    /// The next write whose path has this in it is held, as if it were long on its way.
    pub fn hold_next_write(&self, path: &str) {
        self.proxy.held_response.send_replace(None);
        self.proxy.log().hold_path = Some(path.to_owned());
    }

    /// Waits until a write is held.
    pub async fn wait_held(&self) -> Result<InterceptedWrite> {
        let mut held = self.proxy.held_write.subscribe();
        let write = held.wait_for(Option::is_some).await?.clone();
        write.context("no write")
    }

    /// Lets the write through, and says how the API server answered it.
    pub async fn release_held(&self) -> Result<StatusCode> {
        self.proxy.held_write.send_replace(None);
        let mut answered = self.proxy.held_response.subscribe();
        let status = *answered.wait_for(Option::is_some).await?;
        status.context("no answer")
    }
}

async fn serve(listener: TcpListener, way: Arc<InterceptingProxy>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let way = Arc::clone(&way);
                connections.spawn(async move {
                    let service = service_fn(move |request| proxy(Arc::clone(&way), request));
                    // Whoever was killed does not read its answer.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What was asked goes on even if whoever asked dies: it is on its way.
async fn proxy(way: Arc<InterceptingProxy>, request: Request<Incoming>) -> Result<ProxyResponse, Infallible> {
    let (tell, told) = oneshot::channel();
    {
        let mut passing = way.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        while passing.try_join_next().is_some() {}
        let way = Arc::clone(&way);
        passing.spawn(async move {
            let answer = way.forward(request).await;
            // Nobody listens any more where the one who asked was killed.
            tell.send(answer).ok();
        });
    }
    Ok(match told.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => bad_gateway(&format!("{error:#}")),
        Err(_) => bad_gateway("the bed ends"),
    })
}

/// What a load balancer says of an API server that is away.
fn bad_gateway(words: &str) -> ProxyResponse {
    let body = Full::new(Bytes::from(words.to_owned())).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer
}

impl InterceptingProxy {
    fn log(&self) -> MutexGuard<'_, WriteLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<&Client> {
        let make = async || {
            let namespace = self.namespace.get().context("nobody was led here")?;
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
        let answer = self.client().await?.send(Request::from_parts(head, Body::from(body))).await;
        if was_held {
            let status = answer.as_ref().map_or(StatusCode::BAD_GATEWAY, Response::status);
            self.held_response.send_replace(Some(status));
        }
        let (mut head, body) = answer?.into_parts();
        if is_write && head.status.is_success() {
            self.record_write(write);
        }
        remove_hop_by_hop(&mut head.headers);
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    /// Holds a write where a scenario wants that. Whether it did.
    async fn hold_if_matching(&self, write: &InterceptedWrite) -> bool {
        let is_meant = self.log().hold_path.take_if(|words| write.path.contains(words.as_str())).is_some();
        if is_meant {
            let mut held = self.held_write.subscribe();
            self.held_write.send_replace(Some(write.clone()));
            // An error means that the bed ends.
            drop(held.wait_for(Option::is_none).await);
        }
        is_meant
    }

    fn record_write(&self, write: InterceptedWrite) {
        let mut book = self.log();
        book.writes.push(write);
        let count = book.writes.len();
        if let Some((_, deed)) = book.hook.take_if(|(after, _)| *after <= count) {
            deed();
        }
    }
}

fn remove_hop_by_hop(headers: &mut http::HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
