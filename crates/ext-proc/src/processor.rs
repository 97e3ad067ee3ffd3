//! One stream of Envoy, which is one request: messages go in, replies come out.
//!
//! | mode of the request's body | headers | body |
//! |---|---|---|
//! | `FULL_DUPLEX_STREAMED` | answered at once | goes on as it comes, in pieces of at most [`LONGEST_PART`] |
//! | `BUFFERED` | answered at once | as a whole, with its new `content-length` |
//! | `STREAMED` | answered at once | one reply for each piece, in order |
//! | `NONE` | answered at once | not seen: the request counts as unreadable |
//! | others | refused: they show a part of the body, and pass the rest unseen | |
//!
//! How a stream ends says nothing: a normal end often arrives as a reset, and a client that gives up as a normal end.
//! What is counted follows from the [`Exchange`] alone. No network: a function of its messages, and of time and
//! chance as they are told.

mod mode;
#[cfg(test)]
mod tests;

use crate::protocol::{
    BodyPart, Direction, Event, HeaderMap, HeaderMutation, HttpBody, HttpHeaders, ProcessingRequest, Reply,
};
use bytes::Bytes;
use http::{HeaderName, StatusCode, header::CONTENT_LENGTH};
use jiff::Timestamp;
use mode::{Mode, Modes};
use prometheus_client::metrics::gauge::Gauge;
use rollora_router::{
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::Guard,
    headers::{Headers, INTERNAL, TARGET_HEADER},
    in_force::InForce,
    refusal::{Refusal, error_body},
};
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// The longest piece of a body in one reply: Envoy's advice is to stay below 64 KiB.
pub(crate) const LONGEST_PART: usize = 62_000;

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) in_force: Arc<InForce>,
    pub(crate) guard: Guard,
    /// The longest body that is taken as a whole.
    pub(crate) max_body: usize,
    /// A filter that cannot be served was told of in the log.
    pub(crate) complained: AtomicBool,
    /// How many streams there are.
    pub(crate) streams: Gauge,
    /// Asked when a stream ends; at all other times it is told.
    pub(crate) clock: fn() -> Timestamp,
}

/// Time and chance, as they are told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: Timestamp,
    /// Any number, all being equally likely.
    pub(crate) random: u64,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Processor {
    rules: Arc<Rules>,
    modes: Option<Modes>,
    exchange: Option<Exchange>,
    /// The body goes through the exchange.
    reads_body: bool,
    /// The client has been answered here: nothing more is said.
    answered: bool,
}

/// Replies that are waiting to be written.
pub(crate) type Replies = VecDeque<Reply>;

