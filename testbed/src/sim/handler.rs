//! Dispatches requests and builds responses, as vLLM's web framework does.

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

use super::generate::Generation;
use super::request::CompletionRequest;
use super::request_log::LogEntry;
use super::response::{self, CompletionKind};
use super::route::{self, Route};
use super::server::SimulatedServer;
use super::validation::{self, LoadRequest, check_content_type, unload_name};
use super::vllm_error::VllmError;
use super::{admin, clock, lora};

/// Body of a response: complete, or a stream of events.
pub(super) type SimulatorBody = Either<Full<Bytes>, StreamBody<EventStream>>;
type EventStream = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

/// Model or adapter of a request, for the log.
type RequestedModel = Option<String>;

/// Handles a request. Fails if the client disconnects before it has sent the body.
pub(super) async fn handle(
    server: Arc<SimulatedServer>,
    request: Request<Incoming>,
) -> Result<Response<SimulatorBody>, hyper::Error> {
    let (parts, incoming) = request.into_parts();
    let body = incoming.collect().await?.to_bytes();
    if let Some(path) = parts.uri.path().strip_prefix("/sim/") {
        return Ok(admin::handle(&server, &parts.method, path, &body).await);
    }
    let mut subject = None;
    let response = dispatch(&server, &parts, &body, &mut subject).await.unwrap_or_else(|refusal| to_response(&refusal));
    server.wait_while_hanging().await;
    log_request(&server, &parts, response.status(), subject);
    Ok(response)
}

async fn dispatch(
    server: &Arc<SimulatedServer>,
    parts: &Parts,
    body: &Bytes,
    subject: &mut RequestedModel,
) -> Result<Response<SimulatorBody>, VllmError> {
    let path = parts.uri.path();
    server.read_knobs(|knobs| route::check_key(path, &parts.headers, knobs.api_key.as_deref()))?;
    let endpoint = route::route(&parts.method, path, server.config.runtime_updating)?;
    if !endpoint.uses_engine() {
        // Requests to the engine wait there, after they were counted.
        server.wait_while_hanging().await;
    }
    Ok(match endpoint {
        Route::Health => health(server),
        Route::Version => json_response(StatusCode::OK, &json!({ "version": "0.32.0" })),
        Route::ServerLoad => json_response(StatusCode::OK, &json!({ "server_load": 0 })),
        Route::Metrics => text_response("text/plain; version=1.0.0; charset=utf-8", metrics(server)),
        Route::Docs => {
            text_response("text/html; charset=utf-8", "<!DOCTYPE html><title>simulated vLLM</title>".to_owned())
        }
        Route::Models => json_response(StatusCode::OK, &models(server)),
        Route::Tokenize => json_response(StatusCode::OK, &tokenize(server, body)?),
        Route::Completion(kind) => {
            check_content_type(&parts.headers)?;
            complete(server, kind, CompletionRequest::read(kind, body)?, subject).await?
        }
        Route::Invocation => invoke(server, parts, body, subject).await?,
        Route::Load => {
            check_content_type(&parts.headers)?;
            let name = load(server, LoadRequest::read(body)?, subject).await?;
            untyped(format!("Success: LoRA adapter '{name}' added successfully."))
        }
        Route::AddAdapter => {
            let name = load(server, LoadRequest::read_adapter(body)?, subject).await?;
            untyped(format!("Adapter {name} registered"))
        }
        Route::Unload => {
            check_content_type(&parts.headers)?;
            let name = unload(server, unload_name(body)?, subject)?;
            untyped(format!("Success: LoRA adapter '{name}' removed successfully."))
        }
        Route::DeleteAdapter(name) => untyped(format!("Adapter {} unregistered", unload(server, name, subject)?)),
    })
}

async fn complete(
    server: &Arc<SimulatedServer>,
    kind: CompletionKind,
    request: CompletionRequest,
    subject: &mut RequestedModel,
) -> Result<Response<SimulatorBody>, VllmError> {
    subject.clone_from(&request.model);
    let streamed = request.stream;
    let generation = Generation::start(server, kind, request).await?;
    if streamed {
        let events: EventStream = Box::pin(generation.stream().map(|event| Ok(Frame::data(event))));
        return Ok(with_content_type("text/event-stream; charset=utf-8", Either::Right(StreamBody::new(events))));
    }
    Ok(json_response(StatusCode::OK, &generation.complete().await?))
}

