//! A turnstile in front of the API server, for one Deployment's programs: whatever they ask goes through it, and every
//! write is counted. So a scenario does something exactly after the n-th write: the API server has it, and whoever wrote
//! has not been told. Or it holds a write on its way, and lets it through when the world has moved on.
//!
//! It speaks plain HTTP on loopback and shows the Deployment's own service account to the API server: what the programs
//! may do is what the shipped roles say. Renewals of Leases pass without being counted, because how many there are is a
//! matter of time alone.

use super::{
    control_plane::{self, ControlPlane, Credential},
    manifests::{Manifests, push},
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
const ACCOUNT: &str = "rollora-operator";
/// How long the service account's token lives: longer than a scenario.
const TOKEN: Duration = Duration::from_hours(2);
/// What belongs to one connection and not to what is carried over it.
const HOP_BY_HOP: [HeaderName; 4] =
    [header::CONNECTION, header::TRANSFER_ENCODING, header::HOST, header::AUTHORIZATION];

type Answer = Response<UnsyncBoxBody<Bytes, kube::Error>>;

/// Stands in front of the API server until it is dropped.
pub struct Turnstile {
    way: Arc<Way>,
    address: SocketAddr,
    folder: TempDir,
    _serving: JoinSet<()>,
}

/// One write that the API server took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// `PUT` and its like.
    pub method: String,
    /// What was written, without the query.
    pub path: String,
}

/// What a scenario does when its write has come through.
type Deed = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Book {
    writes: Vec<Write>,
    /// After so many writes of the book.
    deed: Option<(usize, Deed)>,
    /// The next write whose path has this in it is held.
    hold: Option<String>,
}

struct Way {
    admin: Client,
    /// A kubeconfig that names the file of the token.
    kubeconfig: String,
    token: PathBuf,
    /// The namespace whose account is shown.
    namespace: OnceCell<String>,
    client: OnceCell<Client>,
    /// What is on its way, whether or not anybody still waits for the answer.
    passing: Mutex<JoinSet<()>>,
    book: Mutex<Book>,
    /// Whether a write is held at present.
    held: watch::Sender<Option<Write>>,
    /// How the API server answered the last write that was held.
    held_was_answered: watch::Sender<Option<StatusCode>>,
}

impl fmt::Debug for Turnstile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Turnstile({}, {} writes)", self.address, self.way.book().writes.len())
    }
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: Vec<_> = self.path.split('/').skip_while(|part| *part != "namespaces").skip(2).collect();
        write!(f, "{} {}", self.method, what.join("/"))
    }
}

impl Turnstile {
    /// One in front of this API server.
    pub async fn before(plane: &ControlPlane) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, folder) = (listener.local_addr()?, tempfile::tempdir()?);
        let token = folder.path().join("token");
        let way = Arc::new(Way {
            admin: plane.admin().await?,
            kubeconfig: plane.kubeconfig_for(&Credential::TokenFile(token.clone()), "default"),
            token,
            namespace: OnceCell::new(),
            client: OnceCell::new(),
            passing: Mutex::default(),
            book: Mutex::default(),
            held: watch::Sender::new(None),
            held_was_answered: watch::Sender::new(None),
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
        Ok(Self { way, address, folder, _serving: serving })
    }

    /// Sends the programs of a Deployment through it; all such have one service account.
    pub fn lead(&self, objects: &mut Manifests, deployment: &str) -> Result<()> {
        let object = objects.object_mut("Deployment", deployment)?;
        let namespace = object["metadata"]["namespace"].as_str().context("a Deployment without namespace")?;
        // A second Deployment of the same namespace changes nothing.
        self.way.namespace.set(namespace.to_owned()).ok();
        let file = self.folder.path().join("kubeconfig");
        let variable = json!({ "name": "KUBECONFIG", "value": file });
        push(&mut object["spec"]["template"]["spec"]["containers"][0]["env"], variable)
    }

    /// The writes since the last [`Self::forget`].
    pub fn writes(&self) -> Vec<Write> {
        self.way.book().writes.clone()
    }

    /// Begins to count anew.
    pub fn forget(&self) {
        self.way.book().writes.clear();
    }

    /// Does this as soon as the API server has taken the `count`-th write from now on, before anybody is told.
    pub fn after_write(&self, count: usize, deed: impl FnOnce() + Send + 'static) {
        let mut book = self.way.book();
        book.writes.clear();
        book.deed = Some((count, Box::new(deed)));
    }

    /// Whether the deed was done; it is taken back where it was not.
    pub fn was_reached(&self) -> bool {
        self.way.book().deed.take().is_none()
    }

    /// The next write whose path has this in it is held, as if it were long on its way.
    pub fn hold_next(&self, path: &str) {
        self.way.held_was_answered.send_replace(None);
        self.way.book().hold = Some(path.to_owned());
    }

    /// Waits until a write is held.
    pub async fn holds(&self) -> Result<Write> {
        let mut held = self.way.held.subscribe();
        let write = held.wait_for(Option::is_some).await?.clone();
        write.context("no write")
    }

    /// Lets the write through, and says how the API server answered it.
    pub async fn let_through(&self) -> Result<StatusCode> {
        self.way.held.send_replace(None);
        let mut answered = self.way.held_was_answered.subscribe();
        let status = *answered.wait_for(Option::is_some).await?;
        status.context("no answer")
    }
}

