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

mod hold;
mod how;
mod mode;
mod observer;
mod restoring;
mod sent;
#[cfg(test)]
mod tests;

pub(crate) use hold::{Hold, Room};
pub use how::{How, Rewrite};
pub(crate) use observer::Figures;

use crate::{
    grpc::Replies,
    protocol::{
        BodyPart, Direction, Event, HeaderMap, HeaderMutation, HttpBody, HttpHeaders, ProcessingRequest, Reply,
    },
};
use bytes::Bytes;
use hold::Held;
use http::{HeaderName, StatusCode, header::CONTENT_LENGTH};
use jiff::Timestamp;
use mode::{Mode, Modes};
use observer::Observer;
use prometheus_client::metrics::gauge::Gauge;
use restoring::Restoring;
use rollora_router::{
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::Guard,
    headers::{Headers, INTERNAL_TO_REQUESTS, MODEL_HEADER, TARGET_HEADER},
    in_force::InForce,
    refusal::{Refusal, error_body},
};
use sent::Sent;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// The longest piece of a body in one reply: Envoy's advice is to stay below 64 KiB.
pub(crate) const LONGEST_PART: usize = 62_000;

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) in_force: Arc<InForce>,
    pub(crate) guard: Guard,
    /// How a rule is applied and told.
    pub(crate) how: How,
    /// How much is held, and how long.
    pub(crate) hold: Hold,
    /// What filters in observability mode have seen.
    pub(crate) figures: Figures,
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
    /// What the client sent under internal names.
    sent: Sent,
    /// The headers' reply waits, and the body with it.
    held: Option<Held>,
    observer: Option<Observer>,
    /// The answer gets the client's name.
    restoring: Option<Restoring>,
    /// The body goes through the exchange.
    reads_body: bool,
    /// The client has been answered here: nothing more is said.
    answered: bool,
}

impl Processor {
    pub(crate) fn new(rules: Arc<Rules>) -> Self {
        rules.streams.inc();
        Self {
            rules,
            modes: None,
            exchange: None,
            sent: Sent::default(),
            held: None,
            observer: None,
            restoring: None,
            reads_body: false,
            answered: false,
        }
    }

    /// Takes in a message, and puts what is to be said into `replies`. False when nothing more will be said.
    pub(crate) fn take(&mut self, message: ProcessingRequest, moment: Moment, replies: &mut Replies) -> bool {
        if message.observability_mode {
            // Nobody reads replies.
            if let Some(event) = message.event {
                self.observer.get_or_insert_with(|| Observer::new(moment.now)).take(&event, &self.rules, moment.now);
            }
            return true;
        }
        let modes = *self.modes.get_or_insert_with(|| Modes::of(message.protocol_config.as_ref()));
        if let Some(event) = message.event.filter(|_| !self.answered)
            && let Err(refusal) = self.event(modes, event, moment, replies)
        {
            self.answer(refusal, replies);
        }
        !self.answered
    }

    fn answer(&mut self, refusal: Refused, replies: &mut Replies) {
        self.answered = true;
        self.held = None;
        if let Refused::Mode(words) = refusal
            && !self.rules.complained.swap(true, Relaxed)
        {
            tracing::warn!("{words}");
        }
        replies.push_back(refusal.into_reply());
    }

    /// Whether a long piece of a body of this direction may be told as several: where each needs no reply of its own.
    pub(crate) fn takes_pieces(&self, direction: Direction) -> bool {
        let mode = self.modes.map(|modes| match direction {
            Direction::Request => modes.request,
            Direction::Response => modes.response,
        });
        mode == Some(Mode::Duplex)
    }

    /// Whether a part of the request is held here until more of its body comes.
    pub(crate) fn is_holding(&self) -> bool {
        self.held.is_some() || (self.reads_body && self.exchange.as_ref().is_some_and(Exchange::holds))
    }

    /// How much room is needed before more of the body may come, in bytes.
    pub(crate) fn lacks_room(&self) -> Option<usize> {
        self.held.as_ref()?.lacks_room(&self.rules.hold)
    }

    /// There is so much room now.
    pub(crate) fn give_room(&mut self, room: Room) {
        if let Some(held) = &mut self.held {
            held.give_room(room);
        }
    }

    /// It was held for too long.
    pub(crate) fn held_too_long(&mut self, replies: &mut Replies) {
        let refusal = Refusal::HeldTooLong { limit: self.rules.hold.timeout };
        let refusal = match &mut self.exchange {
            Some(exchange) => exchange.refuse(refusal),
            None => refusal,
        };
        self.answer(refusal.into(), replies);
    }

    pub(crate) fn rules(&self) -> &Arc<Rules> {
        &self.rules
    }

