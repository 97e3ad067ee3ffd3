//! A server that forwards everything unchanged, without rules, scan and metrics, on the same connections, codec and
//! streams as [`crate::ExtProcServer`]. Benchmarks measure the cost of those with it.

use crate::{
    connections::{self, Handler},
    grpc::{CallFlow, CallHandler, GrpcCall, ReplyQueue, Slices},
    processor::push_body_chunks,
    proto::{self, Direction, ProcessorReply},
};
use h2::{RecvStream, server::SendResponse};
use http::Request;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `stop` is canceled.
pub async fn serve(listener: TcpListener, stop: CancellationToken) {
    connections::serve(listener, connections::worker_threads(), NoOpService, stop, Duration::ZERO).await;
}

#[derive(Debug, Clone, Copy)]
struct NoOpService;

impl Handler for NoOpService {
    async fn handle(self, request: Request<RecvStream>, respond: SendResponse<Slices>) {
        GrpcCall::new(request.into_body(), respond, usize::MAX, self).await;
    }
}

impl CallHandler for NoOpService {
    type Message = proto::ProcessingRequest;

    fn accepts_chunks(&self, _: Direction) -> bool {
        true
    }

    fn handle_message(&mut self, message: proto::ProcessingRequest, replies: &mut ReplyQueue) -> CallFlow {
        match message.event {
            Some(proto::ProcessingEvent::RequestHeaders(_)) => replies.push_back(ProcessorReply::request_headers(None)),
            Some(proto::ProcessingEvent::RequestBody(body)) => {
                push_body_chunks(Direction::Request, vec![body.body], body.end_of_stream, replies);
            }
            Some(proto::ProcessingEvent::RequestTrailers(_)) => replies.push_back(ProcessorReply::request_trailers()),
            Some(proto::ProcessingEvent::ResponseHeaders(_)) => {
                replies.push_back(ProcessorReply::response_headers(None));
            }
            Some(proto::ProcessingEvent::ResponseBody(body)) => {
                push_body_chunks(Direction::Response, vec![body.body], body.end_of_stream, replies);
            }
            Some(proto::ProcessingEvent::ResponseTrailers(_)) => replies.push_back(ProcessorReply::response_trailers()),
            None => {}
        }
        CallFlow::Continue
    }
}
