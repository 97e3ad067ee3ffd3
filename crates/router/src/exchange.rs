//! One request from its head to its end: events go in, what to do comes out.
//!
//! ```text
//! begin(head) ──► Forward            pass the body on as it comes
//!             ├─► ReadBody ──► request_body(body) ──► Pass, Replace or Refuse
//!             │            ├─► request_piece(piece) …, request_end() ──► what goes on, or a refusal
//!             │            └─► body_named(model), body_unseen()    where others read the body
//!             └─► Refuse
//! response_head(status) ──► what x-rollora-target says
//! end, or drop
//! ```
//!
//! The proxy around it removes [`crate::headers::INTERNAL`] from every request, and tells of the end; what is
//! counted follows from that. An exchange that is dropped without an answer counts as unanswered.

#[cfg(test)]
mod tests;

use crate::{
    counters::Unrouted,
    guard::{self, Guard},
    headers::{self, Headers},
    in_force::InForce,
    json::{
        self, EncodedName, Found, Scan, Spliced,
        pieces::{Ending, Splicer},
    },
    refusal::Refusal,
    restore::Restorer,
    route::{self, sticky::Client},
    rules::{Rule, Target},
    usage::Usage,
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use std::{fmt, sync::Arc};

/// The head of a request.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Path and query, as the client sent them.
    pub target: &'a str,
    /// The headers.
    pub headers: &'a dyn Headers,
    /// Whether a body follows.
    pub has_body: bool,
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, has_body, headers: _ } = self;
        f.debug_struct("RequestHead").field("target", target).field("has_body", has_body).finish_non_exhaustive()
    }
}

/// What to do with a request after its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadAction {
    /// Pass it on; its body, if any, as it comes.
    Forward,
    /// Give the body to [`Exchange::request_body`] as a whole, or to [`Exchange::request_piece`] as it comes.
    ReadBody,
    /// Answer it.
    Refuse(Refusal),
}

/// What to do with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyAction {
    /// Pass it on as it is.
    Pass,
    /// Pass this on, with its length as `content-length`.
    Replace(Spliced),
    /// Answer the request.
    Refuse(Refusal),
}

/// One request.
#[derive(Debug)]
pub struct Exchange {
    in_force: Arc<InForce>,
    began: Timestamp,
    /// A body in UTF-16 would be read by the server.
    reads_wide: bool,
    /// The clients that the sticky headers in force speak of.
    clients: Vec<(Arc<str>, Client)>,
    serving: Serving,
    answered: bool,
    /// The body's splice, where it comes in pieces and the first has come.
    splicer: Option<Box<Splicer>>,
    /// The body stays as it is: a header tells what was decided.
    leaves_body: bool,
    /// What the client asked for, where a rule has matched it.
    asked: Option<Arc<str>>,
}

/// Who serves the request.
#[derive(Debug)]
enum Serving {
    /// Not known: not decided yet, or there is no name in it.
    Unknown,
    /// A target of a rule.
    Target(Arc<Target>),
    /// Whom the client named, without a rule.
    Named { model: Box<str>, usage: Option<Arc<Usage>> },
}

impl Exchange {
    /// The request's head is there.
    pub fn begin(in_force: &Arc<InForce>, guard: Guard, head: &RequestHead<'_>, now: Timestamp) -> (Self, HeadAction) {
        let mut exchange = Self {
            in_force: Arc::clone(in_force),
            began: now,
            reads_wide: false,
            clients: Vec::new(),
            serving: Serving::Unknown,
            answered: false,
            splicer: None,
            leaves_body: false,
            asked: None,
        };
        let action = exchange.request_head(guard, head);
        (exchange, action)
    }

    fn request_head(&mut self, guard: Guard, head: &RequestHead<'_>) -> HeadAction {
        if let Err(refusal) = guard.check(head.target) {
            self.in_force.counters.refused(refusal.reason());
            return HeadAction::Refuse(refusal);
        }
        if !head.has_body {
            self.in_force.counters.unrouted(Unrouted::NoBody);
            return HeadAction::Forward;
        }
        if !headers::body_is_plain(head.headers) {
            self.in_force.counters.unrouted(Unrouted::Unreadable);
            return HeadAction::Forward;
        }
        self.reads_wide = guard::is_inference(guard::path_of(head.target)) && headers::says_json(head.headers);
        let client = |name: &Arc<str>| Some((Arc::clone(name), Client::new(head.headers.first(name)?)?));
        self.clients = self.in_force.rules().sticky_headers().iter().filter_map(client).collect();
        HeadAction::ReadBody
    }

