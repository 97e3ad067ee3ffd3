//! HTTP/1.1 and HTTP/2 clients of the gateway.

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

pub(crate) type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

/// How the end of a request body is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Sized,
    Chunked,
    Trailers,
}

enum RequestSender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

pub(crate) struct GatewayClient {
    sender: RequestSender,
    _connection: JoinSet<()>,
}

/// A response with its complete body.
#[derive(Debug)]
pub(crate) struct ClientResponse {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl ClientResponse {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) fn post(path: &str, headers: &[(&'static str, &str)], body: &str, framing: Framing) -> Request<RequestBody> {
    let mut request = Request::post(path).header("host", "models").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // Splits the body in the middle, which is where the model's name is.
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

pub(crate) fn get(path: &str) -> Request<RequestBody> {
    Request::get(path).header("host", "models").body(http_body_util::Empty::new().boxed_unsync()).unwrap()
}

impl GatewayClient {
    pub(crate) async fn connect(address: SocketAddr, version: HttpVersion) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let mut tasks = JoinSet::new();
        let sender = match version {
            HttpVersion::Http1 => {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                tasks.spawn(async { drop(connection.await) });
                RequestSender::Http1(sender)
            }
            HttpVersion::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
                tasks.spawn(async { drop(connection.await) });
                RequestSender::Http2(sender)
            }
        };
        Self { sender, _connection: tasks }
    }

    /// Waits until the connection accepts another request; an error means that it has ended.
    pub(crate) async fn ready(&mut self) -> hyper::Result<()> {
        match &mut self.sender {
            RequestSender::Http1(sender) => sender.ready().await,
            RequestSender::Http2(sender) => sender.ready().await,
        }
    }

    /// Sends a request, and returns once the response's headers have arrived.
    pub(crate) async fn send(&mut self, mut request: Request<RequestBody>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            RequestSender::Http1(sender) => sender.send_request(request).await,
            RequestSender::Http2(sender) => {
                request.headers_mut().remove("host");
                *request.uri_mut() = format!("http://models{}", request.uri()).parse().unwrap();
                sender.send_request(request).await
            }
        }
    }

    pub(crate) async fn fetch(&mut self, request: Request<RequestBody>) -> ClientResponse {
        let request_text = format!("{request:?}");
        let answer = self.send(request).await;
        let (head, body) = answer.unwrap_or_else(|error| panic!("{request_text}: {error:?}")).into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        ClientResponse { status: head.status, headers: head.headers, body }
    }
}