impl Processor {
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        rules.streams.inc();
        Self { rules, modes: None, exchange: None, reads_body: false, answered: false }
    }

    /// Takes in a message, and puts what is to be said into `replies`. False when nothing more will be said.
    pub(crate) fn take(&mut self, message: ProcessingRequest, moment: Moment, replies: &mut Replies) -> bool {
        let modes = *self.modes.get_or_insert_with(|| Modes::of(message.protocol_config.as_ref()));
        let before = replies.len();
        if let Some(event) = message.event.filter(|_| !self.answered)
            && let Err(refusal) = self.event(modes, event, moment, replies)
        {
            self.answered = true;
            if matches!(refusal, Refused::Mode) && !self.rules.complained.swap(true, Relaxed) {
                tracing::warn!("{UNSUPPORTED}");
            }
            replies.push_back(refusal.into_reply());
        }
        if message.observability_mode {
            // Nobody reads them.
            replies.truncate(before);
        }
        !self.answered
    }

    fn event(&mut self, modes: Modes, event: Event, moment: Moment, replies: &mut Replies) -> Result<(), Refused> {
        match event {
            Event::RequestHeaders(headers) => self.request_headers(modes.request, &headers, moment, replies),
            Event::RequestBody(body) => self.request_body(modes.request, &body, moment, replies),
            Event::RequestTrailers(_) => self.request_trailers(modes.request, replies),
            Event::ResponseHeaders(headers) => {
                replies.push_back(self.response_headers(&headers, moment));
                Ok(())
            }
            Event::ResponseBody(body) => {
                match modes.response {
                    Mode::Duplex => parts(Direction::Response, vec![body.body], body.end_of_stream, replies),
                    _ => replies.push_back(Reply::response_body()),
                }
                Ok(())
            }
            Event::ResponseTrailers(_) => {
                replies.push_back(Reply::response_trailers());
                Ok(())
            }
        }
    }

    fn request_headers(
        &mut self,
        mode: Mode,
        message: &HttpHeaders,
        moment: Moment,
        replies: &mut Replies,
    ) -> Result<(), Refused> {
        if mode == Mode::Unsupported {
            return Err(Refused::Mode);
        }
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        let target = headers.first(":path").and_then(|path| str::from_utf8(path).ok()).unwrap_or("/");
        let head = RequestHead { target, headers, has_body: !message.end_of_stream };
        let (mut exchange, action) = Exchange::begin(&self.rules.in_force, self.rules.guard, &head, moment.now);
        match action {
            HeadAction::Refuse(refusal) => return Err(refusal.into()),
            HeadAction::Forward => {}
            HeadAction::ReadBody if mode == Mode::None => exchange.body_unseen(),
            HeadAction::ReadBody => self.reads_body = true,
        }
        self.exchange = Some(exchange);
        replies.push_back(Reply::request_headers(without_internal(headers)));
        Ok(())
    }

    fn request_body(
        &mut self,
        mode: Mode,
        message: &HttpBody,
        moment: Moment,
        replies: &mut Replies,
    ) -> Result<(), Refused> {
        let exchange = self.exchange.as_mut().filter(|_| self.reads_body);
        match (mode, exchange) {
            (Mode::Duplex, Some(exchange)) => {
                let slices = piece(exchange, message, moment)?;
                parts(Direction::Request, slices, message.end_of_stream, replies);
            }
            (Mode::Duplex, None) => {
                parts(Direction::Request, vec![message.body.clone()], message.end_of_stream, replies);
            }
            (Mode::Buffered, Some(exchange)) => replies.push_back(whole(exchange, &message.body, moment, &self.rules)?),
            (Mode::Streamed, Some(exchange)) => {
                let body = Bytes::from(piece(exchange, message, moment)?.concat());
                replies.push_back(Reply::request_body((body != message.body).then_some(body), None));
            }
            _ => replies.push_back(Reply::request_body(None, None)),
        }
        Ok(())
    }

    /// The body has ended, and no piece of it has said so.
    fn request_trailers(&mut self, mode: Mode, replies: &mut Replies) -> Result<(), Refused> {
        let in_pieces = self.reads_body && matches!(mode, Mode::Duplex | Mode::Streamed);
        if let Some(exchange) = self.exchange.as_mut().filter(|_| in_pieces) {
            let mut held = Vec::new();
            exchange.request_end(&mut held)?;
            if mode == Mode::Streamed && !held.is_empty() {
                // There is no reply left in which it could go on.
                return Err(exchange.refuse(Refusal::BrokenBody).into());
            }
            parts(Direction::Request, held, false, replies);
        }
        replies.push_back(Reply::request_trailers());
        Ok(())
    }

    fn response_headers(&mut self, message: &HttpHeaders, moment: Moment) -> Reply {
        // A filter that is not shown the request's headers changes nothing.
        let Some(exchange) = &mut self.exchange else { return Reply::response_headers(None) };
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        let target = exchange.response_head(status(headers), moment.now);
        Reply::response_headers(match target {
            Some(target) => {
                let value = Bytes::copy_from_slice(target.as_bytes());
                Some(HeaderMutation::setting([(HeaderName::from_static(TARGET_HEADER), value)]))
            }
            None => headers.first(TARGET_HEADER).map(|_| HeaderMutation::removing([TARGET_HEADER])),
        })
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.rules.streams.dec();
        if let Some(exchange) = self.exchange.take() {
            exchange.end((self.rules.clock)());
        }
    }
}