    /// The body that was to be read will not be seen: the request passes, and so is counted.
    pub fn body_unseen(&mut self) {
        self.in_force.counters.unrouted(Unrouted::Unreadable);
    }

    /// The body that was to be read will not be seen, but somebody has read it before and says which model stands in
    /// it. Whom a rule chose is what [`Self::target`] says. `random` is any number, all being equally likely.
    pub fn body_named(&mut self, model: &str, random: u64, now: Timestamp) -> Result<(), Refusal> {
        match self.choose(Some(model), true, random, now) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                self.in_force.counters.unrouted(Unrouted::NoRule);
                Ok(())
            }
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// The body is read as ever, and what cannot be served is refused, but every byte of it stays: whoever comes behind
    /// is told in a header whom a rule chose, see [`Self::target`]. To be said before the body comes.
    pub fn leave_body(&mut self) {
        self.leaves_body = true;
    }

    /// The whole body is there. `random` is any number, all being equally likely.
    pub fn request_body(&mut self, body: &Bytes, random: u64, now: Timestamp) -> BodyAction {
        match json::scan(body) {
            Scan::Found(found) => self.decide(body, &found, random, now),
            Scan::Refused(Refusal::WideEncoding) if !self.reads_wide => self.pass(Unrouted::NotJson),
            Scan::Refused(refusal) => BodyAction::Refuse(self.refuse(refusal)),
            Scan::Opaque => self.pass(if body.is_empty() { Unrouted::NoBody } else { Unrouted::NotJson }),
        }
    }

    fn decide(&mut self, body: &Bytes, found: &Found, random: u64, now: Timestamp) -> BodyAction {
        let name = found.place.name(body);
        match self.choose(name.as_deref(), found.intact, random, now) {
            Ok(Some(_)) if self.leaves_body => BodyAction::Pass,
            Ok(Some(target)) => BodyAction::Replace(json::splice(body, &found.place, &target)),
            Ok(None) => self.pass(Unrouted::NoRule),
            Err(refusal) => BodyAction::Refuse(self.refuse(refusal)),
        }
    }

    /// The next piece of the body is there; what goes on is put into `out`, and may be less or more than the piece.
    /// A refusal can come late: what has been passed on then must not be ended as if it were whole. `random` is any
    /// number, all being equally likely.
    pub fn request_piece(
        &mut self,
        piece: &Bytes,
        random: u64,
        now: Timestamp,
        out: &mut Vec<Bytes>,
    ) -> Result<(), Refusal> {
        let splicer = self.splicer.take();
        let mut splicer = splicer.unwrap_or_else(|| Box::new(Splicer::new(self.reads_wide, self.leaves_body)));
        let outcome = splicer.piece(piece, out, |name| self.choose(name, true, random, now));
        self.splicer = Some(splicer);
        outcome.map_err(|refusal| self.refuse(refusal))
    }

    /// The body has ended; what was held of it is put into `out`.
    pub fn request_end(&mut self, out: &mut Vec<Bytes>) -> Result<(), Refusal> {
        let ending = self.splicer.as_mut().map_or(Ok(Ending::Empty), |splicer| splicer.end(out));
        let unrouted = match ending {
            Ok(Ending::Rewritten) => return Ok(()),
            Ok(Ending::Left) => Unrouted::NoRule,
            Ok(Ending::Opaque) => Unrouted::NotJson,
            Ok(Ending::Empty) => Unrouted::NoBody,
            Err(refusal) => return Err(self.refuse(refusal)),
        };
        self.in_force.counters.unrouted(unrouted);
        Ok(())
    }

    /// Whether the next piece of the body may still tell the model: nothing has been decided.
    pub fn awaits_model(&self) -> bool {
        self.splicer.as_ref().is_none_or(|splicer| splicer.awaits_model())
    }

    /// Whether a part of the body is held until its next piece comes: a name that was cut.
    pub fn holds(&self) -> bool {
        self.splicer.as_ref().is_some_and(|splicer| splicer.holds())
    }

    /// The request is refused, whatever was decided before; also by a proxy for reasons of its own. The answer is
    /// nobody's who was to serve.
    pub fn refuse(&mut self, refusal: Refusal) -> Refusal {
        self.answered = true;
        self.serve(Serving::Unknown);
        self.answered = false;
        self.in_force.counters.refused(refusal.reason());
        refusal
    }

