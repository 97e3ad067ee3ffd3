//! Hop-by-hop headers (RFC 9110, section 7.6.1), and the detection of upgrade requests.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes hop-by-hop headers, and the headers that `Connection` names except for `Content-Length`.
pub(super) fn drop_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| *name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in
        [KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE]
    {
        headers.remove(name);
    }
}

/// Removes the headers of a body that is sent again with another length, and `Expect`, which the gateway answers.
pub(super) fn drop_framing(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(EXPECT);
}

/// Whether the client asks for another protocol on this connection. `h2c` does not count: clients offer it with plain
/// requests, and accept a response without it.
pub(super) fn wants_upgrade(headers: &HeaderMap) -> bool {
    let offered = |value: &HeaderValue| {
        value.to_str().is_ok_and(|value| value.split(',').any(|protocol| !protocol.trim().eq_ignore_ascii_case("h2c")))
    };
    headers.get_all(UPGRADE).iter().any(offered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn hop_by_hop_headers_are_removed_and_others_kept() {
        let mut given = headers(&[
            ("connection", "close, X-Mine, content-length"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "Basic x"),
            ("content-length", "3"),
            ("authorization", "Bearer key"),
            ("x-request-id", "7"),
        ]);
        drop_hop_by_hop(&mut given);
        let left = headers(&[("content-length", "3"), ("authorization", "Bearer key"), ("x-request-id", "7")]);
        assert_eq!(given, left);
    }

    #[test]
    fn only_a_protocol_other_than_h2c_is_an_upgrade() {
        for (lines, expected) in [
            (&[][..], false),
            (&[("upgrade", "h2c")][..], false),
            (&[("upgrade", "websocket")][..], true),
            (&[("upgrade", "h2c, websocket")][..], true),
            (&[("upgrade", "h2c"), ("upgrade", "TLS/1.2")][..], true),
        ] {
            assert_eq!(wants_upgrade(&headers(lines)), expected, "{lines:?}");
        }
    }
}