/// Why a client is answered here.
#[derive(Debug)]
enum Refused {
    /// The router says so.
    Router(Refusal),
    /// The filter is set up in a way that nothing can be done in.
    Mode,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self::Router(refusal)
    }
}

impl Refused {
    fn into_reply(self) -> Reply {
        match self {
            Self::Router(refusal) => Reply::immediate(refusal.status(), refusal.body(), refusal.reason()),
            Self::Mode => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Reply::immediate(status, error_body(status, UNSUPPORTED, None), "UnsupportedMode")
            }
        }
    }
}

const UNSUPPORTED: &str = "Envoy's ext_proc filter shows only a part of the request's body, or parts that cannot be \
                           read: set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED";

/// The next piece of a body: what goes on.
fn piece(exchange: &mut Exchange, message: &HttpBody, moment: Moment) -> Result<Vec<Bytes>, Refusal> {
    let mut slices = Vec::with_capacity(4);
    exchange.request_piece(&message.body, moment.random, moment.now, &mut slices)?;
    if message.end_of_stream {
        exchange.request_end(&mut slices)?;
    }
    Ok(slices)
}

/// A whole body: the reply, with the new length, without which Envoy answers 500.
fn whole(exchange: &mut Exchange, body: &Bytes, moment: Moment, rules: &Rules) -> Result<Reply, Refusal> {
    let limit = rules.max_body;
    if body.len() > limit {
        return Err(exchange.refuse(Refusal::TooLarge { limit }));
    }
    match exchange.request_body(body, moment.random, moment.now) {
        BodyAction::Refuse(refusal) => Err(refusal),
        BodyAction::Pass => Ok(Reply::request_body(None, None)),
        BodyAction::Replace(spliced) => {
            let length = Bytes::from(spliced.len().to_string());
            let headers = HeaderMutation::setting([(CONTENT_LENGTH, length)]);
            Ok(Reply::request_body(Some(spliced.into_bytes()), Some(headers)))
        }
    }
}

/// Sends slices of a body on, in pieces that are short enough; nothing where there is nothing to say.
pub(crate) fn parts(direction: Direction, slices: Vec<Bytes>, end_of_stream: bool, replies: &mut Replies) {
    let length: usize = slices.iter().map(Bytes::len).sum();
    if length == 0 && !end_of_stream {
        return;
    }
    let mut part =
        |slices, end_of_stream| replies.push_back(Reply::Body(BodyPart { direction, slices, end_of_stream }));
    if length <= LONGEST_PART {
        return part(slices, end_of_stream);
    }
    let (mut next, mut room) = (Vec::new(), LONGEST_PART);
    for mut slice in slices {
        while slice.len() > room {
            next.push(slice.split_to(room));
            part(std::mem::take(&mut next), false);
            room = LONGEST_PART;
        }
        room -= slice.len();
        next.push(slice);
    }
    part(next, end_of_stream);
}

/// Removes what a client must not say, where it does.
fn without_internal(headers: &HeaderMap) -> Option<HeaderMutation> {
    let is_internal = |name: &&[u8]| name.starts_with(b"x-") && INTERNAL.iter().any(|other| other.as_bytes() == *name);
    let mut names: Vec<&str> = headers
        .headers
        .iter()
        .map(|line| &line.key[..])
        .filter(is_internal)
        .filter_map(|name| str::from_utf8(name).ok())
        .collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| HeaderMutation::removing(names))
}

/// The response's status. One that Envoy does not tell counts as a success, as Envoy would not have passed it on.
fn status(headers: &HeaderMap) -> StatusCode {
    headers.first(":status").and_then(|status| StatusCode::from_bytes(status).ok()).unwrap_or(StatusCode::OK)
}
