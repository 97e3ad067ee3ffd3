//! Refusals: why the router responds to a request itself, and the response. It has the shape of vLLM's errors, so that
//! clients need to handle only one shape.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use std::time::Duration;

/// Why the router refuses a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefusal {
    /// The body has `model` twice at its top level.
    #[error("the body has more than one `model` at its top level: send it once")]
    DuplicateModel,
    /// The body is encoded as UTF-16 or UTF-32.
    #[error("the body is UTF-16 or UTF-32: send JSON as UTF-8")]
    WideEncoding,
    /// The model name is longer than [`crate::json::MAX_NAME_LENGTH`].
    #[error("the `model` of the body is longer than {} bytes: send a model name", crate::json::MAX_NAME_LENGTH)]
    ModelNameTooLong,
    /// A rule matches, but the body is not valid JSON after its `model`.
    #[error("the body is not valid JSON after its `model`: send one complete JSON object")]
    MalformedBody,
    /// The active rule has no target.
    #[error("the active rule for this model, from rewrite `{rewrite}`, has no target: add one to the rule")]
    NoTarget {
        /// Namespace and name of the rewrite that has the rule.
        rewrite: String,
    },
    /// A body that must be buffered whole is too long.
    #[error("the request body is larger than {limit} bytes, which is the limit of --max-body")]
    BodyTooLarge {
        /// Maximum length in bytes.
        limit: usize,
    },
    /// The body must be buffered until its model is known, and the model is not in its first bytes.
    #[error("`model` is not in the first {limit} bytes of the body, which is the limit of --max-hold: send it earlier")]
    BufferLimitExceeded {
        /// Maximum number of buffered bytes.
        limit: usize,
    },
    /// A part of the body is buffered until more of it arrives, and nothing did.
    #[error("the `model` of the body did not arrive within {limit:?}, which is the limit of --hold-timeout")]
    BufferTimeout {
        /// Maximum time between two chunks while a part is buffered.
        limit: Duration,
    },
    /// The path is one of the server's administration.
    #[error("this path administers the model server and is closed to clients")]
    AdministrationPath,
    /// The guard is `Strict` and the path is not an inference path.
    #[error("this path is not one of the inference paths that are open to clients")]
    UnknownPath,
}

impl RequestRefusal {
    /// Returns the HTTP status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::DuplicateModel | Self::ModelNameTooLong | Self::MalformedBody | Self::NoTarget { .. } => {
                StatusCode::BAD_REQUEST
            }
            Self::BodyTooLarge { .. } | Self::BufferLimitExceeded { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BufferTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::WideEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::AdministrationPath => StatusCode::FORBIDDEN,
            Self::UnknownPath => StatusCode::NOT_FOUND,
        }
    }

    /// Returns a CamelCase reason, the label of the counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::DuplicateModel => "DuplicateModel",
            Self::WideEncoding => "WideEncoding",
            Self::ModelNameTooLong => "LongName",
            Self::MalformedBody => "BrokenBody",
            Self::NoTarget { .. } => "NoTarget",
            Self::BodyTooLarge { .. } => "TooLarge",
            Self::BufferLimitExceeded { .. } => "HeldTooMuch",
            Self::BufferTimeout { .. } => "HeldTooLong",
            Self::AdministrationPath => "AdministrationPath",
            Self::UnknownPath => "UnknownPath",
        }
    }

    /// Returns the body of the response; its content type is [`CONTENT_TYPE`].
    pub fn body(&self) -> Bytes {
        let param = match self {
            Self::DuplicateModel
            | Self::ModelNameTooLong
            | Self::NoTarget { .. }
            | Self::BufferLimitExceeded { .. }
            | Self::BufferTimeout { .. } => Some("model"),
            _ => None,
        };
        error_body(self.status(), &self.to_string(), param)
    }
}

/// Content type of [`error_body`].
pub const CONTENT_TYPE: &str = "application/json";

/// Encodes an error in the shape of vLLM's errors; also for errors that the proxy generates (502, 503, 504). `param` is
/// the request field that is wrong.
///
/// ```
/// use http::StatusCode;
/// let body = rollora_router::refusal::error_body(StatusCode::BAD_GATEWAY, "no server answers", None);
/// assert_eq!(
///     &body[..],
///     br#"{"error":{"message":"no server answers","type":"BadGateway","param":null,"code":502}}"#
/// );
/// ```
pub fn error_body(status: StatusCode, message: &str, param: Option<&str>) -> Bytes {
    let kind = match status {
        StatusCode::BAD_REQUEST => "BadRequestError".to_owned(),
        StatusCode::FORBIDDEN => "PermissionDeniedError".to_owned(),
        StatusCode::NOT_FOUND => "NotFoundError".to_owned(),
        StatusCode::INTERNAL_SERVER_ERROR => "InternalServerError".to_owned(),
        other => other.canonical_reason().unwrap_or("Error").replace(' ', ""),
    };
    let error = ErrorBody { error: ErrorDetail { message, kind: &kind, param, code: status.as_u16() } };
    // Serialization of strings and a number cannot fail.
    Bytes::from(serde_json::to_vec(&error).unwrap_or_default())
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize)]
struct ErrorDetail<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    param: Option<&'a str>,
    code: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_the_shape_of_vllm_errors() {
        let refusals = [
            (RequestRefusal::DuplicateModel, 400, "BadRequestError", Some("model")),
            (RequestRefusal::WideEncoding, 415, "UnsupportedMediaType", None),
            (RequestRefusal::ModelNameTooLong, 400, "BadRequestError", Some("model")),
            (RequestRefusal::MalformedBody, 400, "BadRequestError", None),
            (RequestRefusal::NoTarget { rewrite: "a \"b\"".into() }, 400, "BadRequestError", Some("model")),
            (RequestRefusal::BodyTooLarge { limit: 9 }, 413, "PayloadTooLarge", None),
            (RequestRefusal::BufferLimitExceeded { limit: 9 }, 413, "PayloadTooLarge", Some("model")),
            (RequestRefusal::BufferTimeout { limit: Duration::from_secs(9) }, 408, "RequestTimeout", Some("model")),
            (RequestRefusal::AdministrationPath, 403, "PermissionDeniedError", None),
            (RequestRefusal::UnknownPath, 404, "NotFoundError", None),
        ];
        for (refusal, code, kind, param) in refusals {
            let body: serde_json::Value = serde_json::from_slice(&refusal.body()).unwrap();
            let expected = serde_json::json!({
                "error": { "message": refusal.to_string(), "type": kind, "param": param, "code": code }
            });
            assert_eq!(body, expected);
            assert_eq!(refusal.status().as_u16(), code);
        }
    }
}