    /// What the model is to be; none where it stays. From now on whoever was chosen serves.
    fn choose(
        &mut self,
        name: Option<&str>,
        intact: bool,
        random: u64,
        now: Timestamp,
    ) -> Result<Option<EncodedName>, Refusal> {
        let rules = self.in_force.rules();
        let Some(rule) = rules.find(name) else {
            self.serve_as_named(name, now);
            return Ok(None);
        };
        if !intact {
            return Err(Refusal::BrokenBody);
        }
        let target = match route::choose(rule, self.client(rule), random) {
            Some(target) if !target.name().is_empty() => Arc::clone(target),
            _ => return Err(Refusal::NoTarget { rewrite: rule.rewrite() }),
        };
        let encoded = target.encoded.clone();
        self.asked = rule.model().cloned().or_else(|| name.map(Arc::from));
        target.series.decided();
        target.series.tally().begin(now);
        self.serve(Serving::Target(target));
        Ok(Some(encoded))
    }

    fn client(&self, rule: &Rule) -> Option<Client> {
        let header = rule.sticky_header()?;
        self.clients.iter().find(|(name, _)| name == header).map(|(_, client)| *client)
    }

    fn serve_as_named(&mut self, name: Option<&str>, now: Timestamp) {
        let Some(name) = name else { return };
        let usage = self.in_force.usages.find(name);
        if let Some(usage) = &usage {
            usage.begin(now);
        }
        self.serve(Serving::Named { model: name.into(), usage });
    }

    /// From now on this one serves, and whoever did no more.
    fn serve(&mut self, serving: Serving) {
        match std::mem::replace(&mut self.serving, serving) {
            Serving::Target(target) => target.series.tally().end(self.answered),
            Serving::Named { usage: Some(usage), .. } => usage.end(),
            Serving::Named { usage: None, .. } | Serving::Unknown => {}
        }
    }

    /// The model that the server will see, as far as it is known: the rule's target, or what the client named.
    pub fn model(&self) -> Option<&str> {
        match &self.serving {
            Serving::Unknown => None,
            Serving::Target(target) => Some(target.name()),
            Serving::Named { model, .. } => Some(model),
        }
    }

    /// The model that the client asked for, as far as it is known and named.
    pub fn asked(&self) -> Option<&str> {
        match &self.serving {
            Serving::Unknown | Serving::Target(_) => self.asked.as_deref(),
            Serving::Named { model, .. } => Some(model),
        }
    }

    /// Whom a rule chose, as the value of a header; none where no rule did.
    pub fn target(&self) -> Option<&HeaderValue> {
        match &self.serving {
            Serving::Target(target) => Some(&target.header),
            Serving::Unknown | Serving::Named { .. } => None,
        }
    }

    /// What puts the client's name back into the answer under these headers, piece by piece; none where no rule gave it
    /// another, or the answer is to be left alone.
    pub fn restorer(&self, response: &(impl Headers + ?Sized)) -> Option<Restorer> {
        let Serving::Target(target) = &self.serving else { return None };
        Restorer::new(response, target.name(), self.asked.as_deref()?)
    }

    /// The response's head is there; of the answer that the client gets, also where the proxy gives it itself.
    /// Returns what the response header [`headers::TARGET_HEADER`] has to say: with none it is removed.
    pub fn response_head(&mut self, status: StatusCode, now: Timestamp) -> Option<HeaderValue> {
        let Serving::Target(target) = &self.serving else { return None };
        if !status.is_informational() && !self.answered {
            self.answered = true;
            let seconds = now.duration_since(self.began).as_secs_f64().max(0.0);
            target.series.tally().answered(status, seconds);
        }
        Some(target.header.clone())
    }

    /// The response has ended, in whatever way.
    pub fn end(self, now: Timestamp) {
        if let Some(usage) = self.usage() {
            usage.touch(now);
        }
    }

    fn usage(&self) -> Option<&Usage> {
        match &self.serving {
            Serving::Unknown => None,
            Serving::Target(target) => Some(&target.series.tally().usage),
            Serving::Named { usage, .. } => usage.as_deref(),
        }
    }

    fn pass(&self, why: Unrouted) -> BodyAction {
        self.in_force.counters.unrouted(why);
        BodyAction::Pass
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.serve(Serving::Unknown);
    }
}
