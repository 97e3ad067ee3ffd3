//! Model names and request bodies of the soak, and a model server that checks every request.

use super::{ledger::SoakLedger, now};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinSet};

/// The model names that clients request. The first two have rules.
pub(super) const ALIASES: [&str; 3] = ["red", "blue", "plain"];
/// Number of events of a streamed response.
pub(super) const EVENT_COUNT: usize = 10;
const EVENT_INTERVAL: Duration = Duration::from_millis(30);

/// Either a client's name, or one that the rules of a generation give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ModelName<'a> {
    alias: &'a str,
    generation: Option<u32>,
}

impl<'a> ModelName<'a> {
    /// Parses `red`, or `red-17-left`.
    pub(super) fn parse(name: &'a str) -> Self {
        let mut parts = name.splitn(3, '-');
        let alias = parts.next().unwrap_or_default();
        Self { alias, generation: parts.next().and_then(|generation| generation.parse().ok()) }
    }

    pub(super) fn generation(self) -> Option<u32> {
        self.generation
    }

    /// Returns whether a client that requests `alias` may get this model at any time.
    fn is_allowed_for(self, alias: &str) -> bool {
        self.alias == alias && self.generation.is_some() == (alias != "plain")
    }
}

/// The shape of one request's body, as the request's own headers describe it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RequestShape {
    pub(super) number: u64,
    pub(super) padding: usize,
    pub(super) model_last: bool,
}

impl RequestShape {
    /// Returns the body with this model in it.
    pub(super) fn body(&self, model: &str) -> String {
        let Self { number, padding, model_last } = self;
        let rest = format!(r#""prompt": "the \"model\" of {number} {}", "n":1"#, "x".repeat(*padding));
        if *model_last {
            format!(r#"{{{rest}, "model" : "{model}"}}"#)
        } else {
            format!(r#"{{"model":"{model}",{rest}}}"#)
        }
    }

    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let number = |name: &str| headers.get(name)?.to_str().ok()?.parse().ok();
        Some(Self {
            number: number("x-number")?,
            padding: usize::try_from(number("x-padding")?).ok()?,
            model_last: number("x-model-last")? == 1,
        })
    }
}

/// Listens until the set is dropped.
pub(super) async fn start(ledger: &Arc<SoakLedger>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let ledger = Arc::clone(ledger);
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            drop(stream.set_nodelay(true));
            let ledger = Arc::clone(&ledger);
            connections.spawn(async move {
                let service = service_fn(|request| respond(&ledger, request));
                drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            });
            while connections.try_join_next().is_some() {}
        }
    });
    address
}

type ModelResponse = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn respond(ledger: &SoakLedger, request: Request<Incoming>) -> Result<ModelResponse, hyper::Error> {
    let (head, body) = request.into_parts();
    // A client that gave up in the middle of its body sent no request.
    let body = body.collect().await?.to_bytes();
    let arrival = now();
    let refuse = |words: String| {
        ledger.record_violation(words);
        let mut answer = Response::new(Full::default().boxed_unsync());
        *answer.status_mut() = StatusCode::IM_A_TEAPOT;
        answer
    };
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let start = text("x-start").and_then(|start| start.parse().ok());
    let (Some(shape), Some(alias), Some(start)) = (RequestShape::from_headers(&head.headers), text("x-alias"), start)
    else {
        return Ok(refuse(format!("the headers of a client are missing: {:?}", head.headers)));
    };
    let Some(name) = parse_model(&body) else {
        return Ok(refuse(format!("the body is not JSON: {}", String::from_utf8_lossy(&body))));
    };
    let model = ModelName::parse(&name);
    if !model.is_allowed_for(alias) {
        return Ok(refuse(format!("{alias} was sent to {name}")));
    }
    if body != shape.body(&name) {
        return Ok(refuse(format!("more than the model was changed: {}", String::from_utf8_lossy(&body))));
    }
    ledger.record_arrival(start, arrival, model);
    let number = shape.number;
    if head.uri.path().ends_with("/responses") {
        let events = futures_util::stream::iter(1..=EVENT_COUNT).then(move |event| {
            let line = Bytes::from(format!("data: {name} {number} {event}\n\n"));
            async {
                tokio::time::sleep(EVENT_INTERVAL).await;
                Ok(Frame::data(line))
            }
        });
        let answer = Response::builder().header("content-type", "text/event-stream");
        return Ok(answer.body(StreamBody::new(events).boxed_unsync()).unwrap());
    }
    Ok(Response::new(Full::new(Bytes::from(format!("{name} {number}"))).boxed_unsync()))
}

fn parse_model(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Body {
        model: String,
    }
    Some(serde_json::from_slice::<Body>(body).ok()?.model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_differ_only_in_the_model() {
        for model_last in [false, true] {
            let shape = RequestShape { number: 3, padding: 2, model_last };
            let body = shape.body("red");
            assert_eq!(parse_model(body.as_bytes()).as_deref(), Some("red"));
            assert_eq!(body.len() + "-17-left".len(), shape.body("red-17-left").len());
        }
    }

    #[test]
    fn alias_may_get_only_its_own_targets() {
        for (alias, name, right) in [
            ("red", "red-1-left", true),
            ("red", "blue-1-left", false),
            ("red", "red", false),
            ("plain", "plain", true),
            ("plain", "red-1-left", false),
        ] {
            assert_eq!(ModelName::parse(name).is_allowed_for(alias), right, "{alias} {name}");
        }
    }
}
