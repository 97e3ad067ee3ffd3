//! Our messages against those of envoy-types, which is generated from Envoy's own definitions. What it writes stands in
//! a file (`wire/` writes it), because it is many megabytes of source; each line is a name and the bytes in hex.

use super::*;
use crate::fixtures::{header_map, message};
use http::StatusCode;
use prost::Message as _;

const VECTORS: &str = include_str!("tests/envoy-types.txt");

/// The lines under a heading.
fn vectors(heading: &str) -> Vec<(&str, Vec<u8>)> {
    let read = |line: &'static str| {
        let (name, hex) = line.split_once(' ').unwrap();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        Some((name.strip_prefix(heading)?, hex.as_bytes().chunks(2).map(byte).collect()))
    };
    VECTORS.lines().filter_map(read).collect()
}

fn headers(end_of_stream: bool) -> HttpHeaders {
    let mut headers = header_map(&[(":method", "POST"), (":path", "/v1/completions")]);
    let text = HeaderLine { key: "x-text".into(), value: "as text".into(), raw_value: Bytes::new() };
    headers.headers.push(text);
    HttpHeaders { headers: Some(headers), end_of_stream }
}

fn piece(end_of_stream: bool) -> HttpBody {
    HttpBody { body: Bytes::from_static(b"a piece"), end_of_stream }
}

#[test]
fn whatever_envoy_types_writes_is_read() {
    let vectors = vectors("request/");
    assert_eq!(vectors.len(), 12);
    for (name, bytes) in vectors {
        let expected = match name {
            "response-headers" => message(Event::ResponseHeaders(headers(true))),
            "body" => message(Event::RequestBody(piece(false))),
            "response-body" => message(Event::ResponseBody(piece(true))),
            "trailers" => message(Event::RequestTrailers(HttpTrailers {})),
            "response-trailers" => message(Event::ResponseTrailers(HttpTrailers {})),
            "observed" => ProcessingRequest { observability_mode: true, ..message(Event::RequestBody(piece(true))) },
            first => {
                let mode = match first.strip_prefix("first/").unwrap() {
                    "none" => BodySendMode::None,
                    "streamed" => BodySendMode::Streamed,
                    "buffered" => BodySendMode::Buffered,
                    "buffered-partial" => BodySendMode::BufferedPartial,
                    "full-duplex-streamed" => BodySendMode::FullDuplexStreamed,
                    "grpc" => BodySendMode::Grpc,
                    other => panic!("{other}"),
                };
                let config = ProtocolConfiguration { request_body_mode: mode.into(), response_body_mode: 0 };
                let headers = Event::RequestHeaders(headers(false));
                ProcessingRequest { protocol_config: Some(config), ..message(headers) }
            }
        };
        assert_eq!(ProcessingRequest::decode(&bytes[..]).unwrap(), expected, "{name}");
    }
}

#[test]
fn every_reply_is_written_as_envoy_types_writes_it() {
    let set =
        |name: &'static str, value: &'static str| (HeaderName::from_static(name), Bytes::from_static(value.as_bytes()));
    let new = || Bytes::from_static(b"new bytes");
    let length = || HeaderMutation::setting([set("content-length", "9")]);
    let part = |direction, end_of_stream| {
        Reply::Body(BodyPart { direction, slices: vec![new().slice(..3), new().slice(3..)], end_of_stream })
    };
    let vectors = vectors("reply/");
    assert_eq!(vectors.len(), 11);
    for (name, bytes) in vectors {
        let reply = match name {
            "headers" => Reply::request_headers(None),
            "headers-changed" => {
                let set = HeaderMutation::setting([set("x-a", "1"), set("x-b", "2")]);
                let headers = HeaderMutation { remove: vec!["x-c".to_owned(), "x-d".to_owned()], ..set };
                Reply::request_headers(Some(HeaderChange { headers, clear_route_cache: true }))
            }
            "response-headers" => {
                Reply::response_headers(Some(HeaderMutation::setting([set("x-rollora-target", "v2")])))
            }
            "body" => Reply::request_body(None, None),
            "body-changed" => {
                let change = HeaderChange { headers: length(), clear_route_cache: false };
                Reply::request_body(Some(new()), Some(change))
            }
            "response-body-changed" => Reply::response_body_changed(new(), Some(length())),
            "part" => part(Direction::Request, false),
            "response-part" => part(Direction::Response, true),
            "trailers" => Reply::request_trailers(),
            "response-trailers" => Reply::response_trailers(),
            "immediate" => Reply::immediate(StatusCode::PAYLOAD_TOO_LARGE, new(), "TooLarge"),
            other => panic!("{other}"),
        };
        assert_eq!((reply.to_wire(), reply.len()), (bytes.clone(), bytes.len()), "{name}");
    }
}
