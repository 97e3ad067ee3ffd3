//! One request from its head to its end: the proxy reports events, the exchange returns what to do.
//!
//! ```text
//! begin(head) ──► Forward            forward the body as it arrives
//!   ├─► ReadBody ──► request_body(body) ──► Forward, Replace or Refuse
//!   │            ├─► request_chunk(chunk) …, request_end() ──► bytes to forward, or a refusal
//!   │            └─► route_by_model(model), skip_body()        if the proxy cannot read the body
//!   └─► Refuse
//! response_head(status) ──► value of x-rollora-target
//! end, or drop
//! ```
//!
//! The proxy removes [`headers::INTERNAL_HEADERS`] from every request and calls [`Exchange::end`] when the response is
//! over. An exchange that is dropped before a response head is counted with the code `none`.

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

/// The head of a request, as the proxy received it.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// Path and query, as the client sent them.
    pub path_and_query: &'a str,
    /// Headers of the request, with the client's internal headers removed or ignored.
    pub headers: &'a dyn HeaderLookup,
    /// Whether a body follows the head.
    pub has_body: bool,
}

impl fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path_and_query, has_body, headers: _ } = self;
        f.debug_struct("RequestHead")
            .field("path_and_query", path_and_query)
            .field("has_body", has_body)
            .finish_non_exhaustive()
    }
}

/// What the proxy must do with a request after its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadAction {
    /// Forward the request, and its body, if any, as it arrives.
    Forward,
    /// Pass the whole body to [`Exchange::request_body`], or its chunks to [`Exchange::request_chunk`].
    ReadBody,
    /// Respond to the client with this refusal.
    Refuse(RequestRefusal),
}

/// What the proxy must do with a whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyAction {
    /// Forward the body unchanged.
    Forward,
    /// Forward this body instead, with its length as `content-length`.
    Replace(SplicedBody),
    /// Respond to the client with this refusal.
    Refuse(RequestRefusal),
}

/// State of one request, from its head to the end of its response.
#[derive(Debug)]
pub struct Exchange {
    active_rules: Arc<ActiveRules>,
    started_at: Timestamp,
    /// Whether the server would read a body in UTF-16.
    server_reads_utf16: bool,
    /// Values of the request's sticky headers, by header name.
    sticky_keys: Vec<(Arc<str>, StickyKey)>,
    destination: Destination,
    response_started: bool,
    /// `None` until the first chunk arrives, and for bodies that are read whole.
    splicer: Option<Box<Splicer>>,
    /// Whether the body is forwarded unchanged and the target is passed in a header.
    preserves_body: bool,
    /// The model that the client requested; `None` if no rule matched it.
    requested_model: Option<Arc<str>>,
}

/// What serves the request.
#[derive(Debug)]
enum Destination {
    /// Not decided yet, or the body names no model.
    Unknown,
    /// A target that a rule selected.
    Target(Arc<RuleTarget>),
    /// The model that the client named; no rule matched it.
    PassThrough { model: Box<str>, usage: Option<Arc<TargetUsage>> },
}

