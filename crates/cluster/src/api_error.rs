//! What the API server's answers mean, in words a person can act on, and whether asking again helps.
//!
//! Every error of kube is interpreted here and nowhere else.

use crate::client::error_chain;
use kube::core::Status;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    /// get, list, watch, create, update, patch.
    pub verb: &'static str,
    /// The resource with its group, as a role names them: `rollouts/status.rollora.dev`.
    pub resource: &'a str,
    /// The namespace; none for all of them.
    pub namespace: Option<&'a str>,
}

/// Why something that was asked for was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Nobody answered, or not now: asking again may help.
    #[error("{0}")]
    Unavailable(String),
    /// The role lacks it.
    #[error("{0}")]
    Forbidden(String),
    /// The kind is not installed, or the object is not there.
    #[error("{0}")]
    NotFound(String),
    /// The API server will never take this as it is.
    #[error("{0}")]
    Refused(String),
    /// Somebody wrote in between, or made it already.
    #[error("{0}")]
    Conflict(String),
    /// It was sent, and nobody knows what became of it.
    #[error("{0}")]
    Unknown(String),
}

impl ApiError {
    /// The class, as metrics and readiness say it.
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

    /// What an error of kube says of this request.
    pub(crate) fn of(error: &kube::Error, request: ApiRequest<'_>) -> Self {
        match error {
            kube::Error::Api(status) => Self::from_status(status, request),
            kube::Error::Service(inner) if is_before_sending(inner.as_ref()) => {
                Self::Unavailable(format!("the API server cannot be reached: {}", error_chain(inner.as_ref())))
            }
            kube::Error::Auth(inner) => Self::Unavailable(format!(
                "there is nothing to prove our identity to the API server with: {}: see the user of the kubeconfig, or \
                 the service account's token",
                error_chain(inner)
            )),
            kube::Error::BuildRequest(_) | kube::Error::HttpError(_) => {
                Self::Refused(format!("{request} cannot be asked for: {}", error_chain(error)))
            }
            kube::Error::SerdeError(inner) => Self::Unknown(format!("the answer to {request} cannot be read: {inner}")),
            other => {
                Self::Unknown(format!("{request} was asked for, and the connection broke: {}", error_chain(other)))
            }
        }
    }

    fn from_status(status: &Status, request: ApiRequest<'_>) -> Self {
        let said = &status.message;
        match (status.code, status.reason.as_str()) {
            (401, _) => Self::Unavailable(format!(
                "the API server does not accept our identity ({said}): see the user of the kubeconfig, or the service \
                 account's token"
            )),
            (403, _) => Self::from_forbidden(said, request),
            (404, _) => Self::NotFound(format!("{request}: not found ({said})")),
            (409, _) => Self::Conflict(said.clone()),
            (410 | 429 | 503, _) => Self::Unavailable(format!("the API server cannot do it now: {said}")),
            // The store behind the API server did not answer in time: it may have written all the same.
            (500.., _) => Self::Unknown(format!("the API server failed at {request}: {said}")),
            _ => Self::Refused(said.clone()),
        }
    }

    fn from_forbidden(said: &str, request: ApiRequest<'_>) -> Self {
        // A namespace that is being deleted takes nothing new: no role helps there.
        if said.contains("is being terminated") {
            return Self::Refused(format!("{request}: {said}"));
        }
        let role = if request.namespace.is_some() { "Role or ClusterRole" } else { "ClusterRole" };
        Self::Forbidden(format!(
            "it is forbidden to {request}: apply the {role} of manifests/ and its binding, or grant this verb ({said})"
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

/// Whether nothing of the request can have arrived.
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
