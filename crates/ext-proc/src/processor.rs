//! Processor of one ext_proc stream, which is one request: messages in, replies out.
//!
//! | mode of the request body | reply to the headers | body |
//! |---|---|---|
//! | `FULL_DUPLEX_STREAMED` | immediate, or see below | forwarded as it arrives, in chunks up to [`MAX_BODY_CHUNK`] |
//! | `BUFFERED` | immediate | whole, with its new `content-length` |
//! | `STREAMED` | immediate | one reply for each chunk, in order |
//! | `NONE` | immediate | not visible: the model is the value of [`MODEL_HEADER`], set by an earlier filter |
//! | others | refused: they show a part of the body and forward the rest without showing it | |
//!
//! If headers depend on the model ([`RewriteOptions::sets_model_headers`]), full duplex mode allows them only in the
//! reply to the headers: that reply waits for the model, and so does the body ([`buffer`]). In `BUFFERED` mode they are
//! set in the reply to the body. `STREAMED` mode cannot carry them and is refused.
//!
//! The requested model name is restored in response bodies that are visible, if that is enabled
//! ([`response_restorer`]).
//!
//! A filter in observability mode gets no replies; its messages are only counted ([`observer`]).
//!
//! How a stream ends carries no information: a normal end often arrives as a reset, and a client that cancels often as
//! a normal end. Metrics follow from the [`Exchange`] alone. The processor does no I/O: it is a function of its
//! messages, the time and random numbers.

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
    proto::{self, BodyChunk, Direction, ProcessorReply},
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

/// Maximum length of a body chunk in one reply, in bytes: Envoy recommends less than 64 KiB.
pub(crate) const MAX_BODY_CHUNK: usize = 62_000;

/// State that all streams of a server share.
#[derive(Debug)]
pub(crate) struct ProcessorShared {
    pub(crate) active_rules: Arc<ActiveRules>,
    pub(crate) guard: PathGuard,
    /// How the selected target is passed on: in the body or in headers.
    pub(crate) rewrite: RewriteOptions,
    /// Limits of the buffers for request bodies.
    pub(crate) buffer: BufferBudget,
    /// Metrics of filters in observability mode.
    pub(crate) observed: ObservedMetrics,
    /// Maximum length of a body in `BUFFERED` mode, in bytes.
    pub(crate) max_body: usize,
    /// Whether an unsupported body mode was logged already.
    pub(crate) mode_warned: AtomicBool,
    /// Gauge of open streams.
    pub(crate) streams: Gauge,
    /// Clock for the end of a stream; all other events come with their time.
    pub(crate) clock: fn() -> Timestamp,
}

/// Time and random number for one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext {
    pub(crate) now: Timestamp,
    /// Random number, uniform over `u64`.
    pub(crate) random: u64,
}

/// State of one stream.
#[derive(Debug)]
pub(crate) struct Processor {
    shared: Arc<ProcessorShared>,
    modes: Option<BodyModes>,
    exchange: Option<Exchange>,
    /// Internal headers that the client sent.
    internal_headers: InternalHeaders,
    /// The body so far, while the reply to the headers waits for the model.
    buffered: Option<BufferedBody>,
    observer: Option<StreamObserver>,
    /// Restores the model name in the response body, if enabled.
    restorer: Option<ResponseRestorer>,
    /// Whether the request body goes through the exchange.
    reads_body: bool,
    /// Whether an immediate response was sent, after which no reply may follow.
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

    /// Handles a message and appends the replies to `replies`. Returns false if no further reply will follow.
    pub(crate) fn handle_message(
        &mut self,
        message: proto::ProcessingRequest,
        context: CallContext,
        replies: &mut ReplyQueue,
    ) -> bool {
        if message.observability_mode {
            // Envoy does not read replies in this mode.
            if let Some(event) = message.event {
                self.observer.get_or_insert_with(|| StreamObserver::new(context.now)).observe(
                    &event,
                    &self.shared,
                    context.now,
                );
            }
            return true;
        }
        let modes = *self.modes.get_or_insert_with(|| BodyModes::from_config(message.protocol_config.as_ref()));
        if let Some(event) = message.event.filter(|_| !self.refused)
            && let Err(refusal) = self.handle_event(modes, event, context, replies)
        {
            self.refuse(refusal, replies);
        }
        !self.refused
    }

    fn refuse(&mut self, refusal: ProcessorRefusal, replies: &mut ReplyQueue) {
        self.refused = true;
        self.buffered = None;
        if let ProcessorRefusal::UnsupportedMode(message) = refusal
            && !self.shared.mode_warned.swap(true, Relaxed)
        {
            tracing::warn!("{message}");
        }
        replies.push_back(refusal.into_reply());
    }

