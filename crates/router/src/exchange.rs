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
    active_rules::ActiveRules,
    guard::{self, PathGuard},
    headers::{self, HeaderLookup},
    json::{
        self, EncodedName, ScanResult, ScannedModel, SplicedBody,
        splicer::{BodyOutcome, Splicer},
    },
    metrics::UnroutedReason,
    refusal::RequestRefusal,
    restore::Restorer,
    route::{self, sticky::StickyKey},
    rules::{CompiledRule, RuleTarget},
    usage::TargetUsage,
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use jiff::Timestamp;
use std::{fmt, sync::Arc};

/// The head of a request.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Path and query, as the client sent them.
    pub path_and_query: &'a str,
    /// The headers.
    pub headers: &'a dyn HeaderLookup,
    /// Whether a body follows.
    pub has_body: bool,
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path_and_query: target, has_body, headers: _ } = self;
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
    Refuse(RequestRefusal),
}

/// What to do with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyAction {
    /// Pass it on as it is.
    Forward,
    /// Pass this on, with its length as `content-length`.
    Replace(SplicedBody),
    /// Answer the request.
    Refuse(RequestRefusal),
}

/// One request.
#[derive(Debug)]
pub struct Exchange {
    active_rules: Arc<ActiveRules>,
    started_at: Timestamp,
    /// A body in UTF-16 would be read by the server.
    server_reads_utf16: bool,
    /// The clients that the sticky headers in force speak of.
    sticky_keys: Vec<(Arc<str>, StickyKey)>,
    destination: Destination,
    response_started: bool,
    /// The body's splice, where it comes in pieces and the first has come.
    splicer: Option<Box<Splicer>>,
    /// The body stays as it is: a header tells what was decided.
    preserves_body: bool,
    /// What the client asked for, where a rule has matched it.
    requested_model: Option<Arc<str>>,
}

/// Who serves the request.
#[derive(Debug)]
enum Destination {
    /// Not known: not decided yet, or there is no name in it.
    Unknown,
    /// A target of a rule.
    Target(Arc<RuleTarget>),
    /// Whom the client named, without a rule.
    PassThrough { model: Box<str>, usage: Option<Arc<TargetUsage>> },
}

impl Exchange {
    /// The request's head is there.
    pub fn begin(
        in_force: &Arc<ActiveRules>,
        guard: PathGuard,
        head: &RequestHead<'_>,
        now: Timestamp,
    ) -> (Self, HeadAction) {
        let mut exchange = Self {
            active_rules: Arc::clone(in_force),
            started_at: now,
            server_reads_utf16: false,
            sticky_keys: Vec::new(),
            destination: Destination::Unknown,
            response_started: false,
            splicer: None,
            preserves_body: false,
            requested_model: None,
        };
        let action = exchange.request_head(guard, head);
        (exchange, action)
    }

    fn request_head(&mut self, guard: PathGuard, head: &RequestHead<'_>) -> HeadAction {
        if let Err(refusal) = guard.check(head.path_and_query) {
            self.active_rules.metrics.count_refused(refusal.reason());
            return HeadAction::Refuse(refusal);
        }
        if !head.has_body {
            self.active_rules.metrics.count_unrouted(UnroutedReason::NoBody);
            return HeadAction::Forward;
        }
        if !headers::body_is_readable(head.headers) {
            self.active_rules.metrics.count_unrouted(UnroutedReason::UnreadableBody);
            return HeadAction::Forward;
        }
        self.server_reads_utf16 =
            guard::is_inference(guard::path_of(head.path_and_query)) && headers::is_json(head.headers);
        let client = |name: &Arc<str>| Some((Arc::clone(name), StickyKey::new(head.headers.first(name)?)?));
        self.sticky_keys = self.active_rules.rules().sticky_headers().iter().filter_map(client).collect();
        HeadAction::ReadBody
    }

    /// The body that was to be read will not be seen: the request passes, and so is counted.
    pub fn skip_body(&mut self) {
        self.active_rules.metrics.count_unrouted(UnroutedReason::UnreadableBody);
    }

