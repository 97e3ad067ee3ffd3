//! Clients of the gateway, in both versions of HTTP.

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::{convert::Infallible, net::SocketAddr};
use tokio::{net::TcpStream, task::JoinSet};

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Sized,
    Chunked,
    Trailers,
}

enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

pub(crate) struct Client {
    sender: Sender,
    _connection: JoinSet<()>,
}

/// What a client was told.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) fn post(path: &str, headers: &[(&'static str, &str)], body: &str, framing: Framing) -> Request<Body> {
    let mut request = Request::post(path).header("host", "models").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // Cut somewhere in the middle, which is where the name is.
    let (begin, end) = body.split_at(body.len() / 2);
    let parts = [begin, end].into_iter().filter(|part| !part.is_empty());
    let mut frames: Vec<_> = parts.map(|part| Frame::data(Bytes::copy_from_slice(part.as_bytes()))).collect();
    match framing {
        Framing::Sized => request = request.header("content-length", body.len()),
        Framing::Chunked => {}
        Framing::Trailers => {
            request = request.header("trailer", "x-checksum").header("te", "trailers");
            let line = (HeaderName::from_static("x-checksum"), HeaderValue::from_static("7"));
            frames.push(Frame::trailers(HeaderMap::from_iter([line])));
        }
    }
    request.body(StreamBody::new(stream::iter(frames.into_iter().map(Ok))).boxed_unsync()).unwrap()
}

pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "models").body(http_body_util::Empty::new().boxed_unsync()).unwrap()
}

impl Client {
    pub(crate) async fn connect(to: SocketAddr, version: Version) -> Self {
        let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
        let mut tasks = JoinSet::new();
        let sender = match version {
            Version::One => {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                tasks.spawn(async { drop(connection.await) });
                Sender::One(sender)
            }
            Version::Two => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                tasks.spawn(async { drop(connection.await) });
                Sender::Two(sender)
            }
        };
        Self { sender, _connection: tasks }
    }

    /// Waits until another request can be sent. An error means that the connection has ended.
    pub(crate) async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.sender {
            Sender::One(sender) => sender.ready().await,
            Sender::Two(sender) => sender.ready().await,
        }
    }

    /// Sends a request; returns at the answer's headers.
    pub(crate) async fn begin(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::One(sender) => sender.send_request(request).await,
            Sender::Two(sender) => {
                request.headers_mut().remove("host");
                *request.uri_mut() = format!("http://models{}", request.uri()).parse().unwrap();
                sender.send_request(request).await
            }
        }
    }

    pub(crate) async fn ask(&mut self, request: Request<Body>) -> Answer {
        let asked = format!("{request:?}");
        let answer = self.begin(request).await;
        let (head, body) = answer.unwrap_or_else(|error| panic!("{asked}: {error:?}")).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: head.status, headers: head.headers, body }
    }
}
