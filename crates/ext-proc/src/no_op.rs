//! A server that passes everything on as it comes, without rules, scan and counting, on the same connections, codec and
//! streams as [`crate::Server`]: what those cost by themselves. For benches.

use crate::{
    connections::{self, Answer},
    grpc::{Call, Next, Replies, Slices, Work},
    processor::parts,
    protocol::{Direction, Event, ProcessingRequest, Reply},
};
use h2::{RecvStream, server::SendResponse};
use http::Request;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`.
pub async fn serve(listener: TcpListener, stop: CancellationToken) {
    connections::serve(listener, connections::a_thread_a_processor(), Nothing, stop, Duration::ZERO).await;
}

#[derive(Debug, Clone, Copy)]
struct Nothing;

impl Answer for Nothing {
    async fn answer(self, request: Request<RecvStream>, answer: SendResponse<Slices>) {
        Call::new(request.into_body(), answer, usize::MAX, self).await;
    }
}

impl Work for Nothing {
    type Message = ProcessingRequest;

    fn takes_pieces(&self, _: Direction) -> bool {
        true
    }

    fn take(&mut self, message: ProcessingRequest, replies: &mut Replies) -> Next {
        match message.event {
            Some(Event::RequestHeaders(_)) => replies.push_back(Reply::request_headers(None)),
            Some(Event::RequestBody(body)) => parts(Direction::Request, vec![body.body], body.end_of_stream, replies),
            Some(Event::RequestTrailers(_)) => replies.push_back(Reply::request_trailers()),
            Some(Event::ResponseHeaders(_)) => replies.push_back(Reply::response_headers(None)),
            Some(Event::ResponseBody(body)) => parts(Direction::Response, vec![body.body], body.end_of_stream, replies),
            Some(Event::ResponseTrailers(_)) => replies.push_back(Reply::response_trailers()),
            None => {}
        }
        Next::Message
    }
}
