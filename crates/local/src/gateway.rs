//! The gateway: a streaming reverse proxy in front of the vLLM servers.
//!
//! `rollora-router` decides what happens to a request, and [`balancer`] chooses the server; this module connects the
//! two. A request body is buffered whole, because its model decides where the request goes; a response is streamed.
//!
//! Invariants: a request is written to at most one server. When a client disconnects, its request ends on the server
//! too.

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

/// Limits on buffered request bodies, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    /// Limit for one request.
    pub(crate) per_request: usize,
    /// Limit for all requests together.
    pub(crate) total: usize,
}

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

    async fn handle(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let (mut head, body) = request.into_parts();
        if headers::wants_upgrade(&head.headers) {
            return GatewayRefusal::UpgradeUnsupported.into_response();
        }
        remove_internal(&mut head.headers);
        let (mut exchange, action) = self.begin_exchange(&head, !body.is_end_stream());
        let result = match action {
            HeadAction::Refuse(refusal) => Err(refusal.into()),
            HeadAction::Forward | HeadAction::ReadBody => self.proxy(&mut exchange, head, body, action).await,
        };
        match result {
            Ok(response) => client_response(response, exchange),
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
        let request_head = RequestHead { path_and_query: target, headers: &head.headers, has_body };
        Exchange::begin(&self.rules, PathGuard::Strict, &request_head, clock::now())
    }

    async fn proxy(
        &self,
        exchange: &mut Exchange,
        mut head: Parts,
        body: Incoming,
        action: HeadAction,
    ) -> Result<ServerResponse, GatewayRefusal> {
        let (body, permit) = body::buffer_body(body, self.max_body, &self.budget).await?;
        let action = match action {
            HeadAction::ReadBody => exchange.request_body(&body, rand::random(), clock::now()),
            _ => BodyAction::Forward,
        };
        let (body, is_rewritten) = match action {
            BodyAction::Refuse(refusal) => return Err(refusal.into()),
            BodyAction::Replace(spliced) => (BodyChunks::new(spliced.parts, permit), true),
            BodyAction::Forward => (BodyChunks::new([body], permit), false),
        };
        let requirement = match exchange.served_model() {
            Some(model) if is_rewritten => ServerRequirement::Target(model),
            Some(model) => ServerRequirement::Model(model),
            None => ServerRequirement::Any,
        };
        headers::drop_hop_by_hop(&mut head.headers);
        headers::drop_framing(&mut head.headers);
        let request = server_request(head, body);
        forward(&self.servers, requirement, request).await.map_err(|error| match error {
            ForwardError::NoServer(reason) => {
                GatewayRefusal::NoServer(reason, exchange.served_model().unwrap_or_default().to_owned())
            }
            ForwardError::Disconnected { .. } => GatewayRefusal::ServerDisconnected(error.to_string()),
        })
    }
}

/// Builds the request for a server. Its URI has path and query only, whatever form the client used.
fn server_request(head: Parts, body: BodyChunks) -> Request<BodyChunks> {
    let path = head.uri.into_parts().path_and_query.unwrap_or(PathAndQuery::from_static("/"));
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = head.headers;
    request
}

fn client_response(server_response: ServerResponse, mut exchange: Exchange) -> Response<ResponseBody> {
    let ServerResponse { response, connection, guard } = server_response;
    let (mut head, incoming) = response.into_parts();
    head.version = Version::HTTP_11;
    headers::drop_hop_by_hop(&mut head.headers);
    let target = exchange.response_head(head.status, clock::now());
    set_target_header(&mut head.headers, target.as_ref());
    Response::from_parts(
        head,
        ResponseBody::Server(Box::new(ServerResponseBody::new(incoming, connection, guard, exchange))),
    )
}
