//! One stream of Envoy, which is one request: messages go in, replies come out.
//!
//! | mode of the request's body | headers | body |
//! |---|---|---|
//! | `FULL_DUPLEX_STREAMED` | answered at once, or see below | goes on as it comes, in pieces of at most [`LONGEST_PART`] |
//! | `BUFFERED` | answered at once | as a whole, with its new `content-length` |
//! | `STREAMED` | answered at once | one reply for each piece, in order |
//! | `NONE` | answered at once | not seen: the model is what [`MODEL_HEADER`] says, which an earlier filter has set |
//! | others | refused: they show a part of the body, and pass the rest unseen | |
//!
//! Where headers have to tell the model ([`How::tells_headers`]) the one place for them in full duplex is the headers'
//! reply, which waits for it, and so does the body ([`hold`]). In `BUFFERED` they go into the body's reply. `STREAMED`
//! has no place for them and is refused.
//!
//! Answers get the client's name where they are shown and that was asked for ([`restoring`]).
//!
//! A filter in observability mode is only listened to ([`observer`]).
//!
//! How a stream ends says nothing: a normal end often arrives as a reset, and a client that gives up as a normal end.
//! What is counted follows from the [`Exchange`] alone. No network: a function of its messages, and of time and
//! chance as they are told.

mod body_mode;
mod buffer;
mod internal_headers;
mod observer;
mod response_restorer;
mod rewrite_options;
#[cfg(test)]
mod tests;

pub(crate) use buffer::{BufferBudget, Permit};
pub(crate) use observer::ObservedMetrics;
pub use rewrite_options::{RewriteMode, RewriteOptions};

use crate::{
    grpc::ReplyQueue,
    proto::{
        BodyChunk, Direction, HeaderMap, HeaderMutation, HttpBody, HttpHeaders, ProcessingEvent, ProcessingRequest,
        ProcessorReply,
    },
};
use body_mode::{BodyMode, BodyModes};
use buffer::BufferedBody;
use bytes::Bytes;
use http::{HeaderName, StatusCode, header::CONTENT_LENGTH};
use internal_headers::InternalHeaders;
use jiff::Timestamp;
use observer::StreamObserver;
use prometheus_client::metrics::gauge::Gauge;
use response_restorer::ResponseRestorer;
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::PathGuard,
    headers::{HeaderLookup, MODEL_HEADER, REQUEST_ONLY_HEADERS, TARGET_HEADER},
    refusal::{RequestRefusal, error_body},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// The longest piece of a body in one reply: Envoy's advice is to stay below 64 KiB.
pub(crate) const MAX_BODY_CHUNK: usize = 62_000;

/// What all streams share.
#[derive(Debug)]
pub(crate) struct ProcessorShared {
    pub(crate) active_rules: Arc<ActiveRules>,
    pub(crate) guard: PathGuard,
    /// How a rule is applied and told.
    pub(crate) rewrite: RewriteOptions,
    /// How much is held, and how long.
    pub(crate) buffer: BufferBudget,
    /// What filters in observability mode have seen.
    pub(crate) observed: ObservedMetrics,
    /// The longest body that is taken as a whole.
    pub(crate) max_body: usize,
    /// A filter that cannot be served was told of in the log.
    pub(crate) mode_warned: AtomicBool,
    /// How many streams there are.
    pub(crate) streams: Gauge,
    /// Asked when a stream ends; at all other times it is told.
    pub(crate) clock: fn() -> Timestamp,
}

/// Time and chance, as they are told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext {
    pub(crate) now: Timestamp,
    /// Any number, all being equally likely.
    pub(crate) random: u64,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Processor {
    shared: Arc<ProcessorShared>,
    modes: Option<BodyModes>,
    exchange: Option<Exchange>,
    /// What the client sent under internal names.
    internal_headers: InternalHeaders,
    /// The headers' reply waits, and the body with it.
    buffered: Option<BufferedBody>,
    observer: Option<StreamObserver>,
    /// The answer gets the client's name.
    restorer: Option<ResponseRestorer>,
    /// The body goes through the exchange.
    reads_body: bool,
    /// The client has been answered here: nothing more is said.
    refused: bool,
}

