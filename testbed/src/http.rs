//! A small HTTP client for the bed's own questions and for the traffic: one connection at a time, nothing retried behind
//! the back, so that every error that a real client could see is seen.

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    client::conn::http1::{SendRequest, handshake},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

/// How long a question of the bed may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Where something listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// A loopback port.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<&Path> for ListenAddress {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An open connection; dropping it closes it.
#[derive(Debug)]
pub struct HttpConnection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl HttpConnection {
    /// Connects.
    pub async fn open(address: &ListenAddress) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Self::handshake_over(TokioIo::new(stream)).await
            }
            ListenAddress::Unix(path) => Self::handshake_over(TokioIo::new(UnixStream::connect(path).await?)).await,
        }
    }

    async fn handshake_over<T>(stream: T) -> io::Result<Self>
    where
        T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(stream).await.map_err(io::Error::other)?;
        let mut driver = JoinSet::new();
        // Its errors come back from the request that they belong to.
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { sender, _driver: driver })
    }

    /// Whether another request can be sent, as far as is known.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request, and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }
}

/// A request with a JSON body, or without any.
pub fn request(method: &str, path: &str, body: Option<&Value>) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body.map_or_else(Bytes::new, |body| body.to_string().into())));
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.uri_mut() = path.parse().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(HOST, hyper::header::HeaderValue::from_static("localhost"));
    if body.is_some() {
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    }
    request
}

/// Sends one request over a connection of its own.
pub async fn send_request(address: &ListenAddress, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
    let what = format!("{} {address}{}", request.method(), request.uri());
    let exchange = async {
        let mut connection = HttpConnection::open(address).await?;
        let answer = connection.send(request).await?;
        let status = answer.status();
        anyhow::Ok((status, answer.into_body().collect().await?.to_bytes()))
    };
    timeout(REQUEST_TIMEOUT, exchange)
        .await
        .with_context(|| format!("{what}: no answer in {REQUEST_TIMEOUT:?}"))?
        .context(what)
}

/// The JSON that stands at `path`; anything but a status 200 is an error.
pub async fn get_json<T: serde::de::DeserializeOwned>(address: &ListenAddress, path: &str) -> Result<T> {
    let (status, body) = send_request(address, request("GET", path, None)).await?;
    let shown = || format!("GET {address}{path}: {status} {}", String::from_utf8_lossy(&body));
    anyhow::ensure!(status == StatusCode::OK, shown());
    serde_json::from_slice(&body).with_context(shown)
}