    /// The body that was to be read will not be seen, but somebody has read it before and says which model stands in
    /// it. Whom a rule chose is what [`Self::target`] says. `random` is any number, all being equally likely.
    pub fn route_by_model(&mut self, model: &str, random: u64, now: Timestamp) -> Result<(), RequestRefusal> {
        match self.select_target(Some(model), true, random, now) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => {
                self.active_rules.metrics.count_unrouted(UnroutedReason::NoRule);
                Ok(())
            }
            Err(refusal) => Err(self.refuse(refusal)),
        }
    }

    /// The body is read as ever, and what cannot be served is refused, but every byte of it stays: whoever comes behind
    /// is told in a header whom a rule chose, see [`Self::target`]. To be said before the body comes.
    pub fn preserve_body(&mut self) {
        self.preserves_body = true;
    }

    /// The whole body is there. `random` is any number, all being equally likely.
    pub fn request_body(&mut self, body: &Bytes, random: u64, now: Timestamp) -> BodyAction {
        match json::scan(body) {
            ScanResult::Found(found) => self.apply_rule(body, &found, random, now),
            ScanResult::Refused(RequestRefusal::WideEncoding) if !self.server_reads_utf16 => {
                self.forward_unrouted(UnroutedReason::NotJson)
            }
            ScanResult::Refused(refusal) => BodyAction::Refuse(self.refuse(refusal)),
            ScanResult::Opaque => {
                self.forward_unrouted(if body.is_empty() { UnroutedReason::NoBody } else { UnroutedReason::NotJson })
            }
        }
    }

    fn apply_rule(&mut self, body: &Bytes, found: &ScannedModel, random: u64, now: Timestamp) -> BodyAction {
        let name = found.location.decode_name(body);
        match self.select_target(name.as_deref(), found.complete, random, now) {
            Ok(Some(_)) if self.preserves_body => BodyAction::Forward,
            Ok(Some(target)) => BodyAction::Replace(json::splice(body, &found.location, &target)),
            Ok(None) => self.forward_unrouted(UnroutedReason::NoRule),
            Err(refusal) => BodyAction::Refuse(self.refuse(refusal)),
        }
    }

    /// The next piece of the body is there; what goes on is put into `out`, and may be less or more than the piece.
    /// A refusal can come late: what has been passed on then must not be ended as if it were whole. `random` is any
    /// number, all being equally likely.
    pub fn request_chunk(
        &mut self,
        piece: &Bytes,
        random: u64,
        now: Timestamp,
        out: &mut Vec<Bytes>,
    ) -> Result<(), RequestRefusal> {
        let splicer = self.splicer.take();
        let mut splicer =
            splicer.unwrap_or_else(|| Box::new(Splicer::new(self.server_reads_utf16, self.preserves_body)));
        let outcome = splicer.push(piece, out, |name| self.select_target(name, true, random, now));
        self.splicer = Some(splicer);
        outcome.map_err(|refusal| self.refuse(refusal))
    }

    /// The body has ended; what was held of it is put into `out`.
    pub fn request_end(&mut self, out: &mut Vec<Bytes>) -> Result<(), RequestRefusal> {
        let ending = self.splicer.as_mut().map_or(Ok(BodyOutcome::Empty), |splicer| splicer.finish(out));
        let unrouted = match ending {
            Ok(BodyOutcome::Rewritten) => return Ok(()),
            Ok(BodyOutcome::Unmatched) => UnroutedReason::NoRule,
            Ok(BodyOutcome::Opaque) => UnroutedReason::NotJson,
            Ok(BodyOutcome::Empty) => UnroutedReason::NoBody,
            Err(refusal) => return Err(self.refuse(refusal)),
        };
        self.active_rules.metrics.count_unrouted(unrouted);
        Ok(())
    }

    /// Whether the next piece of the body may still tell the model: nothing has been decided.
    pub fn awaits_model(&self) -> bool {
        self.splicer.as_ref().is_none_or(|splicer| splicer.awaits_model())
    }

    /// Whether a part of the body is held until its next piece comes: a name that was cut.
    pub fn has_buffered(&self) -> bool {
        self.splicer.as_ref().is_some_and(|splicer| splicer.has_buffered())
    }

    /// The request is refused, whatever was decided before; also by a proxy for reasons of its own. The answer is
    /// nobody's who was to serve.
    pub fn refuse(&mut self, refusal: RequestRefusal) -> RequestRefusal {
        self.response_started = true;
        self.set_destination(Destination::Unknown);
        self.response_started = false;
        self.active_rules.metrics.count_refused(refusal.reason());
        refusal
    }

    /// What the model is to be; none where it stays. From now on whoever was chosen serves.
    fn select_target(
        &mut self,
        name: Option<&str>,
        intact: bool,
        random: u64,
        now: Timestamp,
    ) -> Result<Option<EncodedName>, RequestRefusal> {
        let rules = self.active_rules.rules();
        let Some(rule) = rules.find(name) else {
            self.pass_through(name, now);
            return Ok(None);
        };
        if !intact {
            return Err(RequestRefusal::MalformedBody);
        }
        let target = match route::select_target(rule, self.sticky_key(rule), random) {
            Some(target) if !target.name().is_empty() => Arc::clone(target),
            _ => return Err(RequestRefusal::NoTarget { rewrite: rule.rewrite() }),
        };
        let encoded = target.encoded_name.clone();
        self.requested_model = rule.model().cloned().or_else(|| name.map(Arc::from));
        target.metrics.count_decision();
        target.metrics.target_metrics().start_request(now);
        self.set_destination(Destination::Target(target));
        Ok(Some(encoded))
    }

    fn sticky_key(&self, rule: &CompiledRule) -> Option<StickyKey> {
        let header = rule.sticky_header()?;
        self.sticky_keys.iter().find(|(name, _)| name == header).map(|(_, client)| *client)
    }

    fn pass_through(&mut self, name: Option<&str>, now: Timestamp) {
        let Some(name) = name else { return };
        let usage = self.active_rules.usage.find(name);
        if let Some(usage) = &usage {
            usage.start_request(now);
        }
        self.set_destination(Destination::PassThrough { model: name.into(), usage });
    }

    /// From now on this one serves, and whoever did no more.
    fn set_destination(&mut self, serving: Destination) {
        match std::mem::replace(&mut self.destination, serving) {
            Destination::Target(target) => target.metrics.target_metrics().end_request(self.response_started),
            Destination::PassThrough { usage: Some(usage), .. } => usage.end_request(),
            Destination::PassThrough { usage: None, .. } | Destination::Unknown => {}
        }
    }

    /// The model that the server will see, as far as it is known: the rule's target, or what the client named.
    pub fn served_model(&self) -> Option<&str> {
        match &self.destination {
            Destination::Unknown => None,
            Destination::Target(target) => Some(target.name()),
            Destination::PassThrough { model, .. } => Some(model),
        }
    }

    /// The model that the client asked for, as far as it is known and named.
    pub fn requested_model(&self) -> Option<&str> {
        match &self.destination {
            Destination::Unknown | Destination::Target(_) => self.requested_model.as_deref(),
            Destination::PassThrough { model, .. } => Some(model),
        }
    }

    /// Whom a rule chose, as the value of a header; none where no rule did.
    pub fn target_header(&self) -> Option<&HeaderValue> {
        match &self.destination {
            Destination::Target(target) => Some(&target.header_value),
            Destination::Unknown | Destination::PassThrough { .. } => None,
        }
    }

    /// What puts the client's name back into the answer under these headers, piece by piece; none where no rule gave it
    /// another, or the answer is to be left alone.
    pub fn restorer(&self, response: &(impl HeaderLookup + ?Sized)) -> Option<Restorer> {
        let Destination::Target(target) = &self.destination else { return None };
        Restorer::new(response, target.name(), self.requested_model.as_deref()?)
    }

    /// The response's head is there; of the answer that the client gets, also where the proxy gives it itself.
    /// Returns what the response header [`headers::TARGET_HEADER`] has to say: with none it is removed.
    pub fn response_head(&mut self, status: StatusCode, now: Timestamp) -> Option<HeaderValue> {
        let Destination::Target(target) = &self.destination else { return None };
        if !status.is_informational() && !self.response_started {
            self.response_started = true;
            let seconds = now.duration_since(self.started_at).as_secs_f64().max(0.0);
            target.metrics.target_metrics().record_response(status, seconds);
        }
        Some(target.header_value.clone())
    }

    /// The response has ended, in whatever way.
    pub fn end(self, now: Timestamp) {
        if let Some(usage) = self.usage() {
            usage.touch(now);
        }
    }

    fn usage(&self) -> Option<&TargetUsage> {
        match &self.destination {
            Destination::Unknown => None,
            Destination::Target(target) => Some(&target.metrics.target_metrics().usage),
            Destination::PassThrough { usage, .. } => usage.as_deref(),
        }
    }

    fn forward_unrouted(&self, why: UnroutedReason) -> BodyAction {
        self.active_rules.metrics.count_unrouted(why);
        BodyAction::Forward
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.set_destination(Destination::Unknown);
    }
}
