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
    let text = HeaderValue { key: "x-text".into(), value: "as text".into(), raw_value: Bytes::new() };
    headers.headers.push(text);
    HttpHeaders { headers: Some(headers), end_of_stream }
}

fn body_chunk(end_of_stream: bool) -> HttpBody {
    HttpBody { body: Bytes::from_static(b"a piece"), end_of_stream }
}

#[test]
fn whatever_envoy_types_writes_is_read() {
    let vectors = vectors("request/");
    assert_eq!(vectors.len(), 12);
    for (name, bytes) in vectors {
        let expected = match name {
            "response-headers" => message(ProcessingEvent::ResponseHeaders(headers(true))),
            "body" => message(ProcessingEvent::RequestBody(body_chunk(false))),
            "response-body" => message(ProcessingEvent::ResponseBody(body_chunk(true))),
            "trailers" => message(ProcessingEvent::RequestTrailers(HttpTrailers {})),
            "response-trailers" => message(ProcessingEvent::ResponseTrailers(HttpTrailers {})),
            "observed" => ProcessingRequest {
                observability_mode: true,
                ..message(ProcessingEvent::RequestBody(body_chunk(true)))
            },
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
                let headers = ProcessingEvent::RequestHeaders(headers(false));
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
    let length = || HeaderMutation::overwrite([set("content-length", "9")]);
    let part = |direction, end_of_stream| {
        ProcessorReply::BodyChunk(BodyChunk {
            direction,
            slices: vec![new().slice(..3), new().slice(3..)],
            end_of_stream,
        })
    };
    let vectors = vectors("reply/");
    assert_eq!(vectors.len(), 11);
    for (name, bytes) in vectors {
        let reply = match name {
            "headers" => ProcessorReply::request_headers(None),
            "headers-changed" => {
                let set = HeaderMutation::overwrite([set("x-a", "1"), set("x-b", "2")]);
                let headers = HeaderMutation { remove_headers: vec!["x-c".to_owned(), "x-d".to_owned()], ..set };
                ProcessorReply::request_headers(Some(RequestHeaderMutation {
                    mutation: headers,
                    clear_route_cache: true,
                }))
            }
            "response-headers" => {
                ProcessorReply::response_headers(Some(HeaderMutation::overwrite([set("x-rollora-target", "v2")])))
            }
            "body" => ProcessorReply::request_body(None, None),
            "body-changed" => {
                let change = RequestHeaderMutation { mutation: length(), clear_route_cache: false };
                ProcessorReply::request_body(Some(new()), Some(change))
            }
            "response-body-changed" => ProcessorReply::response_body_replaced(new(), Some(length())),
            "part" => part(Direction::Request, false),
            "response-part" => part(Direction::Response, true),
            "trailers" => ProcessorReply::request_trailers(),
            "response-trailers" => ProcessorReply::response_trailers(),
            "immediate" => ProcessorReply::immediate(StatusCode::PAYLOAD_TOO_LARGE, new(), "TooLarge"),
            other => panic!("{other}"),
        };
        assert_eq!((reply.to_bytes(), reply.len()), (bytes.clone(), bytes.len()), "{name}");
    }
}
