//! Small test client: gRPC over hyper's HTTP/2, and HTTP/1.1 for the metrics port.

use crate::proto::{self, HEALTH_CHECK_PATH, HEALTH_WATCH_PATH, PROCESS_PATH};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Body, Frame, Incoming},
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::{net::TcpStream, sync::mpsc, task::JoinSet};
use tonic::{Code, Status};

/// One HTTP/2 connection to the server.
pub(super) struct GrpcClient {
    requests: http2::SendRequest<GrpcRequestBody>,
    _connection: JoinSet<()>,
}

impl GrpcClient {
    pub(super) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut builder = http2::Builder::new(TokioExecutor::new());
        // The windows of Envoy's configuration.
        builder.initial_stream_window_size(64 * 1024).initial_connection_window_size(1024 * 1024);
        let (requests, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(connection.await) });
        Self { requests, _connection: tasks }
    }

    /// Begins a call without sending a message.
    async fn begin(&mut self, path: &str) -> ClientCall {
        let (messages, body) = request_body();
        let request = Request::post(format!("http://server{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let response = self.requests.send_request(request).await.unwrap();
        let trailers = response.headers().clone();
        ClientCall { messages: Some(messages), response, trailers, read: BytesMut::new() }
    }

    pub(super) async fn process(&mut self) -> ClientCall {
        self.begin(PROCESS_PATH).await
    }

    pub(super) async fn watch(&mut self, service: &str) -> ClientCall {
        self.call_health(HEALTH_WATCH_PATH, service).await
    }

    pub(super) async fn check(&mut self, service: &str) -> Result<proto::ServingStatus, Status> {
        let mut call = self.call_health(HEALTH_CHECK_PATH, service).await;
        match call.next_status().await {
            Some(status) => Ok(status),
            None => Err(call.status().await),
        }
    }

    /// Begins a health call. Unary methods respond only after the request stream has ended.
    async fn call_health(&mut self, path: &str, service: &str) -> ClientCall {
        let message = proto::HealthCheckRequest { service: service.to_owned() };
        let (messages, body) = request_body();
        messages.send(&message.encode_to_vec());
        drop(messages);
        let request = Request::post(format!("http://server{path}")).body(body).unwrap();
        let response = self.requests.send_request(request).await.unwrap();
        let trailers = response.headers().clone();
        ClientCall { messages: None, response, trailers, read: BytesMut::new() }
    }

    pub(super) async fn call_unknown_method(&mut self) -> Status {
        self.begin("/some.Service/Method").await.status().await
    }
}

pub(super) struct ClientCall {
    messages: Option<MessageSender>,
    response: Response<Incoming>,
    /// Response headers and trailers, which can contain the status.
    trailers: http::HeaderMap,
    read: BytesMut,
}

impl ClientCall {
    pub(super) fn send(&mut self, message: &proto::ProcessingRequest) {
        self.send_bytes(&message.encode_to_vec());
    }

    pub(super) fn send_bytes(&mut self, message: &[u8]) {
        self.messages.as_ref().unwrap().send(message);
    }

    /// Sends the prefix of a message of `length` bytes and its beginning.
    pub(super) fn send_start(&mut self, length: usize, beginning: &[u8]) {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        self.send_rest(&[&[0], &length[..], beginning].concat());
    }

    /// Sends raw bytes that continue a message.
    pub(super) fn send_rest(&mut self, bytes: &[u8]) {
        self.messages.as_ref().unwrap().send_raw(Bytes::copy_from_slice(bytes));
    }

    /// Returns how many messages were not sent yet.
    pub(super) fn unsent(&self) -> usize {
        self.messages.as_ref().unwrap().unsent.load(Relaxed)
    }

    pub(super) async fn next(&mut self) -> proto::ProcessingAction {
        let message = self.message().await.expect("a reply");
        proto::ProcessingResponse::decode(message).unwrap().action.unwrap()
    }

    pub(super) async fn next_status(&mut self) -> Option<proto::ServingStatus> {
        let message = proto::HealthCheckResponse::decode(self.message().await?).unwrap();
        Some(message.status())
    }

    /// Reads the next message. `None` at the end of the response.
    async fn message(&mut self) -> Option<Bytes> {
        loop {
            if let Some(length) = self.read.get(1..5) {
                let length = usize::try_from(u32::from_be_bytes(length.try_into().unwrap())).unwrap();
                if self.read.len() >= 5 + length {
                    self.read.advance(5);
                    return Some(self.read.split_to(length).freeze());
                }
            }
            match self.response.body_mut().frame().await?.unwrap().into_data() {
                Ok(data) => self.read.extend_from_slice(&data),
                Err(frame) => self.trailers.extend(frame.into_trailers().unwrap()),
            }
        }
    }

    /// Reads the status at the end of the call.
    pub(super) async fn status(&mut self) -> Status {
        assert_eq!(self.message().await, None);
        Status::from_header_map(&self.trailers).unwrap()
    }

    /// Returns the status of a call that was refused without messages.
    pub(super) fn initial_status(&self) -> Status {
        Status::from_header_map(self.response.headers()).unwrap()
    }

    /// Ends the request stream and expects the status OK.
    pub(super) async fn finish(mut self) {
        self.messages = None;
        assert_eq!(self.status().await.code(), Code::Ok);
    }
}

/// Sender of the messages of a call.
struct MessageSender {
    sender: mpsc::UnboundedSender<Bytes>,
    unsent: Arc<AtomicUsize>,
}

pub(super) struct GrpcRequestBody {
    messages: mpsc::UnboundedReceiver<Bytes>,
    unsent: Arc<AtomicUsize>,
}

fn request_body() -> (MessageSender, GrpcRequestBody) {
    let (sender, messages) = mpsc::unbounded_channel();
    let unsent = Arc::new(AtomicUsize::new(0));
    (MessageSender { sender, unsent: Arc::clone(&unsent) }, GrpcRequestBody { messages, unsent })
}

impl MessageSender {
    fn send(&self, message: &[u8]) {
        let mut framed = BytesMut::with_capacity(5 + message.len());
        framed.put_u8(0);
        framed.put_u32(message.len().try_into().unwrap());
        framed.put_slice(message);
        self.send_raw(framed.freeze());
    }

    fn send_raw(&self, bytes: Bytes) {
        self.unsent.fetch_add(1, Relaxed);
        self.sender.send(bytes).unwrap();
    }
}

impl Body for GrpcRequestBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.messages.poll_recv(context).map(|message| {
            let message = message?;
            self.unsent.fetch_sub(1, Relaxed);
            Some(Ok(Frame::data(message)))
        })
    }
}

/// Requests `path` over HTTP/1.1. Returns status and body.
pub(super) async fn get(from: SocketAddr, path: &str) -> (u16, String) {
    let stream = TcpStream::connect(from).await.unwrap();
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async { drop(connection.await) });
    let request = Request::get(path).header("host", "server").body(Empty::<Bytes>::new()).unwrap();
    let response = requests.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}