impl Processor {
    pub(crate) fn new(shared: Arc<ProcessorShared>) -> Self {
        shared.streams.inc();
        Self {
            shared,
            modes: None,
            exchange: None,
            internal_headers: InternalHeaders::default(),
            buffered: None,
            observer: None,
            restorer: None,
            reads_body: false,
            refused: false,
        }
    }

    /// Takes in a message, and puts what is to be said into `replies`. False when nothing more will be said.
    pub(crate) fn handle_message(
        &mut self,
        message: ProcessingRequest,
        moment: CallContext,
        replies: &mut ReplyQueue,
    ) -> bool {
        if message.observability_mode {
            // Nobody reads replies.
            if let Some(event) = message.event {
                self.observer.get_or_insert_with(|| StreamObserver::new(moment.now)).observe(
                    &event,
                    &self.shared,
                    moment.now,
                );
            }
            return true;
        }
        let modes = *self.modes.get_or_insert_with(|| BodyModes::from_config(message.protocol_config.as_ref()));
        if let Some(event) = message.event.filter(|_| !self.refused)
            && let Err(refusal) = self.handle_event(modes, event, moment, replies)
        {
            self.refuse(refusal, replies);
        }
        !self.refused
    }

    fn refuse(&mut self, refusal: ProcessorRefusal, replies: &mut ReplyQueue) {
        self.refused = true;
        self.buffered = None;
        if let ProcessorRefusal::UnsupportedMode(words) = refusal
            && !self.shared.mode_warned.swap(true, Relaxed)
        {
            tracing::warn!("{words}");
        }
        replies.push_back(refusal.into_reply());
    }

    /// Whether a long piece of a body of this direction may be told as several: where each needs no reply of its own.
    pub(crate) fn accepts_chunks(&self, direction: Direction) -> bool {
        let mode = self.modes.map(|modes| match direction {
            Direction::Request => modes.request,
            Direction::Response => modes.response,
        });
        mode == Some(BodyMode::FullDuplexStreamed)
    }

    /// Whether a part of the request is held here until more of its body comes.
    pub(crate) fn is_buffering(&self) -> bool {
        self.buffered.is_some() || (self.reads_body && self.exchange.as_ref().is_some_and(Exchange::has_buffered))
    }

    /// How much room is needed before more of the body may come, in bytes.
    pub(crate) fn needs_permit(&self) -> Option<usize> {
        self.buffered.as_ref()?.needs_permit(&self.shared.buffer)
    }

    /// There is so much room now.
    pub(crate) fn set_permit(&mut self, room: Permit) {
        if let Some(held) = &mut self.buffered {
            held.set_permit(room);
        }
    }

    /// It was held for too long.
    pub(crate) fn time_out_buffer(&mut self, replies: &mut ReplyQueue) {
        let refusal = RequestRefusal::BufferTimeout { limit: self.shared.buffer.timeout };
        let refusal = match &mut self.exchange {
            Some(exchange) => exchange.refuse(refusal),
            None => refusal,
        };
        self.refuse(refusal.into(), replies);
    }

    pub(crate) fn shared(&self) -> &Arc<ProcessorShared> {
        &self.shared
    }

    fn handle_event(
        &mut self,
        modes: BodyModes,
        event: ProcessingEvent,
        moment: CallContext,
        replies: &mut ReplyQueue,
    ) -> Result<(), ProcessorRefusal> {
        match event {
            ProcessingEvent::RequestHeaders(headers) => self.request_headers(modes.request, &headers, moment, replies),
            ProcessingEvent::RequestBody(body) => self.request_body(modes.request, &body, moment, replies),
            ProcessingEvent::RequestTrailers(_) => self.request_trailers(modes.request, replies),
            ProcessingEvent::ResponseHeaders(headers) => {
                replies.push_back(self.response_headers(modes.response, &headers, moment));
                Ok(())
            }
            ProcessingEvent::ResponseBody(body) => {
                match (modes.response, &mut self.restorer) {
                    (mode, Some(restoring)) => restoring.handle_body(mode, &body, replies),
                    (BodyMode::FullDuplexStreamed, None) => {
                        push_body_chunks(Direction::Response, vec![body.body], body.end_of_stream, replies)
                    }
                    _ => replies.push_back(ProcessorReply::response_body()),
                }
                Ok(())
            }
            ProcessingEvent::ResponseTrailers(_) => {
                if let Some(restoring) = &mut self.restorer {
                    restoring.handle_trailers(modes.response, replies)?;
                }
                replies.push_back(ProcessorReply::response_trailers());
                Ok(())
            }
        }
    }

