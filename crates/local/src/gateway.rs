//! The gateway: a streaming reverse proxy in front of the servers.
//!
//! What happens to a request is decided by `rollora-router`, the server by [`choose`]; this is the plumbing between
//! them. A request's body is held whole, because its model decides where it goes; an answer is passed on as it comes.
//!
//! Invariants: a request is written to at most one server. A client that goes away takes its request off the server.

mod body;
mod choose;
mod forward;
mod headers;
mod pool;
mod refusal;
pub(crate) mod serve;
pub(crate) mod servers;
#[cfg(test)]
mod tests;

pub(crate) use choose::{Need, ServerFacts};

use crate::clock;
use body::{Answer, Budget, Chunks, Reply};
use forward::{Answered, ForwardError, forward};
use http::{Request, Response, Uri, Version, request::Parts, uri::PathAndQuery};
use hyper::body::{Body, Incoming};
use refusal::Refusal;
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::PathGuard,
    headers::{remove_internal, set_target_header},
};
use servers::Servers;
use std::sync::Arc;

/// How much of request bodies is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Of one request.
    pub(crate) request: usize,
    /// Of all together.
    pub(crate) total: usize,
}

/// The gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    servers: Arc<Servers>,
    rules: Arc<ActiveRules>,
    max_body: usize,
    budget: Arc<Budget>,
}

impl Gateway {
    pub(crate) fn new(servers: Arc<Servers>, rules: Arc<ActiveRules>, limits: Limits) -> Self {
        Self { servers, rules, max_body: limits.request, budget: Budget::new(limits.total) }
    }

    /// Answers one request.
    async fn answer(&self, request: Request<Incoming>) -> Response<Reply> {
        let (mut head, body) = request.into_parts();
        if headers::wants_upgrade(&head.headers) {
            return Refusal::Upgrade.into_response();
        }
        remove_internal(&mut head.headers);
        let (mut exchange, action) = self.begin(&head, !body.is_end_stream());
        let answered = match action {
            HeadAction::Refuse(refusal) => Err(refusal.into()),
            HeadAction::Forward | HeadAction::ReadBody => self.pass_on(&mut exchange, head, body, action).await,
        };
        match answered {
            Ok(answered) => answer(answered, exchange),
            Err(refusal) => {
                let mut response = refusal.into_response();
                let target = exchange.response_head(response.status(), clock::now());
                set_target_header(response.headers_mut(), target.as_ref());
                response
            }
        }
    }

    fn begin(&self, head: &Parts, has_body: bool) -> (Exchange, HeadAction) {
        let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let known = RequestHead { path_and_query: target, headers: &head.headers, has_body };
        Exchange::begin(&self.rules, PathGuard::Strict, &known, clock::now())
    }

    async fn pass_on(
        &self,
        exchange: &mut Exchange,
        mut head: Parts,
        body: Incoming,
        action: HeadAction,
    ) -> Result<Answered, Refusal> {
        let (body, hold) = body::read(body, self.max_body, &self.budget).await?;
        let action = match action {
            HeadAction::ReadBody => exchange.request_body(&body, rand::random(), clock::now()),
            _ => BodyAction::Forward,
        };
        let (body, by_rule) = match action {
            BodyAction::Refuse(refusal) => return Err(refusal.into()),
            BodyAction::Replace(spliced) => (Chunks::new(spliced.parts, hold), true),
            BodyAction::Forward => (Chunks::new([body], hold), false),
        };
        let need = match exchange.served_model() {
            Some(model) if by_rule => Need::Target(model),
            Some(model) => Need::Named(model),
            None => Need::Nothing,
        };
        headers::drop_hop_by_hop(&mut head.headers);
        headers::drop_framing(&mut head.headers);
        let request = outgoing(head, body);
        forward(&self.servers, need, request).await.map_err(|error| match error {
            ForwardError::NoServer(why) => {
                Refusal::NoServer(why, exchange.served_model().unwrap_or_default().to_owned())
            }
            ForwardError::Broken { .. } => Refusal::Broken(error.to_string()),
        })
    }
}

/// The request as a server gets it: path and query alone, whatever form the client used.
fn outgoing(head: Parts, body: Chunks) -> Request<Chunks> {
    let path = head.uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = head.headers;
    request
}

/// The answer as the client gets it.
fn answer(answered: Answered, mut exchange: Exchange) -> Response<Reply> {
    let Answered { response, connection, lease } = answered;
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    headers::drop_hop_by_hop(&mut head.headers);
    let target = exchange.response_head(head.status, clock::now());
    set_target_header(&mut head.headers, target.as_ref());
    Response::from_parts(head, Reply::Answer(Box::new(Answer::new(incoming, connection, lease, exchange))))
}
