//! Classifies errors of the API server by whether a retry helps, with messages that a person can act on.
//!
//! Every error of kube is interpreted here and nowhere else.

use crate::client::error_chain;
use kube::core::Status;

/// A request to the API server, as error messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    /// Kubernetes verb: `get`, `list`, `watch`, `create`, `update`, `patch`, or `discover`.
    pub verb: &'static str,
    /// The resource with its group, as a role names them: `rollouts/status.rollora.dev`.
    pub resource: &'a str,
    /// Namespace of the request; `None` for all namespaces.
    pub namespace: Option<&'a str>,
}

/// Reason why a request to the API server failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The API server was not reached or is overloaded; a retry may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// A permission is missing in the Role or ClusterRole.
    #[error("{0}")]
    Forbidden(String),
    /// The kind is not installed, or the object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The API server rejects this request permanently.
    #[error("{0}")]
    Refused(String),
    /// The object changed since it was read, or already exists.
    #[error("{0}")]
    Conflict(String),
    /// The request was sent but its outcome is unknown.
    #[error("{0}")]
    Unknown(String),
}

impl ApiError {
    /// Returns the class of the error for metrics and readiness.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable(_) => "Unavailable",
            Self::Forbidden(_) => "Forbidden",
            Self::NotFound(_) => "NotFound",
            Self::Refused(_) => "Refused",
            Self::Conflict(_) => "Conflict",
            Self::Unknown(_) => "Unknown",
        }
    }

    /// Classifies an error of kube for this request.
    pub(crate) fn of(error: &kube::Error, request: ApiRequest<'_>) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_status(status, request),
            kube::Error::Service(inner) if is_before_sending(inner.as_ref()) => {
                Self::Unavailable(format!("the API server cannot be reached: {}", error_chain(inner.as_ref())))
            }
            kube::Error::Auth(inner) => Self::Unavailable(format!(
                "no credentials for the API server: {}: check the user of the kubeconfig or the service \
                 account's token",
                error_chain(inner)
            )),
            kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => {
                Self::Refused(format!("cannot build the request to {request}: {}", error_chain(error)))
            }
            kube::Error::SerdeError(inner) => Self::Unknown(format!("cannot parse the response to {request}: {inner}")),
            other => Self::Unknown(format!("the connection broke during {request}: {}", error_chain(other))),
        }
    }

    fn from_status(status: &Status, request: ApiRequest<'_>) -> Self {
        let message = &status.message;
        match (status.code, status.reason.as_str()) {
            (401, _) => Self::Unavailable(format!(
                "the API server rejects the credentials ({message}): check the user of the kubeconfig or the service \
                 account's token"
            )),
            (403, _) => Self::from_forbidden(message, request),
            (404, _) => Self::NotFound(format!("{request}: not found ({message})")),
            (409, _) => Self::Conflict(message.clone()),
            (410 | 429 | 503, _) => Self::Unavailable(format!("the API server is not available now: {message}")),
            // The storage of the API server did not answer in time, but may have performed the write.
            (500.., _) => Self::Unknown(format!("the API server failed to {request}: {message}")),
            _ => Self::Refused(message.clone()),
        }
    }

    fn from_forbidden(message: &str, request: ApiRequest<'_>) -> Self {
        // A namespace that is being deleted accepts no new objects; no role changes that.
        if message.contains("is being terminated") {
            return Self::Refused(format!("{request}: {message}"));
        }
        let role = if request.namespace.is_some() { "Role or ClusterRole" } else { "ClusterRole" };
        Self::Forbidden(format!(
            "it is forbidden to {request}: apply the {role} of manifests/ and its binding, or grant this verb \
             ({message})"
        ))
    }
}

impl std::fmt::Display for ApiRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in all namespaces"),
        }
    }
}

/// Returns whether the error occurred before any byte of the request was sent.
fn is_before_sending(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<hyper_util::client::legacy::Error>()
            .is_some_and(hyper_util::client::legacy::Error::is_connect)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests;