    /// Returns whether a long body message of this direction may be handled in parts. That is possible only in the mode
    /// that does not require one reply for each message.
    pub(crate) fn accepts_chunks(&self, direction: Direction) -> bool {
        let mode = self.modes.map(|modes| match direction {
            Direction::Request => modes.request,
            Direction::Response => modes.response,
        });
        mode == Some(BodyMode::FullDuplexStreamed)
    }

    /// Returns whether a part of the request is buffered until more of its body arrives.
    pub(crate) fn is_buffering(&self) -> bool {
        self.buffered.is_some() || (self.reads_body && self.exchange.as_ref().is_some_and(Exchange::has_buffered))
    }

    /// Returns how many bytes of the buffer budget are needed before more of the body may be received. `None` if none
    /// are needed.
    pub(crate) fn needs_permit(&self) -> Option<usize> {
        self.buffered.as_ref()?.needs_permit(&self.shared.buffer)
    }

    /// Passes the acquired part of the buffer budget.
    pub(crate) fn set_permit(&mut self, permit: Permit) {
        if let Some(buffered) = &mut self.buffered {
            buffered.set_permit(permit);
        }
    }

    /// Refuses the request because nothing arrived while a part of it was buffered.
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
        event: proto::ProcessingEvent,
        context: CallContext,
        replies: &mut ReplyQueue,
    ) -> Result<(), ProcessorRefusal> {
        match event {
            proto::ProcessingEvent::RequestHeaders(headers) => {
                self.request_headers(modes.request, &headers, context, replies)
            }
            proto::ProcessingEvent::RequestBody(body) => self.request_body(modes.request, &body, context, replies),
            proto::ProcessingEvent::RequestTrailers(_) => self.request_trailers(modes.request, replies),
            proto::ProcessingEvent::ResponseHeaders(headers) => {
                replies.push_back(self.response_headers(modes.response, &headers, context));
                Ok(())
            }
            proto::ProcessingEvent::ResponseBody(body) => {
                match (modes.response, &mut self.restorer) {
                    (mode, Some(restorer)) => restorer.handle_body(mode, &body, replies),
                    (BodyMode::FullDuplexStreamed, None) => {
                        push_body_chunks(Direction::Response, vec![body.body], body.end_of_stream, replies);
                    }
                    _ => replies.push_back(ProcessorReply::response_body()),
                }
                Ok(())
            }
            proto::ProcessingEvent::ResponseTrailers(_) => {
                if let Some(restorer) = &mut self.restorer {
                    restorer.handle_trailers(modes.response, replies)?;
                }
                replies.push_back(ProcessorReply::response_trailers());
                Ok(())
            }
        }
    }

    fn request_headers(
        &mut self,
        mode: BodyMode,
        message: &proto::HttpHeaders,
        context: CallContext,
        replies: &mut ReplyQueue,
    ) -> Result<(), ProcessorRefusal> {
        if mode == BodyMode::Unsupported {
            return Err(ProcessorRefusal::UnsupportedMode(UNSUPPORTED_MODE));
        }
        let no_headers = proto::HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&no_headers);
        let path_and_query = headers.first(":path").and_then(|path| str::from_utf8(path).ok()).unwrap_or("/");
        let head = RequestHead { path_and_query, headers, has_body: !message.end_of_stream };
        let (mut exchange, action) = Exchange::begin(&self.shared.active_rules, self.shared.guard, &head, context.now);
        self.internal_headers = InternalHeaders::from_headers(headers);
        let mut options = self.shared.rewrite.clone();
        match action {
            HeadAction::Refuse(refusal) => return Err(refusal.into()),
            HeadAction::Forward => {}
            HeadAction::ReadBody if mode == BodyMode::None => {
                // Without the body, a header is the only way to pass the target.
                options.mode = RewriteMode::Header;
                match headers.first(MODEL_HEADER).and_then(|model| str::from_utf8(model.trim_ascii()).ok()) {
                    Some(model) if !model.is_empty() => exchange.route_by_model(model, context.random, context.now)?,
                    _ => exchange.skip_body(),
                }
            }
            HeadAction::ReadBody if options.sets_model_headers() && mode == BodyMode::Streamed => {
                return Err(ProcessorRefusal::UnsupportedMode(NO_MODEL_HEADERS_MODE));
            }
            HeadAction::ReadBody => {
                self.reads_body = true;
                if options.mode == RewriteMode::Header {
                    exchange.preserve_body();
                }
                if options.sets_model_headers() && mode == BodyMode::FullDuplexStreamed {
                    self.buffered = Some(BufferedBody::new(headers));
                    self.exchange = Some(exchange);
                    return Ok(());
                }
            }
        }
        let change = if self.reads_body {
            self.internal_headers.removal()
        } else {
            self.internal_headers.mutation(&options, &exchange)
        };
        replies.push_back(ProcessorReply::request_headers(change));
        self.exchange = Some(exchange);
        Ok(())
    }

    fn request_body(
        &mut self,
        mode: BodyMode,
        message: &proto::HttpBody,
        context: CallContext,
        replies: &mut ReplyQueue,
    ) -> Result<(), ProcessorRefusal> {
        let exchange = self.exchange.as_mut().filter(|_| self.reads_body);
        match (mode, exchange) {
            (BodyMode::FullDuplexStreamed, Some(exchange)) => {
                let slices = rewrite_chunk(exchange, message, context)?;
                let Some(slices) =
                    buffer_until_routed(&mut self.buffered, exchange, &self.shared, slices, message.end_of_stream)?
                else {
                    return Ok(());
                };
                if let Some(buffered) = self.buffered.take() {
                    replies.push_back(ProcessorReply::request_headers(
                        self.internal_headers.mutation(&self.shared.rewrite, exchange),
                    ));
                    drop(buffered);
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
                    context,
                    &self.shared,
                    &self.internal_headers,
                )?);
            }
            (BodyMode::Streamed, Some(exchange)) => {
                let body = Bytes::from(rewrite_chunk(exchange, message, context)?.concat());
                replies.push_back(ProcessorReply::request_body((body != message.body).then_some(body), None));
            }
            _ => replies.push_back(ProcessorReply::request_body(None, None)),
        }
        Ok(())
    }

    /// Handles trailers, which end a body whose last chunk did not have `end_of_stream`.
    fn request_trailers(&mut self, mode: BodyMode, replies: &mut ReplyQueue) -> Result<(), ProcessorRefusal> {
        let in_chunks = self.reads_body && matches!(mode, BodyMode::FullDuplexStreamed | BodyMode::Streamed);
        if let Some(exchange) = self.exchange.as_mut().filter(|_| in_chunks) {
            let mut slices = Vec::new();
            exchange.request_end(&mut slices)?;
            if mode == BodyMode::Streamed && !slices.is_empty() {
                // No reply is left that could carry the buffered bytes.
                return Err(exchange.refuse(RequestRefusal::MalformedBody).into());
            }
            if let Some(buffered) = self.buffered.take() {
                replies.push_back(ProcessorReply::request_headers(
                    self.internal_headers.mutation(&self.shared.rewrite, exchange),
                ));
                slices = buffered.joined_with(slices);
            }
            push_body_chunks(Direction::Request, slices, false, replies);
        }
        replies.push_back(ProcessorReply::request_trailers());
        Ok(())
    }

    fn response_headers(
        &mut self,
        mode: BodyMode,
        message: &proto::HttpHeaders,
        context: CallContext,
    ) -> ProcessorReply {
        // Without the request headers there is no exchange, and the response stays unchanged.
        let Some(exchange) = &mut self.exchange else { return ProcessorReply::response_headers(None) };
        let no_headers = proto::HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&no_headers);
        let target = exchange.response_head(response_status(headers), context.now);
        if self.shared.rewrite.restore_model && !message.end_of_stream {
            self.restorer = ResponseRestorer::new(mode, exchange, headers);
        }
        // Internal headers in a response were set by the server, so they are removed. The target header is overwritten
        // instead if there is a target.
        let is_untrusted =
            |name: &&str| (**name != *TARGET_HEADER || target.is_none()) && headers.first(name).is_some();
        let untrusted = REQUEST_ONLY_HEADERS.into_iter().filter(is_untrusted);
        let mut change = proto::HeaderMutation::remove(untrusted);
        if let Some(target) = &target {
            let value = Bytes::copy_from_slice(target.as_bytes());
            change.set_headers =
                proto::HeaderMutation::overwrite([(HeaderName::from_static(TARGET_HEADER), value)]).set_headers;
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

/// Why the processor responds to the client itself.
#[derive(Debug)]
enum ProcessorRefusal {
    /// The router refused the request.
    Router(RequestRefusal),
    /// The body mode of the filter is not supported; contains the message for the user.
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
            Self::UnsupportedMode(message) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                ProcessorReply::immediate(status, error_body(status, message, None), "UnsupportedMode")
            }
        }
    }
}