    fn event(&mut self, modes: Modes, event: Event, moment: Moment, replies: &mut Replies) -> Result<(), Refused> {
        match event {
            Event::RequestHeaders(headers) => self.request_headers(modes.request, &headers, moment, replies),
            Event::RequestBody(body) => self.request_body(modes.request, &body, moment, replies),
            Event::RequestTrailers(_) => self.request_trailers(modes.request, replies),
            Event::ResponseHeaders(headers) => {
                replies.push_back(self.response_headers(modes.response, &headers, moment));
                Ok(())
            }
            Event::ResponseBody(body) => {
                match (modes.response, &mut self.restoring) {
                    (mode, Some(restoring)) => restoring.body(mode, &body, replies),
                    (Mode::Duplex, None) => parts(Direction::Response, vec![body.body], body.end_of_stream, replies),
                    _ => replies.push_back(Reply::response_body()),
                }
                Ok(())
            }
            Event::ResponseTrailers(_) => {
                if let Some(restoring) = &mut self.restoring {
                    restoring.trailers(modes.response, replies)?;
                }
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
            return Err(Refused::Mode(UNSUPPORTED));
        }
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        let target = headers.first(":path").and_then(|path| str::from_utf8(path).ok()).unwrap_or("/");
        let head = RequestHead { target, headers, has_body: !message.end_of_stream };
        let (mut exchange, action) = Exchange::begin(&self.rules.in_force, self.rules.guard, &head, moment.now);
        self.sent = Sent::of(headers);
        let mut how = self.rules.how.clone();
        match action {
            HeadAction::Refuse(refusal) => return Err(refusal.into()),
            HeadAction::Forward => {}
            HeadAction::ReadBody if mode == Mode::None => {
                // The one way in which a rule can be applied to a body that is not seen.
                how.rewrite = Rewrite::Header;
                match headers.first(MODEL_HEADER).and_then(|model| str::from_utf8(model.trim_ascii()).ok()) {
                    Some(model) if !model.is_empty() => exchange.body_named(model, moment.random, moment.now)?,
                    _ => exchange.body_unseen(),
                }
            }
            HeadAction::ReadBody if how.tells_headers() && mode == Mode::Streamed => {
                return Err(Refused::Mode(NO_PLACE));
            }
            HeadAction::ReadBody => {
                self.reads_body = true;
                if how.rewrite == Rewrite::Header {
                    exchange.leave_body();
                }
                if how.tells_headers() && mode == Mode::Duplex {
                    self.held = Some(Held::new(headers));
                    self.exchange = Some(exchange);
                    return Ok(());
                }
            }
        }
        let change = if self.reads_body { self.sent.removed() } else { self.sent.change(&how, &exchange) };
        replies.push_back(Reply::request_headers(change));
        self.exchange = Some(exchange);
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
                let Some(slices) = hold(&mut self.held, exchange, &self.rules, slices, message.end_of_stream)? else {
                    return Ok(());
                };
                if let Some(held) = self.held.take() {
                    replies.push_back(Reply::request_headers(self.sent.change(&self.rules.how, exchange)));
                    drop(held);
                }
                parts(Direction::Request, slices, message.end_of_stream, replies);
            }
            (Mode::Duplex, None) => {
                parts(Direction::Request, vec![message.body.clone()], message.end_of_stream, replies);
            }
            (Mode::Buffered, Some(exchange)) => {
                replies.push_back(whole(exchange, &message.body, moment, &self.rules, &self.sent)?);
            }
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
            let mut slices = Vec::new();
            exchange.request_end(&mut slices)?;
            if mode == Mode::Streamed && !slices.is_empty() {
                // There is no reply left in which it could go on.
                return Err(exchange.refuse(Refusal::BrokenBody).into());
            }
            if let Some(held) = self.held.take() {
                replies.push_back(Reply::request_headers(self.sent.change(&self.rules.how, exchange)));
                slices = held.release(slices);
            }
            parts(Direction::Request, slices, false, replies);
        }
        replies.push_back(Reply::request_trailers());
        Ok(())
    }

    fn response_headers(&mut self, mode: Mode, message: &HttpHeaders, moment: Moment) -> Reply {
        // A filter that is not shown the request's headers changes nothing.
        let Some(exchange) = &mut self.exchange else { return Reply::response_headers(None) };
        let none = HeaderMap::default();
        let headers = message.headers.as_ref().unwrap_or(&none);
        let target = exchange.response_head(status(headers), moment.now);
        if self.rules.how.restore_model && !message.end_of_stream {
            self.restoring = Restoring::begin(mode, exchange, headers);
        }
        // What a server says under names that mean nothing there; ours is overwritten where there is something to say.
        let is_foreign = |name: &&str| (**name != *TARGET_HEADER || target.is_none()) && headers.first(name).is_some();
        let foreign = INTERNAL_TO_REQUESTS.into_iter().filter(is_foreign);
        let mut change = HeaderMutation::removing(foreign);
        if let Some(target) = &target {
            let value = Bytes::copy_from_slice(target.as_bytes());
            change.set = HeaderMutation::setting([(HeaderName::from_static(TARGET_HEADER), value)]).set;
        }
        Reply::response_headers((!change.set.is_empty() || !change.remove.is_empty()).then_some(change))
    }
}