/// SageMaker's endpoint: the adapter comes from a header, whatever the body says; the body determines chat or text.
async fn invoke(
    server: &Arc<SimulatedServer>,
    parts: &Parts,
    body: &Bytes,
    subject: &mut RequestedModel,
) -> Result<Response<SimulatorBody>, VllmError> {
    let kind = if validation::parse_object(body)?.contains_key("messages") {
        CompletionKind::Chat
    } else {
        CompletionKind::Text
    };
    let adapter = parts.headers.get("x-amzn-sagemaker-adapter-identifier").and_then(|name| name.to_str().ok());
    let request = CompletionRequest { model: adapter.map(str::to_owned), ..CompletionRequest::read(kind, body)? };
    complete(server, kind, request, subject).await
}

async fn load(
    server: &SimulatedServer,
    request: LoadRequest,
    subject: &mut RequestedModel,
) -> Result<String, VllmError> {
    let name = request.name.clone();
    *subject = Some(name.clone());
    lora::load(server, request).await?;
    Ok(name)
}

fn unload(server: &SimulatedServer, name: String, subject: &mut RequestedModel) -> Result<String, VllmError> {
    *subject = Some(name.clone());
    lora::unload(server, name)
}

/// Returns 503 between the crash of the engine and the end of the server.
fn health(server: &SimulatedServer) -> Response<SimulatorBody> {
    let mut response = untyped(String::new());
    if server.engine_dead.is_cancelled() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn models(server: &SimulatedServer) -> Value {
    let config = &server.config;
    let base = response::base_model_card(
        &config.served_model_name,
        &config.model,
        config.max_model_len,
        &server.response_meta(),
    );
    let adapters = server.adapters();
    let cards = adapters
        .iter()
        .map(|adapter| response::adapter_card(adapter, &config.served_model_name, &server.response_meta()));
    json!({ "object": "list", "data": std::iter::once(base).chain(cards).collect::<Vec<_>>() })
}

fn tokenize(server: &SimulatedServer, body: &Bytes) -> Result<Value, VllmError> {
    let fields = validation::parse_object(body)?;
    let kind = match (fields.contains_key("prompt"), fields.contains_key("messages")) {
        (true, _) => CompletionKind::Text,
        (false, true) => CompletionKind::Chat,
        (false, false) => return Err(validation::nothing_to_tokenize(&fields)),
    };
    let request = CompletionRequest::read(kind, body)?;
    let (base, adapters) = (&server.config.served_model_name, server.adapters());
    if let Some(model) = request.model.filter(|model| model != base && adapters.get(model).is_none()) {
        return Err(VllmError::ModelNotFound { model, base: base.clone() });
    }
    let count = request.prompt.tokens;
    let tokens: Vec<usize> = (0..count).map(|index| 295 + index).collect();
    Ok(json!({
        "count": count, "max_model_len": server.config.max_model_len, "tokens": tokens, "token_strs": null,
    }))
}

fn metrics(server: &SimulatedServer) -> String {
    let max_loras = server.config.enable_lora.then_some(server.config.max_loras);
    let started = clock::unix_seconds(server.started);
    server.metrics().render(&server.config.served_model_name, max_loras, started)
}

fn log_request(server: &SimulatedServer, parts: &Parts, status: StatusCode, model: RequestedModel) {
    let request_id = parts.headers.get("x-request-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    server.request_log().record_response(LogEntry {
        at: clock::now(),
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        status: status.as_u16(),
        model,
        request_id,
    });
}

fn to_response(refusal: &VllmError) -> Response<SimulatorBody> {
    json_response(refusal.status(), &refusal.body())
}

pub(super) fn json_response(status: StatusCode, value: &Value) -> Response<SimulatorBody> {
    let mut response = text_response("application/json", value.to_string());
    *response.status_mut() = status;
    response
}

fn text_response(content_type: &'static str, text: String) -> Response<SimulatorBody> {
    with_content_type(content_type, Either::Left(Full::from(text)))
}

fn with_content_type(content_type: &'static str, body: SimulatorBody) -> Response<SimulatorBody> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Returns a response without a content type, as vLLM does for its own plain texts.
fn untyped(text: String) -> Response<SimulatorBody> {
    Response::new(Either::Left(Full::from(text)))
}
