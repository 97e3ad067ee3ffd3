//! Why a request is answered here instead of being passed on, and the answer: the shape of vLLM's own errors, so
//! that clients need to know only one.

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use std::time::Duration;

/// Why a request is answered here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestRefusal {
    /// The body names two models.
    #[error("the body has more than one `model` at its top level: send it once")]
    DuplicateModel,
    /// The body is UTF-16 or UTF-32.
    #[error("the body is UTF-16 or UTF-32: send JSON as UTF-8")]
    WideEncoding,
    /// The model's name is longer than anybody's.
    #[error("the `model` of the body is longer than {} bytes: send the name of a model", crate::json::MAX_NAME_LENGTH)]
    ModelNameTooLong,
    /// A rule applies to the body, which breaks off behind its `model`.
    #[error("the body is not valid JSON behind its `model`: send one whole JSON object")]
    MalformedBody,
    /// The rule in force names nobody.
    #[error("the rule of `{rewrite}` that is in force for this model has no target: give it one")]
    NoTarget {
        /// The rewrite whose rule it is.
        rewrite: String,
    },
    /// A body that has to be held whole is longer than one may be.
    #[error("the request's body is larger than {limit} bytes, which is what --max-body allows")]
    BodyTooLarge {
        /// What is allowed.
        limit: usize,
    },
    /// A body that has to be held until its model is known is longer than one may be.
    #[error("the `model` does not stand in the first {limit} bytes of the body, which is what --max-hold allows")]
    BufferLimitExceeded {
        /// What is allowed.
        limit: usize,
    },
    /// A body that has to be held until its model is known does not come.
    #[error("the `model` of the body did not come within {limit:?}, which is what --hold-timeout allows")]
    BufferTimeout {
        /// What is allowed.
        limit: Duration,
    },
    /// The path administrates the server.
    #[error("this path administrates the model server and is closed to clients")]
    AdministrationPath,
    /// The path is not on the list of inference paths.
    #[error("this path is none of the inference paths that are open to clients")]
    UnknownPath,
}

impl RequestRefusal {
    /// The status of the answer.
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

    /// One CamelCase word, the label of the counter.
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

    /// The answer's body; its content type is [`CONTENT_TYPE`].
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

/// The content type of [`error_body`].
pub const CONTENT_TYPE: &str = "application/json";

/// An error in the shape that vLLM gives its own; also for what a proxy has to say itself (502, 503, 504).
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
    // Strings and a number have no way to fail.
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
    fn every_refusal_is_answered_in_the_shape_of_vllm() {
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
