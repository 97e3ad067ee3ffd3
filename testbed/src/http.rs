//! A small HTTP client for the testbed's own requests and for the background traffic. It holds one connection and never
//! retries, so that tests observe every error that a real client could see.

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

/// Time limit of [`send_request`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Address on which a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    /// TCP address, on loopback.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
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

/// An open HTTP/1.1 connection, closed when it is dropped.
#[derive(Debug)]
pub struct HttpConnection {
    sender: SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl HttpConnection {
    /// Opens a connection to `address`.
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
        // Connection errors are returned by the request that they affect.
        driver.spawn(async move { drop(connection.await) });
        Ok(Self { sender, _driver: driver })
    }

    /// Returns whether another request can be sent, as far as the client knows.
    pub async fn is_open(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }

    /// Sends a request and waits for the head of the response.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.sender.send_request(request).await
    }
}

/// Builds a request with a JSON body, or with an empty one.
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

/// Sends one request over a new connection, with a time limit of five seconds.
pub async fn send_request(address: &ListenAddress, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
    let what = format!("{} {address}{}", request.method(), request.uri());
    let exchange = async {
        let mut connection = HttpConnection::open(address).await?;
        let response = connection.send(request).await?;
        let status = response.status();
        anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    timeout(REQUEST_TIMEOUT, exchange)
        .await
        .with_context(|| format!("{what}: no response in {REQUEST_TIMEOUT:?}"))?
        .context(what)
}

/// Requests `path` and parses the JSON response; any status other than 200 is an error.
pub async fn get_json<T: serde::de::DeserializeOwned>(address: &ListenAddress, path: &str) -> Result<T> {
    let (status, body) = send_request(address, request("GET", path, None)).await?;
    let shown = || format!("GET {address}{path}: {status} {}", String::from_utf8_lossy(&body));
    anyhow::ensure!(status == StatusCode::OK, shown());
    serde_json::from_slice(&body).with_context(shown)
}
