//! From a request to an answer: what vLLM has under one web framework.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use super::body::{self, LoadRequest, check_content_type, unload_name};
use super::generate::Generation;
use super::ledger::LogEntry;
use super::refusal::Refusal;
use super::reply::{self, Kind};
use super::request::CompletionRequest;
use super::route::{self, Endpoint};
use super::server::Server;
use super::{admin, clock, lora};

/// The body of every answer: whole, or a stream.
pub(super) type Body = Either<Full<Bytes>, StreamBody<Events>>;
type Events = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// What a request was about, for the log.
type Subject = Option<String>;

/// Answers a request. Fails when the client goes away before it has sent its body.
pub(super) async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, incoming) = request.into_parts();
    let body = incoming.collect().await?.to_bytes();
    if let Some(path) = parts.uri.path().strip_prefix("/sim/") {
        return Ok(admin::answer(&server, &parts.method, path, &body).await);
    }
    let mut subject = None;
    let answer = respond(&server, &parts, &body, &mut subject).await.unwrap_or_else(|refusal| refuse(&refusal));
    server.until_answering().await;
    log(&server, &parts, answer.status(), subject);
    Ok(answer)
}

async fn respond(
    server: &Arc<Server>,
    parts: &Parts,
    body: &Bytes,
    subject: &mut Subject,
) -> Result<Response<Body>, Refusal> {
    let path = parts.uri.path();
    server.knob(|knobs| route::check_key(path, &parts.headers, knobs.api_key.as_deref()))?;
    let endpoint = route::endpoint(&parts.method, path, server.config.runtime_updating)?;
    if !endpoint.uses_engine() {
        // What uses the engine waits there, after it is counted.
        server.until_answering().await;
    }
    Ok(match endpoint {
        Endpoint::Health => health(server),
        Endpoint::Version => json_answer(StatusCode::OK, &json!({ "version": "0.32.0" })),
        Endpoint::ServerLoad => json_answer(StatusCode::OK, &json!({ "server_load": 0 })),
        Endpoint::Metrics => typed("text/plain; version=1.0.0; charset=utf-8", metrics(server)),
        Endpoint::Docs => typed("text/html; charset=utf-8", "<!DOCTYPE html><title>simulated vLLM</title>".to_owned()),
        Endpoint::Models => json_answer(StatusCode::OK, &models(server)),
        Endpoint::Tokenize => json_answer(StatusCode::OK, &tokenize(server, body)?),
        Endpoint::Completion(kind) => {
            check_content_type(&parts.headers)?;
            complete(server, kind, CompletionRequest::read(kind, body)?, subject).await?
        }
        Endpoint::Invocation => invoke(server, parts, body, subject).await?,
        Endpoint::Load => {
            check_content_type(&parts.headers)?;
            let name = load(server, LoadRequest::read(body)?, subject).await?;
            bare(format!("Success: LoRA adapter '{name}' added successfully."))
        }
        Endpoint::AddAdapter => {
            let name = load(server, LoadRequest::read_adapter(body)?, subject).await?;
            bare(format!("Adapter {name} registered"))
        }
        Endpoint::Unload => {
            check_content_type(&parts.headers)?;
            let name = unload(server, unload_name(body)?, subject)?;
            bare(format!("Success: LoRA adapter '{name}' removed successfully."))
        }
        Endpoint::DeleteAdapter(name) => bare(format!("Adapter {} unregistered", unload(server, name, subject)?)),
    })
}

async fn complete(
    server: &Arc<Server>,
    kind: Kind,
    request: CompletionRequest,
    subject: &mut Subject,
) -> Result<Response<Body>, Refusal> {
    subject.clone_from(&request.model);
    let streamed = request.stream;
    let generation = Generation::begin(server, kind, request).await?;
    if streamed {
        let events: Events = Box::pin(generation.stream().map(|event| Ok(Frame::data(event))));
        return Ok(with_type("text/event-stream; charset=utf-8", Either::Right(StreamBody::new(events))));
    }
    Ok(json_answer(StatusCode::OK, &generation.whole().await?))
}