async fn serve(listener: TcpListener, way: Arc<Way>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let way = Arc::clone(&way);
                connections.spawn(async move {
                    let service = service_fn(move |request| pass(Arc::clone(&way), request));
                    // Whoever was killed does not read its answer.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What was asked goes on even if whoever asked dies: it is on its way.
async fn pass(way: Arc<Way>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (tell, told) = oneshot::channel();
    {
        let mut passing = way.passing.lock().unwrap_or_else(PoisonError::into_inner);
        while passing.try_join_next().is_some() {}
        let way = Arc::clone(&way);
        passing.spawn(async move {
            let answer = way.pass(request).await;
            // Nobody listens any more where the one who asked was killed.
            tell.send(answer).ok();
        });
    }
    Ok(match told.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => unreachable_server(&format!("{error:#}")),
        Err(_) => unreachable_server("the bed ends"),
    })
}

/// What a load balancer says of an API server that is away.
fn unreachable_server(words: &str) -> Answer {
    let body = Full::new(Bytes::from(words.to_owned())).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::BAD_GATEWAY;
    answer
}

impl Way {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self) -> Result<&Client> {
        let make = async || {
            let namespace = self.namespace.get().context("nobody was led here")?;
            let token = control_plane::token(&self.admin, namespace, ACCOUNT, TOKEN).await?;
            std::fs::write(&self.token, token)?;
            let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig)?;
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            config.proxy_url = None;
            config.default_retry = false;
            anyhow::Ok(Client::try_from(config)?)
        };
        self.client.get_or_try_init(make).await
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<Answer> {
        let (mut head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes().to_vec();
        remove_hop_by_hop(&mut head.headers);
        let path = head.uri.path().to_owned();
        let is_write = head.method != Method::GET && !path.contains("/leases");
        let write = Write { method: head.method.to_string(), path };
        let was_held = is_write && self.wait_for_turn(&write).await;
        let answer = self.client().await?.send(Request::from_parts(head, Body::from(body))).await;
        if was_held {
            let status = answer.as_ref().map_or(StatusCode::BAD_GATEWAY, Response::status);
            self.held_was_answered.send_replace(Some(status));
        }
        let (mut head, body) = answer?.into_parts();
        if is_write && head.status.is_success() {
            self.count(write);
        }
        remove_hop_by_hop(&mut head.headers);
        Ok(Response::from_parts(head, body.boxed_unsync()))
    }

    /// Holds a write where a scenario wants that. Whether it did.
    async fn wait_for_turn(&self, write: &Write) -> bool {
        let is_meant = self.book().hold.take_if(|words| write.path.contains(words.as_str())).is_some();
        if is_meant {
            let mut held = self.held.subscribe();
            self.held.send_replace(Some(write.clone()));
            // An error means that the bed ends.
            drop(held.wait_for(Option::is_none).await);
        }
        is_meant
    }

    fn count(&self, write: Write) {
        let mut book = self.book();
        book.writes.push(write);
        let count = book.writes.len();
        if let Some((_, deed)) = book.deed.take_if(|(after, _)| *after <= count) {
            deed();
        }
    }
}

fn remove_hop_by_hop(headers: &mut http::HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
