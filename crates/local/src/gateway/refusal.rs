//! Error responses that the gateway itself generates, in vLLM's format.

use super::{balancer::NoServer, body::ResponseBody};
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use rollora_router::refusal::{CONTENT_TYPE as ERROR_TYPE, error_body};

/// Why the gateway responds to a request with an error of its refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum GatewayRefusal {
    /// The bodies of all requests together exceed the budget.
    #[error("the gateway's buffer for request bodies is full: try again")]
    BufferExhausted,
    /// No data of the body arrived within the limit.
    #[error("the request body did not arrive: no data for {seconds} s")]
    BodyTimeout { seconds: u64 },
    #[error("the request body could not be read: {0}")]
    BadBody(String),
    #[error("this gateway speaks plain HTTP/1.1 only: Upgrade is not supported")]
    UpgradeUnsupported,
    /// No server can take the request; the text is the model.
    #[error("{}", no_server_message(*.0, .1))]
    NoServer(NoServer, String),
    /// A server closed the connection before it responded.
    #[error("{0}")]
    ServerDisconnected(String),
    /// The router refused the request.
    #[error(transparent)]
    Router(#[from] rollora_router::refusal::RequestRefusal),
}

fn no_server_message(reason: NoServer, model: &str) -> String {
    match reason {
        NoServer::NotReady => "no vLLM server is ready: `rollora status` shows the reason for each server".to_owned(),
        NoServer::NotResident => {
            format!("no ready server has loaded `{model}`: `rollora status` shows which servers lack it")
        }
        NoServer::OnTrial => format!("`{model}` is not verified yet on any ready server: try again"),
    }
}

impl GatewayRefusal {
    fn status(&self) -> StatusCode {
        match self {
            Self::BufferExhausted | Self::NoServer(..) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::BadBody(_) => StatusCode::BAD_REQUEST,
            Self::UpgradeUnsupported => StatusCode::NOT_IMPLEMENTED,
            Self::ServerDisconnected(_) => StatusCode::BAD_GATEWAY,
            Self::Router(refusal) => refusal.status(),
        }
    }

    fn body(&self) -> Bytes {
        match self {
            Self::Router(refusal) => refusal.body(),
            refusal => error_body(refusal.status(), &refusal.to_string(), None),
        }
    }

    pub(super) fn into_response(self) -> Response<ResponseBody> {
        let mut response = Response::new(ResponseBody::Local(Some(self.body())));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(ERROR_TYPE));
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
