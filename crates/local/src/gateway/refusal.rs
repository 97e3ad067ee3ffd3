//! What the gateway says itself, in the shape that vLLM's clients know.

use super::{balancer::NoServer, body::ResponseBody};
use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use rollora_router::refusal::{CONTENT_TYPE as ERROR_TYPE, error_body};

/// Why the gateway answers a request itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum GatewayRefusal {
    /// All requests together hold too much.
    #[error("the gateway holds as many request bodies as it may: try again")]
    BufferExhausted,
    /// The body stopped coming.
    #[error("the request's body did not arrive: nothing came for {seconds} s")]
    BodyTimeout {
        /// For how long nothing came.
        seconds: u64,
    },
    /// The body could not be read.
    #[error("the request's body could not be read: {0}")]
    BadBody(String),
    /// Another protocol is asked for.
    #[error("this gateway speaks plain HTTP/1.1 only: Upgrade is not supported")]
    UpgradeUnsupported,
    /// No server will do.
    #[error("{}", no_server_message(*.0, .1))]
    NoServer(NoServer, String),
    /// The server went away.
    #[error("{0}")]
    ServerDisconnected(String),
    /// The router says so.
    #[error(transparent)]
    Router(#[from] rollora_router::refusal::RequestRefusal),
}

fn no_server_message(why: NoServer, model: &str) -> String {
    match why {
        NoServer::NotReady => "no vLLM server is ready: `rollora status` says what each of them waits for".to_owned(),
        NoServer::NotResident => format!("no server that is ready has `{model}`: `rollora status` says who lacks it"),
        NoServer::OnTrial => format!("`{model}` is on trial on the only server that is ready: try again"),
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
            own => error_body(own.status(), &own.to_string(), None),
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