    fn request_headers(
        &mut self,
        mode: BodyMode,
        message: &HttpHeaders,
        moment: CallContext,
        replies: &mut ReplyQueue,
    ) -> Result<(), ProcessorRefusal> {
        if mode == BodyMode::Unsupported {
            return Err(ProcessorRefusal::UnsupportedMode(UNSUPPORTED_MODE));
        }
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        let target = headers.first(":path").and_then(|path| str::from_utf8(path).ok()).unwrap_or("/");
        let head = RequestHead { path_and_query: target, headers, has_body: !message.end_of_stream };
        let (mut exchange, action) = Exchange::begin(&self.shared.active_rules, self.shared.guard, &head, moment.now);
        self.internal_headers = InternalHeaders::from_headers(headers);
        let mut how = self.shared.rewrite.clone();
        match action {
            HeadAction::Refuse(refusal) => return Err(refusal.into()),
            HeadAction::Forward => {}
            HeadAction::ReadBody if mode == BodyMode::None => {
                // The one way in which a rule can be applied to a body that is not seen.
                how.mode = RewriteMode::Header;
                match headers.first(MODEL_HEADER).and_then(|model| str::from_utf8(model.trim_ascii()).ok()) {
                    Some(model) if !model.is_empty() => exchange.route_by_model(model, moment.random, moment.now)?,
                    _ => exchange.skip_body(),
                }
            }
            HeadAction::ReadBody if how.sets_model_headers() && mode == BodyMode::Streamed => {
                return Err(ProcessorRefusal::UnsupportedMode(NO_MODEL_HEADERS_MODE));
            }
            HeadAction::ReadBody => {
                self.reads_body = true;
                if how.mode == RewriteMode::Header {
                    exchange.preserve_body();
                }
                if how.sets_model_headers() && mode == BodyMode::FullDuplexStreamed {
                    self.buffered = Some(BufferedBody::new(headers));
                    self.exchange = Some(exchange);
                    return Ok(());
                }
            }
        }
        let change = if self.reads_body {
            self.internal_headers.removal()
        } else {
            self.internal_headers.mutation(&how, &exchange)
        };
        replies.push_back(ProcessorReply::request_headers(change));
        self.exchange = Some(exchange);
        Ok(())
    }

    fn request_body(
        &mut self,
        mode: BodyMode,
        message: &HttpBody,
        moment: CallContext,
        replies: &mut ReplyQueue,
    ) -> Result<(), ProcessorRefusal> {
        let exchange = self.exchange.as_mut().filter(|_| self.reads_body);
        match (mode, exchange) {
            (BodyMode::FullDuplexStreamed, Some(exchange)) => {
                let slices = rewrite_chunk(exchange, message, moment)?;
                let Some(slices) =
                    buffer_until_routed(&mut self.buffered, exchange, &self.shared, slices, message.end_of_stream)?
                else {
                    return Ok(());
                };
                if let Some(held) = self.buffered.take() {
                    replies.push_back(ProcessorReply::request_headers(
                        self.internal_headers.mutation(&self.shared.rewrite, exchange),
                    ));
                    drop(held);
                }
                push_body_chunks(Direction::Request, slices, message.end_of_stream, replies);
            }
            (BodyMode::FullDuplexStreamed, None) => {
                push_body_chunks(Direction::Request, vec![message.body.clone()], message.end_of_stream, replies);
            }
            (BodyMode::Buffered, Some(exchange)) => {
                replies.push_back(rewrite_whole(
                    exchange,
                    &message.body,
                    moment,
                    &self.shared,
                    &self.internal_headers,
                )?);
            }
            (BodyMode::Streamed, Some(exchange)) => {
                let body = Bytes::from(rewrite_chunk(exchange, message, moment)?.concat());
                replies.push_back(ProcessorReply::request_body((body != message.body).then_some(body), None));
            }
            _ => replies.push_back(ProcessorReply::request_body(None, None)),
        }
        Ok(())
    }