const UNSUPPORTED_MODE: &str = "the request_body_mode of Envoy's ext_proc filter is not supported, because it shows \
                                only a part of the body or cannot be read: set request_body_mode to \
                                FULL_DUPLEX_STREAMED or BUFFERED";

const NO_MODEL_HEADERS_MODE: &str = "the request_body_mode of Envoy's ext_proc filter does not allow headers that \
                                     depend on the model, which --routing-headers and --rewrite header need: set \
                                     request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED";

/// Returns the slices to forward after these slices have arrived: all buffered ones if the target is decided or the
/// body has ended, `None` while the model is not known.
fn buffer_until_routed(
    buffered: &mut Option<BufferedBody>,
    exchange: &mut Exchange,
    shared: &ProcessorShared,
    slices: Vec<Bytes>,
    end_of_stream: bool,
) -> Result<Option<Vec<Bytes>>, RequestRefusal> {
    let Some(body) = buffered else { return Ok(Some(slices)) };
    if end_of_stream || !exchange.awaits_model() {
        return Ok(Some(body.joined_with(slices)));
    }
    body.push(slices);
    if body.exceeds_limit(&shared.buffer) {
        return Err(exchange.refuse(RequestRefusal::BufferLimitExceeded { limit: shared.buffer.limit }));
    }
    Ok(None)
}