impl Drop for Processor {
    fn drop(&mut self) {
        self.rules.streams.dec();
        if let Some(observer) = self.observer.take() {
            observer.end((self.rules.clock)());
        }
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
    /// The filter is set up in a way that nothing can be done in, and what to do about that.
    Mode(&'static str),
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
            Self::Mode(words) => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Reply::immediate(status, error_body(status, words, None), "UnsupportedMode")
            }
        }
    }
}

const UNSUPPORTED: &str = "Envoy's ext_proc filter shows only a part of the request's body, or parts that cannot be \
                           read: set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED";

const NO_PLACE: &str = "Envoy's ext_proc filter has no place for headers that tell the model, which --routing-headers \
                        and --rewrite header ask for: set request_body_mode to FULL_DUPLEX_STREAMED or BUFFERED";

/// What may go on of a body whose next slices are these: all, where nothing waits; otherwise nothing until the model is
/// known.
fn hold(
    held: &mut Option<Held>,
    exchange: &mut Exchange,
    rules: &Rules,
    slices: Vec<Bytes>,
    end_of_stream: bool,
) -> Result<Option<Vec<Bytes>>, Refusal> {
    let Some(waiting) = held else { return Ok(Some(slices)) };
    if end_of_stream || !exchange.awaits_model() {
        return Ok(Some(waiting.release(slices)));
    }
    waiting.add(slices);
    if waiting.is_too_much(&rules.hold) {
        return Err(exchange.refuse(Refusal::HeldTooMuch { limit: rules.hold.most }));
    }
    Ok(None)
}

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
fn whole(exchange: &mut Exchange, body: &Bytes, moment: Moment, rules: &Rules, sent: &Sent) -> Result<Reply, Refusal> {
    let limit = rules.max_body;
    if body.len() > limit {
        return Err(exchange.refuse(Refusal::TooLarge { limit }));
    }
    match exchange.request_body(body, moment.random, moment.now) {
        BodyAction::Refuse(refusal) => Err(refusal),
        BodyAction::Pass => Ok(Reply::request_body(None, sent.told(&rules.how, exchange))),
        BodyAction::Replace(spliced) => {
            let length = Bytes::from(spliced.len().to_string());
            let length = HeaderMutation::setting([(CONTENT_LENGTH, length)]);
            let mut change = sent.told(&rules.how, exchange).unwrap_or_default();
            change.headers.set.extend(length.set);
            Ok(Reply::request_body(Some(spliced.into_bytes()), Some(change)))
        }
    }
}

/// Sends slices of a body on, in pieces that are short enough; nothing where there is nothing to say. What fits joins the
/// piece that waits before it.
pub(crate) fn parts(direction: Direction, mut slices: Vec<Bytes>, end_of_stream: bool, replies: &mut Replies) {
    slices.retain(|slice| !slice.is_empty());
    if slices.is_empty() && !end_of_stream {
        return;
    }
    let mut part = match replies.pop_back() {
        Some(Reply::Body(part)) if part.direction == direction && !part.end_of_stream => part,
        other => {
            replies.extend(other);
            BodyPart { direction, slices: Vec::with_capacity(slices.len()), end_of_stream: false }
        }
    };
    let mut room = LONGEST_PART.saturating_sub(part.length());
    for mut slice in slices {
        while slice.len() > room {
            part.slices.extend((room > 0).then(|| slice.split_to(room)));
            let slices = std::mem::take(&mut part.slices);
            replies.push_back(Reply::Body(BodyPart { direction, slices, end_of_stream: false }));
            room = LONGEST_PART;
        }
        room -= slice.len();
        part.slices.push(slice);
    }
    part.end_of_stream = end_of_stream;
    replies.push_back(Reply::Body(part));
}

/// The response's status. One that Envoy does not tell counts as a success, as Envoy would not have passed it on.
fn status(headers: &HeaderMap) -> StatusCode {
    headers.first(":status").and_then(|status| StatusCode::from_bytes(status).ok()).unwrap_or(StatusCode::OK)
}
