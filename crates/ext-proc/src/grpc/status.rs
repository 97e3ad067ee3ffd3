//! How calls end.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::{Display, Write as _};

/// How a call has ended; the numbers are gRPC's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Code {
    Ok = 0,
    InvalidArgument = 3,
    NotFound = 5,
    OutOfRange = 11,
    Unimplemented = 12,
    Unavailable = 14,
}

/// How a call has ended, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrpcStatus {
    code: Code,
    message: String,
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

impl GrpcStatus {
    pub(crate) const OK: Self = Self { code: Code::Ok, message: String::new() };

    /// What came cannot be understood.
    pub(crate) fn invalid_argument(words: impl Into<String>) -> Self {
        Self { code: Code::InvalidArgument, message: words.into() }
    }

    /// What came is no message of the method that was called.
    pub(crate) fn malformed(why: impl Display) -> Self {
        Self::invalid_argument(format!("not a message of this method: {why}"))
    }

    /// There is no such thing.
    pub(crate) fn not_found(words: impl Into<String>) -> Self {
        Self { code: Code::NotFound, message: words.into() }
    }

    /// What came is too long.
    pub(crate) fn out_of_range(words: impl Into<String>) -> Self {
        Self { code: Code::OutOfRange, message: words.into() }
    }

    /// Nobody here can do that.
    pub(crate) fn unimplemented(words: impl Into<String>) -> Self {
        Self { code: Code::Unimplemented, message: words.into() }
    }

    /// Another server, or this one later, can do it.
    pub(crate) fn unavailable(words: impl Into<String>) -> Self {
        Self { code: Code::Unavailable, message: words.into() }
    }

    /// Puts it into trailers, or into the headers of an answer that has nothing else.
    pub(super) fn write_to(&self, headers: &mut HeaderMap) {
        headers.insert(GRPC_STATUS, HeaderValue::from(self.code as u16));
        if let Some(words) = percent_encode(&self.message) {
            headers.insert(GRPC_MESSAGE, words);
        }
    }
}

/// Words as a header's value: what is not visible ASCII, and `%`, as `%XX`.
fn percent_encode(words: &str) -> Option<HeaderValue> {
    let mut escaped = String::with_capacity(words.len());
    for byte in words.bytes() {
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
    fn words_stay_readable_whatever_is_in_them() {
        let mut headers = HeaderMap::new();
        GrpcStatus::not_found("100 % ✓\n").write_to(&mut headers);
        assert_eq!(headers[GRPC_STATUS], "5");
        assert_eq!(headers[GRPC_MESSAGE], "100 %25 %E2%9C%93%0A");
        let mut headers = HeaderMap::new();
        GrpcStatus::OK.write_to(&mut headers);
        assert_eq!((&headers[GRPC_STATUS], headers.len()), (&HeaderValue::from_static("0"), 1));
    }
}