/// The adapter comes from a header, whatever the body says; whether it is a chat, from the body.
async fn invoke(
    server: &Arc<Server>,
    parts: &Parts,
    body: &Bytes,
    subject: &mut Subject,
) -> Result<Response<Body>, Refusal> {
    let kind = if body::object(body)?.contains_key("messages") { Kind::Chat } else { Kind::Text };
    let adapter = parts.headers.get("x-amzn-sagemaker-adapter-identifier").and_then(|name| name.to_str().ok());
    let request = CompletionRequest { model: adapter.map(str::to_owned), ..CompletionRequest::read(kind, body)? };
    complete(server, kind, request, subject).await
}

async fn load(server: &Server, request: LoadRequest, subject: &mut Subject) -> Result<String, Refusal> {
    let name = request.name.clone();
    *subject = Some(name.clone());
    lora::load(server, request).await?;
    Ok(name)
}

fn unload(server: &Server, name: String, subject: &mut Subject) -> Result<String, Refusal> {
    *subject = Some(name.clone());
    lora::unload(server, name)
}

/// Between the death of its engine and its own a server says that it is not well.
fn health(server: &Server) -> Response<Body> {
    let mut answer = bare(String::new());
    if server.engine_dead.is_cancelled() {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer
}

fn models(server: &Server) -> Value {
    let config = &server.config;
    let base = reply::base_card(&config.served_model_name, &config.model, config.max_model_len, &server.made());
    let adapters = server.adapters();
    let cards = adapters.iter().map(|adapter| reply::adapter_card(adapter, &config.served_model_name, &server.made()));
    json!({ "object": "list", "data": std::iter::once(base).chain(cards).collect::<Vec<_>>() })
}

fn tokenize(server: &Server, body: &Bytes) -> Result<Value, Refusal> {
    let fields = body::object(body)?;
    let kind = match (fields.contains_key("prompt"), fields.contains_key("messages")) {
        (true, _) => Kind::Text,
        (false, true) => Kind::Chat,
        (false, false) => return Err(body::nothing_to_tokenize(&fields)),
    };
    let request = CompletionRequest::read(kind, body)?;
    let (base, adapters) = (&server.config.served_model_name, server.adapters());
    if let Some(model) = request.model.filter(|model| model != base && adapters.get(model).is_none()) {
        return Err(Refusal::NoSuchModel { model, base: base.clone() });
    }
    let count = request.prompt.tokens;
    let tokens: Vec<usize> = (0..count).map(|index| 295 + index).collect();
    Ok(json!({
        "count": count, "max_model_len": server.config.max_model_len, "tokens": tokens, "token_strs": null,
    }))
}

fn metrics(server: &Server) -> String {
    let max_loras = server.config.enable_lora.then_some(server.config.max_loras);
    let started = clock::unix_seconds(server.started);
    server.usage().render(&server.config.served_model_name, max_loras, started)
}

fn log(server: &Server, parts: &Parts, status: StatusCode, model: Subject) {
    let request_id = parts.headers.get("x-request-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    server.ledger().answered(LogEntry {
        at: clock::now(),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        status: status.as_u16(),
        model,
        request_id,
    });
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    json_answer(refusal.status(), &refusal.body())
}

pub(super) fn json_answer(status: StatusCode, value: &Value) -> Response<Body> {
    let mut answer = typed("application/json", value.to_string());
    *answer.status_mut() = status;
    answer
}

fn typed(content_type: &'static str, text: String) -> Response<Body> {
    with_type(content_type, Either::Left(Full::from(text)))
}

fn with_type(content_type: &'static str, body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// An answer without a content type, as vLLM's own plain texts are.
fn bare(text: String) -> Response<Body> {
    Response::new(Either::Left(Full::from(text)))
}
