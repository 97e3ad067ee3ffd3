//! gRPC status of a call.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::{Display, Write as _};

/// Status codes with gRPC's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok = 0,
    InvalidArgument = 3,
    NotFound = 5,
    OutOfRange = 11,
    Unimplemented = 12,
    Unavailable = 14,
}

/// Status code and message of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrpcStatus {
    code: Code,
    message: String,
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl GrpcStatus {
    pub(crate) const OK: Self = Self { code: Code::Ok, message: String::new() };

    /// The client sent an invalid message.
    pub(crate) fn invalid_argument(message: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, message: message.into() }
    }

    /// The client sent bytes that are no message of the called method.
    pub(crate) fn malformed(reason: impl Display) -> Self {
        Self::invalid_argument(format!("invalid message for this method: {reason}"))
    }

    /// The requested entity does not exist.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { code: Code::NotFound, message: message.into() }
    }

    /// The client sent a message that is too long.
    pub(crate) fn out_of_range(message: impl Into<String>) -> Self {
        Self { code: Code::OutOfRange, message: message.into() }
    }

    /// The method or feature is not supported.
    pub(crate) fn unimplemented(message: impl Into<String>) -> Self {
        Self { code: Code::Unimplemented, message: message.into() }
    }

    /// The server cannot serve the call now; the client may retry.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: Code::Unavailable, message: message.into() }
    }

    /// Adds the status to trailers, or to the headers of a response without messages.
    pub(super) fn write_to(&self, headers: &mut HeaderMap) {
        headers.insert(GRPC_STATUS, HeaderValue::from(self.code as u16));
        if let Some(message) = percent_encode(&self.message) {
            headers.insert(GRPC_MESSAGE, message);
        }
    }
}

/// Encodes a message as a header value: `%` and all bytes that are not visible ASCII or spaces become `%XX`. `None` if
/// it is empty.
fn percent_encode(message: &str) -> Option<HeaderValue> {
    let mut escaped = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(byte.into()),
            // Writing to a string cannot fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    (!escaped.is_empty()).then(|| HeaderValue::from_str(&escaped).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_percent_encoded() {
        let mut headers = HeaderMap::new();
        GrpcStatus::not_found("100 % ✓\n").write_to(&mut headers);
        assert_eq!(headers[GRPC_STATUS], "5");
        assert_eq!(headers[GRPC_MESSAGE], "100 %25 %E2%9C%93%0A");
        let mut headers = HeaderMap::new();
        GrpcStatus::OK.write_to(&mut headers);
        assert_eq!((&headers[GRPC_STATUS], headers.len()), (&HeaderValue::from_static("0"), 1));
    }
}