    /// The body has ended, and no piece of it has said so.
    fn request_trailers(&mut self, mode: BodyMode, replies: &mut ReplyQueue) -> Result<(), ProcessorRefusal> {
        let in_pieces = self.reads_body && matches!(mode, BodyMode::FullDuplexStreamed | BodyMode::Streamed);
        if let Some(exchange) = self.exchange.as_mut().filter(|_| in_pieces) {
            let mut slices = Vec::new();
            exchange.request_end(&mut slices)?;
            if mode == BodyMode::Streamed && !slices.is_empty() {
                // There is no reply left in which it could go on.
                return Err(exchange.refuse(RequestRefusal::MalformedBody).into());
            }
            if let Some(held) = self.buffered.take() {
                replies.push_back(ProcessorReply::request_headers(
                    self.internal_headers.mutation(&self.shared.rewrite, exchange),
                ));
                slices = held.joined_with(slices);
            }
            push_body_chunks(Direction::Request, slices, false, replies);
        }
        replies.push_back(ProcessorReply::request_trailers());
        Ok(())
    }

    fn response_headers(&mut self, mode: BodyMode, message: &HttpHeaders, moment: CallContext) -> ProcessorReply {
        // A filter that is not shown the request's headers changes nothing.
        let Some(exchange) = &mut self.exchange else { return ProcessorReply::response_headers(None) };
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        let target = exchange.response_head(response_status(headers), moment.now);
        if self.shared.rewrite.restore_model && !message.end_of_stream {
            self.restorer = ResponseRestorer::new(mode, exchange, headers);
        }
        // What a server says under names that mean nothing there; ours is overwritten where there is something to say.
        let is_foreign = |name: &&str| (**name != *TARGET_HEADER || target.is_none()) && headers.first(name).is_some();
        let foreign = REQUEST_ONLY_HEADERS.into_iter().filter(is_foreign);
        let mut change = HeaderMutation::remove(foreign);
        if let Some(target) = &target {
            let value = Bytes::copy_from_slice(target.as_bytes());
            change.set_headers =
                HeaderMutation::overwrite([(HeaderName::from_static(TARGET_HEADER), value)]).set_headers;
        }
        ProcessorReply::response_headers(
            (!change.set_headers.is_empty() || !change.remove_headers.is_empty()).then_some(change),
        )
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.shared.streams.dec();
        if let Some(observer) = self.observer.take() {
            observer.end((self.shared.clock)());
        }
        if let Some(exchange) = self.exchange.take() {
            exchange.end((self.shared.clock)());
        }
    }
}

/// Why a client is answered here.
#[derive(Debug)]
enum ProcessorRefusal {
    /// The router says so.
    Router(RequestRefusal),
    /// The filter is set up in a way that nothing can be done in, and what to do about that.
    UnsupportedMode(&'static str),
}

impl From<RequestRefusal> for ProcessorRefusal {
    fn from(refusal: RequestRefusal) -> Self {
        Self::Router(refusal)
    }
}

impl ProcessorRefusal {
    fn into_reply(self) -> ProcessorReply {
        match self {
            Self::Router(refusal) => ProcessorReply::immediate(refusal.status(), refusal.body(), refusal.reason()),
            Self::UnsupportedMode(words) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                ProcessorReply::immediate(status, error_body(status, words, None), "UnsupportedMode")
            }
        }
    }
}

const UNSUPPORTED_MODE: &str = "Envoy's ext_proc filter shows only a part of the request's body, or parts that cannot be \
                           read: set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED";

const NO_MODEL_HEADERS_MODE: &str = "Envoy's ext_proc filter has no place for headers that tell the model, which --routing-headers \
                        and --rewrite header ask for: set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED";

