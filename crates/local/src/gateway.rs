//! The gateway: a streaming reverse proxy in front of the servers.
//!
//! What happens to a request is decided by `rollora-router`, the server by [`choose`]; this is the plumbing between
//! them. A request's body is held whole, because its model decides where it goes; an answer is passed on as it comes.
//!
//! Invariants: a request is written to at most one server. A client that goes away takes its request off the server.

mod balancer;
mod body;
mod forward;
mod headers;
mod pool;
mod refusal;
pub(crate) mod serve;
pub(crate) mod servers;
#[cfg(test)]
mod tests;

pub(crate) use balancer::{ServerRequirement, ServerRoutingState};

use crate::clock;
use body::{BodyBudget, BodyChunks, ResponseBody, ServerResponseBody};
use forward::{ForwardError, ServerResponse, forward};
use http::{Request, Response, Uri, Version, request::Parts, uri::PathAndQuery};
use hyper::body::{Body, Incoming};
use refusal::GatewayRefusal;
use rollora_router::{
    active_rules::ActiveRules,
    exchange::{BodyAction, Exchange, HeadAction, RequestHead},
    guard::PathGuard,
    headers::{remove_internal, set_target_header},
};
use servers::GatewayServers;
use std::sync::Arc;

/// How much of request bodies is held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Of one request.
    pub(crate) per_request: usize,
    /// Of all together.
    pub(crate) total: usize,
}

/// The gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    servers: Arc<GatewayServers>,
    rules: Arc<ActiveRules>,
    max_body: usize,
    budget: Arc<BodyBudget>,
}

impl Gateway {
    pub(crate) fn new(servers: Arc<GatewayServers>, rules: Arc<ActiveRules>, limits: BodyLimits) -> Self {
        Self { servers, rules, max_body: limits.per_request, budget: BodyBudget::new(limits.total) }
    }

    /// Answers one request.
    async fn handle(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (mut head, body) = request.into_parts();
        if headers::wants_upgrade(&head.headers) {
            return GatewayRefusal::UpgradeUnsupported.into_response();
        }
        remove_internal(&mut head.headers);
        let (mut exchange, action) = self.begin_exchange(&head, !body.is_end_stream());
        let answered = match action {
            HeadAction::Refuse(refusal) => Err(refusal.into()),
            HeadAction::Forward | HeadAction::ReadBody => self.proxy(&mut exchange, head, body, action).await,
        };
        match answered {
            Ok(answered) => client_response(answered, exchange),
            Err(refusal) => {
                let mut response = refusal.into_response();
                let target = exchange.response_head(response.status(), clock::now());
                set_target_header(response.headers_mut(), target.as_ref());
                response
            }
        }
    }

    fn begin_exchange(&self, head: &Parts, has_body: bool) -> (Exchange, HeadAction) {
        let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let known = RequestHead { path_and_query: target, headers: &head.headers, has_body };
        Exchange::begin(&self.rules, PathGuard::Strict, &known, clock::now())
    }

    async fn proxy(
        &self,
        exchange: &mut Exchange,
        mut head: Parts,
        body: Incoming,
        action: HeadAction,
    ) -> Result<ServerResponse, GatewayRefusal> {
        let (body, hold) = body::buffer_body(body, self.max_body, &self.budget).await?;
        let action = match action {
            HeadAction::ReadBody => exchange.request_body(&body, rand::random(), clock::now()),
            _ => BodyAction::Forward,
        };
        let (body, by_rule) = match action {
            BodyAction::Refuse(refusal) => return Err(refusal.into()),
            BodyAction::Replace(spliced) => (BodyChunks::new(spliced.parts, hold), true),
            BodyAction::Forward => (BodyChunks::new([body], hold), false),
        };
        let need = match exchange.served_model() {
            Some(model) if by_rule => ServerRequirement::Target(model),
            Some(model) => ServerRequirement::Model(model),
            None => ServerRequirement::Any,
        };
        headers::drop_hop_by_hop(&mut head.headers);
        headers::drop_framing(&mut head.headers);
        let request = server_request(head, body);
        forward(&self.servers, need, request).await.map_err(|error| match error {
            ForwardError::NoServer(why) => {
                GatewayRefusal::NoServer(why, exchange.served_model().unwrap_or_default().to_owned())
            }
            ForwardError::Disconnected { .. } => GatewayRefusal::ServerDisconnected(error.to_string()),
        })
    }
}

/// The request as a server gets it: path and query alone, whatever form the client used.
fn server_request(head: Parts, body: BodyChunks) -> Request<BodyChunks> {
    let path = head.uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = head.headers;
    request
}

/// The answer as the client gets it.
fn client_response(answered: ServerResponse, mut exchange: Exchange) -> Response<ResponseBody> {
    let ServerResponse { response, connection, guard: lease } = answered;
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    headers::drop_hop_by_hop(&mut head.headers);
    let target = exchange.response_head(head.status, clock::now());
    set_target_header(&mut head.headers, target.as_ref());
    Response::from_parts(
        head,
        ResponseBody::Server(Box::new(ServerResponseBody::new(incoming, connection, lease, exchange))),
    )
}