/// Passes a chunk to the exchange and returns the bytes to forward.
fn rewrite_chunk(
    exchange: &mut Exchange,
    message: &proto::HttpBody,
    context: CallContext,
) -> Result<Vec<Bytes>, RequestRefusal> {
    let mut slices = Vec::with_capacity(4);
    exchange.request_chunk(&message.body, context.random, context.now, &mut slices)?;
    if message.end_of_stream {
        exchange.request_end(&mut slices)?;
    }
    Ok(slices)
}

/// Passes a whole body to the exchange and returns the reply. It sets the new `content-length`, without which Envoy
/// responds with 500.
fn rewrite_whole(
    exchange: &mut Exchange,
    body: &Bytes,
    context: CallContext,
    shared: &ProcessorShared,
    internal_headers: &InternalHeaders,
) -> Result<ProcessorReply, RequestRefusal> {
    let limit = shared.max_body;
    if body.len() > limit {
        return Err(exchange.refuse(RequestRefusal::BodyTooLarge { limit }));
    }
    match exchange.request_body(body, context.random, context.now) {
        BodyAction::Refuse(refusal) => Err(refusal),
        BodyAction::Forward => {
            Ok(ProcessorReply::request_body(None, internal_headers.late_mutation(&shared.rewrite, exchange)))
        }
        BodyAction::Replace(spliced) => {
            let length = Bytes::from(spliced.len().to_string());
            let length = proto::HeaderMutation::overwrite([(CONTENT_LENGTH, length)]);
            let mut change = internal_headers.late_mutation(&shared.rewrite, exchange).unwrap_or_default();
            change.mutation.set_headers.extend(length.set_headers);
            Ok(ProcessorReply::request_body(Some(spliced.into_bytes()), Some(change)))
        }
    }
}

/// Queues body slices in chunks of at most [`MAX_BODY_CHUNK`]; queues nothing if there are no bytes and no end. Bytes
/// that fit are appended to the last queued chunk.
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
    let mut chunk = match replies.pop_back() {
        Some(ProcessorReply::BodyChunk(chunk)) if chunk.direction == direction && !chunk.end_of_stream => chunk,
        other => {
            replies.extend(other);
            BodyChunk { direction, slices: Vec::with_capacity(slices.len()), end_of_stream: false }
        }
    };
    let mut free_bytes = MAX_BODY_CHUNK.saturating_sub(chunk.body_length());
    for mut slice in slices {
        while slice.len() > free_bytes {
            chunk.slices.extend((free_bytes > 0).then(|| slice.split_to(free_bytes)));
            let slices = std::mem::take(&mut chunk.slices);
            replies.push_back(ProcessorReply::BodyChunk(BodyChunk { direction, slices, end_of_stream: false }));
            free_bytes = MAX_BODY_CHUNK;
        }
        free_bytes -= slice.len();
        chunk.slices.push(slice);
    }
    chunk.end_of_stream = end_of_stream;
    replies.push_back(ProcessorReply::BodyChunk(chunk));
}

/// Returns the status of the response. A missing one counts as a success, because Envoy would not have forwarded such a
/// response.
fn response_status(headers: &proto::HeaderMap) -> StatusCode {
    headers.first(":status").and_then(|status| StatusCode::from_bytes(status).ok()).unwrap_or(StatusCode::OK)
}