/// What may go on of a body whose next slices are these: all, where nothing waits; otherwise nothing until the model is
/// known.
fn buffer_until_routed(
    held: &mut Option<BufferedBody>,
    exchange: &mut Exchange,
    rules: &ProcessorShared,
    slices: Vec<Bytes>,
    end_of_stream: bool,
) -> Result<Option<Vec<Bytes>>, RequestRefusal> {
    let Some(waiting) = held else { return Ok(Some(slices)) };
    if end_of_stream || !exchange.awaits_model() {
        return Ok(Some(waiting.joined_with(slices)));
    }
    waiting.push(slices);
    if waiting.exceeds_limit(&rules.buffer) {
        return Err(exchange.refuse(RequestRefusal::BufferLimitExceeded { limit: rules.buffer.limit }));
    }
    Ok(None)
}

/// The next piece of a body: what goes on.
fn rewrite_chunk(
    exchange: &mut Exchange,
    message: &HttpBody,
    moment: CallContext,
) -> Result<Vec<Bytes>, RequestRefusal> {
    let mut slices = Vec::with_capacity(4);
    exchange.request_chunk(&message.body, moment.random, moment.now, &mut slices)?;
    if message.end_of_stream {
        exchange.request_end(&mut slices)?;
    }
    Ok(slices)
}

/// A whole body: the reply, with the new length, without which Envoy answers 500.
fn rewrite_whole(
    exchange: &mut Exchange,
    body: &Bytes,
    moment: CallContext,
    rules: &ProcessorShared,
    sent: &InternalHeaders,
) -> Result<ProcessorReply, RequestRefusal> {
    let limit = rules.max_body;
    if body.len() > limit {
        return Err(exchange.refuse(RequestRefusal::BodyTooLarge { limit }));
    }
    match exchange.request_body(body, moment.random, moment.now) {
        BodyAction::Refuse(refusal) => Err(refusal),
        BodyAction::Forward => Ok(ProcessorReply::request_body(None, sent.late_mutation(&rules.rewrite, exchange))),
        BodyAction::Replace(spliced) => {
            let length = Bytes::from(spliced.len().to_string());
            let length = HeaderMutation::overwrite([(CONTENT_LENGTH, length)]);
            let mut change = sent.late_mutation(&rules.rewrite, exchange).unwrap_or_default();
            change.mutation.set_headers.extend(length.set_headers);
            Ok(ProcessorReply::request_body(Some(spliced.into_bytes()), Some(change)))
        }
    }
}

/// Sends slices of a body on, in pieces that are short enough; nothing where there is nothing to say. What fits joins the
/// piece that waits before it.
pub(crate) fn push_body_chunks(
    direction: Direction,
    mut slices: Vec<Bytes>,
    end_of_stream: bool,
    replies: &mut ReplyQueue,
) {
    slices.retain(|slice| !slice.is_empty());
    if slices.is_empty() && !end_of_stream {
        return;
    }
    let mut part = match replies.pop_back() {
        Some(ProcessorReply::BodyChunk(part)) if part.direction == direction && !part.end_of_stream => part,
        other => {
            replies.extend(other);
            BodyChunk { direction, slices: Vec::with_capacity(slices.len()), end_of_stream: false }
        }
    };
    let mut room = MAX_BODY_CHUNK.saturating_sub(part.body_length());
    for mut slice in slices {
        while slice.len() > room {
            part.slices.extend((room > 0).then(|| slice.split_to(room)));
            let slices = std::mem::take(&mut part.slices);
            replies.push_back(ProcessorReply::BodyChunk(BodyChunk { direction, slices, end_of_stream: false }));
            room = MAX_BODY_CHUNK;
        }
        room -= slice.len();
        part.slices.push(slice);
    }
    part.end_of_stream = end_of_stream;
    replies.push_back(ProcessorReply::BodyChunk(part));
}

/// The response's status. One that Envoy does not tell counts as a success, as Envoy would not have passed it on.
fn response_status(headers: &HeaderMap) -> StatusCode {
    headers.first(":status").and_then(|status| StatusCode::from_bytes(status).ok()).unwrap_or(StatusCode::OK)
}
