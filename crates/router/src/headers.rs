//! Header names that gateways, endpoint pickers and routers use among themselves and that clients must not send.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

pub use rollora_api::names::TARGET_HEADER;

/// Headers by which these components pass the model or the endpoint to each other. They are removed from requests of
/// clients, whether a rule matches or not, because a client could otherwise choose a model that no rule selected. Lower
/// case.
pub const INTERNAL_HEADERS: [&str; 10] = [
    TARGET_HEADER,
    "x-gateway-base-model-name",
    "x-gateway-destination-endpoint",
    "x-gateway-destination-endpoint-fallback",
    "x-gateway-destination-endpoint-served",
    "x-gateway-destination-endpoint-subset",
    "x-gateway-model-name",
    "x-gateway-model-name-rewrite",
    "x-llm-d-model-name-rewrite",
    "x-llm-d-request-dropped-reason",
];

/// The requested model, by which gateways choose a route.
pub const MODEL_HEADER: &str = "x-gateway-model-name";
/// The base model of the server, by which gateways choose a route.
pub const BASE_MODEL_HEADER: &str = "x-gateway-base-model-name";
/// The target for an endpoint picker that runs later and rewrites the body: the current name and the previous name.
pub const REWRITE_HEADERS: [&str; 2] = ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"];

/// The [`INTERNAL_HEADERS`] that have no meaning in a response, so that only a server can have set them there. (The
/// others are response headers of endpoint pickers: which endpoint served, and why none did.)
pub const REQUEST_ONLY_HEADERS: [&str; 5] =
    [TARGET_HEADER, BASE_MODEL_HEADER, MODEL_HEADER, "x-gateway-model-name-rewrite", "x-llm-d-model-name-rewrite"];

/// Access to headers, independent of how a proxy stores them.
pub trait HeaderLookup {
    /// Returns the first value of the header with this lower-case name.
    fn first(&self, name: &str) -> Option<&[u8]>;
}

impl HeaderLookup for HeaderMap {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(HeaderValue::as_bytes)
    }
}

/// Removes the [`INTERNAL_HEADERS`] from a client's request.
///
/// ```
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-gateway-model-name-rewrite", "v2".parse().unwrap());
/// headers.insert("x-session-id", "7".parse().unwrap());
/// rollora_router::headers::remove_internal(&mut headers);
/// assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-session-id"]);
/// ```
pub fn remove_internal(headers: &mut HeaderMap) {
    for name in INTERNAL_HEADERS {
        headers.remove(name);
    }
}

/// Sets [`TARGET_HEADER`] to the target that served the request, or removes it. A value that the server set is dropped.
pub fn set_target_header(headers: &mut HeaderMap, target: Option<&HeaderValue>) {
    let name = HeaderName::from_static(TARGET_HEADER);
    match target {
        Some(target) => drop(headers.insert(name, target.clone())),
        None => drop(headers.remove(name)),
    }
}

/// Encodes a model name as a header value. Characters that a header cannot carry are percent-encoded, and so is `%`.
pub fn encode_header_value(name: &str) -> HeaderValue {
    const ENCODED: &AsciiSet = &CONTROLS.add(b'%');
    let encoded = utf8_percent_encode(name.trim(), ENCODED).to_string();
    // The text contains only visible ASCII and spaces, so the fallback is never taken.
    HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""))
}

/// Returns whether a request body with these headers can be scanned: it is neither compressed nor multipart.
pub(crate) fn body_is_readable(headers: &(impl HeaderLookup + ?Sized)) -> bool {
    is_uncompressed(headers) && !media_type(headers).is_some_and(|media| starts_with(media, b"multipart/"))
}

fn is_uncompressed(headers: &(impl HeaderLookup + ?Sized)) -> bool {
    headers.first(header::CONTENT_ENCODING.as_str()).is_none_or(|encoding| {
        let encoding = encoding.trim_ascii();
        encoding.is_empty() || encoding.eq_ignore_ascii_case(b"identity")
    })
}

/// Response formats that can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResponseFormat {
    /// A single JSON document.
    Json,
    /// A stream of server-sent events (`text/event-stream`).
    EventStream,
}

/// Returns the format of a response with these headers. `None` if the response is compressed, has no content type, or
/// has one that is not supported.
pub(crate) fn response_format(headers: &(impl HeaderLookup + ?Sized)) -> Option<ResponseFormat> {
    let media = media_type(headers).filter(|_| is_uncompressed(headers))?;
    if media.eq_ignore_ascii_case(b"text/event-stream") {
        return Some(ResponseFormat::EventStream);
    }
    is_json(headers).then_some(ResponseFormat::Json)
}

/// Returns whether a body with these headers is declared as JSON; also if there is no content type.
pub(crate) fn is_json(headers: &(impl HeaderLookup + ?Sized)) -> bool {
    media_type(headers).is_none_or(|media| {
        media.eq_ignore_ascii_case(b"application/json") || media.to_ascii_lowercase().ends_with(b"+json")
    })
}

fn media_type(headers: &(impl HeaderLookup + ?Sized)) -> Option<&[u8]> {
    headers.first(header::CONTENT_TYPE.as_str())?.split(|byte| *byte == b';').next().map(<[u8]>::trim_ascii)
}

fn starts_with(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|text| text.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_model_name_becomes_a_header_value() {
        for (name, value) in
            [("a-v2", "a-v2"), ("org/a b", "org/a b"), ("50%", "50%25"), ("ä\n", "%C3%A4"), ("a\u{7f}b", "a%7Fb")]
        {
            assert_eq!(encode_header_value(name), value);
        }
    }

    #[test]
    fn internal_headers_are_lower_case_and_sorted() {
        assert!(INTERNAL_HEADERS.iter().all(|name| HeaderName::from_static(name).as_str() == *name));
        assert!(INTERNAL_HEADERS.iter().skip(1).is_sorted());
    }

    #[test]
    fn target_header_of_server_is_replaced_or_removed() {
        let mut headers = HeaderMap::new();
        headers.append(TARGET_HEADER, HeaderValue::from_static("forged"));
        headers.append(TARGET_HEADER, HeaderValue::from_static("twice"));
        set_target_header(&mut headers, Some(&encode_header_value("a-v2")));
        assert_eq!(headers.get_all(TARGET_HEADER).iter().collect::<Vec<_>>(), ["a-v2"]);
        set_target_header(&mut headers, None);
        assert!(headers.is_empty());
    }

    #[test]
    fn only_plain_bodies_are_readable() {
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        assert!(body_is_readable(&HeaderMap::new()));
        assert!(body_is_readable(&with("content-encoding", "Identity")));
        assert!(!body_is_readable(&with("content-encoding", "gzip")));
        assert!(!body_is_readable(&with("content-type", "Multipart/Form-Data; boundary=x")));
        assert!(body_is_readable(&with("content-type", "text/plain")));
        assert!(is_json(&with("content-type", "Application/JSON; charset=utf-8")));
        assert!(is_json(&with("content-type", "application/problem+json")));
        assert!(is_json(&HeaderMap::new()));
        assert!(!is_json(&with("content-type", "application/octet-stream")));
    }
}
