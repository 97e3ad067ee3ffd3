//! Headers that end at this hop (RFC 9110, section 7.6.1), and what a request asks of the hop itself.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        CONNECTION, CONTENT_LENGTH, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Drops what concerned the connection that the message came by, and what `Connection` names.
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

/// Drops what describes a body that is sent again with another length, and `Expect`, which was answered here.
pub(super) fn drop_framing(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
    headers.remove(EXPECT);
}

/// Whether the client wants another protocol on this connection. `h2c` does not count: clients offer it with plain
/// requests and are content without.
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
    fn what_concerned_the_connection_is_dropped_and_the_rest_kept() {
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
    fn only_another_protocol_than_h2c_is_an_upgrade() {
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
