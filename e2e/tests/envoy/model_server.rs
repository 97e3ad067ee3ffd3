//! A model server that echoes the request, or streams events.

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::{convert::Infallible, error::Error, net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};

/// Listens until the set is dropped. `/v1/responses` streams 50 events within a second, `/v1/embeddings` closes the
/// connection, and every other path returns the request's headers, body and trailers as JSON.
pub(crate) async fn start(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(respond));
                drop(served.await);
            });
        }
    });
    address
}

async fn respond(
    request: Request<Incoming>,
) -> Result<Response<UnsyncBoxBody<Bytes, Infallible>>, Box<dyn Error + Send + Sync>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    if head.uri.path().ends_with("/embeddings") {
        return Err("closed on purpose".into());
    }
    if head.uri.path().ends_with("/responses") {
        let events = futures_util::stream::iter(0..50).then(async |number| {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(Frame::data(Bytes::from(format!("data: {number}\n\n"))))
        });
        return Ok(Response::builder()
            .header("content-type", "text/event-stream")
            .body(StreamBody::new(events).boxed_unsync())
            .unwrap());
    }
    let lines = |lines: &http::HeaderMap| -> Map<String, Value> {
        lines.iter().map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap_or("?")))).collect()
    };
    let trailers = body.trailers().map(&lines);
    let echo = json!({
        "headers": lines(&head.headers),
        "trailers": trailers,
        "body": String::from_utf8_lossy(&body.to_bytes()),
        "usage": { "prompt_tokens": 3, "completion_tokens": 4 },
    });
    let mut answer = Response::new(Full::new(Bytes::from(echo.to_string())).boxed_unsync());
    // An untrusted server may forge this header.
    answer.headers_mut().insert("x-gateway-model-name", http::HeaderValue::from_static("forged"));
    Ok(answer)
}