impl Exchange {
    /// Starts an exchange for a request and decides what to do after its head.
    pub fn begin(
        active_rules: &Arc<ActiveRules>,
        guard: PathGuard,
        head: &RequestHead<'_>,
        now: Timestamp,
    ) -> (Self, HeadAction) {
        let mut exchange = Self {
            active_rules: Arc::clone(active_rules),
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
        let sticky_key = |name: &Arc<str>| Some((Arc::clone(name), StickyKey::new(head.headers.first(name)?)?));
        self.sticky_keys = self.active_rules.rules().sticky_headers().iter().filter_map(sticky_key).collect();
        HeadAction::ReadBody
    }

    /// Counts the request as unrouted because the proxy cannot read its body; the request is forwarded.
    pub fn skip_body(&mut self) {
        self.active_rules.metrics.count_unrouted(UnroutedReason::UnreadableBody);
    }

    /// Routes by a model that another component has read from the body, because the proxy cannot read it.
    /// [`Self::target_header`] then returns the target that a rule selected. `random` must be uniform over `u64`.
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

    /// Keeps every byte of the body: it is still read, and refused where necessary, but the target is only returned by
    /// [`Self::target_header`]. Must be called before the body arrives.
    pub fn preserve_body(&mut self) {
        self.preserves_body = true;
    }

    /// Decides about a whole body. `random` must be uniform over `u64`.
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

    /// Takes the next chunk of the body and appends the bytes to forward to `out`, which can be fewer or more than the
    /// chunk. A refusal can come after bytes were forwarded: the proxy must then not end the forwarded body as if it
    /// were complete. `random` must be uniform over `u64`.
    pub fn request_chunk(
        &mut self,
        chunk: &Bytes,
        random: u64,
        now: Timestamp,
        out: &mut Vec<Bytes>,
    ) -> Result<(), RequestRefusal> {
        let splicer = self.splicer.take();
        let mut splicer =
            splicer.unwrap_or_else(|| Box::new(Splicer::new(self.server_reads_utf16, self.preserves_body)));
        let outcome = splicer.push(chunk, out, |name| self.select_target(name, true, random, now));
        self.splicer = Some(splicer);
        outcome.map_err(|refusal| self.refuse(refusal))
    }

    /// Ends the body and appends the bytes that were still buffered to `out`.
    pub fn request_end(&mut self, out: &mut Vec<Bytes>) -> Result<(), RequestRefusal> {
        let outcome = self.splicer.as_mut().map_or(Ok(BodyOutcome::Empty), |splicer| splicer.finish(out));
        let unrouted = match outcome {
            Ok(BodyOutcome::Rewritten) => return Ok(()),
            Ok(BodyOutcome::Unmatched) => UnroutedReason::NoRule,
            Ok(BodyOutcome::Opaque) => UnroutedReason::NotJson,
            Ok(BodyOutcome::Empty) => UnroutedReason::NoBody,
            Err(refusal) => return Err(self.refuse(refusal)),
        };
        self.active_rules.metrics.count_unrouted(unrouted);
        Ok(())
    }

    /// Returns whether the target is still undecided and a later chunk may contain the model.
    pub fn awaits_model(&self) -> bool {
        self.splicer.as_ref().is_none_or(|splicer| splicer.awaits_model())
    }

    /// Returns whether a part of the body is buffered until the next chunk: an incomplete name.
    pub fn has_buffered(&self) -> bool {
        self.splicer.as_ref().is_some_and(|splicer| splicer.has_buffered())
    }

    /// Refuses the request, whatever was decided before. The proxy can call this for reasons of its own. The response
    /// then counts for no target.
    pub fn refuse(&mut self, refusal: RequestRefusal) -> RequestRefusal {
        self.response_started = true;
        self.set_destination(Destination::Unknown);
        self.response_started = false;
        self.active_rules.metrics.count_refused(refusal.reason());
        refusal
    }

    /// Selects the target and makes it the destination. Returns `None` if no rule matches, so that the model stays.
    fn select_target(
        &mut self,
        name: Option<&str>,
        complete: bool,
        random: u64,
        now: Timestamp,
    ) -> Result<Option<EncodedName>, RequestRefusal> {
        let rules = self.active_rules.rules();
        let Some(rule) = rules.find(name) else {
            self.pass_through(name, now);
            return Ok(None);
        };
        if !complete {
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
        self.sticky_keys.iter().find(|(name, _)| name == header).map(|(_, key)| *key)
    }

    fn pass_through(&mut self, name: Option<&str>, now: Timestamp) {
        let Some(name) = name else { return };
        let usage = self.active_rules.usage.find(name);
        if let Some(usage) = &usage {
            usage.start_request(now);
        }
        self.set_destination(Destination::PassThrough { model: name.into(), usage });
    }

    /// Replaces the destination, and ends the request for the previous one.
    fn set_destination(&mut self, destination: Destination) {
        match std::mem::replace(&mut self.destination, destination) {
            Destination::Target(target) => target.metrics.target_metrics().end_request(self.response_started),
            Destination::PassThrough { usage: Some(usage), .. } => usage.end_request(),
            Destination::PassThrough { usage: None, .. } | Destination::Unknown => {}
        }
    }

    /// Returns the model that the server sees: the target of the rule, or the model that the client named. `None` if it
    /// is not known.
    pub fn served_model(&self) -> Option<&str> {
        match &self.destination {
            Destination::Unknown => None,
            Destination::Target(target) => Some(target.name()),
            Destination::PassThrough { model, .. } => Some(model),
        }
    }

    /// Returns the model that the client requested. `None` if it is not known yet or the body names no model.
    pub fn requested_model(&self) -> Option<&str> {
        match &self.destination {
            Destination::Unknown | Destination::Target(_) => self.requested_model.as_deref(),
            Destination::PassThrough { model, .. } => Some(model),
        }
    }

    /// Returns the selected target as a header value, if a rule matched.
    pub fn target_header(&self) -> Option<&HeaderValue> {
        match &self.destination {
            Destination::Target(target) => Some(&target.header_value),
            Destination::Unknown | Destination::PassThrough { .. } => None,
        }
    }

    /// Returns a [`Restorer`] that puts the requested model name back into the response. `None` if no rule changed the
    /// name, or if a response with these headers must stay unchanged.
    pub fn restorer(&self, response: &(impl HeaderLookup + ?Sized)) -> Option<Restorer> {
        let Destination::Target(target) = &self.destination else { return None };
        Restorer::new(response, target.name(), self.requested_model.as_deref()?)
    }

    /// Records the head of the response that the client gets, including one that the proxy generates itself. Returns
    /// the value of the response header [`headers::TARGET_HEADER`]; the proxy must remove that header if it is `None`.
    pub fn response_head(&mut self, status: StatusCode, now: Timestamp) -> Option<HeaderValue> {
        let Destination::Target(target) = &self.destination else { return None };
        if !status.is_informational() && !self.response_started {
            self.response_started = true;
            let seconds = now.duration_since(self.started_at).as_secs_f64().max(0.0);
            target.metrics.target_metrics().record_response(status, seconds);
        }
        Some(target.header_value.clone())
    }

    /// Ends the exchange, whether the response is complete or not.
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

    fn forward_unrouted(&self, reason: UnroutedReason) -> BodyAction {
        self.active_rules.metrics.count_unrouted(reason);
        BodyAction::Forward
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.set_destination(Destination::Unknown);
    }
}
