//! Prints messages of Envoy's external processing protocol as envoy-types encodes them: a name and hex per line.

use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderMap, HeaderValue, HeaderValueOption, Metadata,
            header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd,
        },
        extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode,
        service::ext_proc::v3::{
            BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody, HttpHeaders,
            HttpTrailers, ImmediateResponse, ProcessingRequest, ProcessingResponse, ProtocolConfiguration,
            StreamedBodyResponse, TrailersResponse, body_mutation::Mutation, processing_request::Request,
            processing_response::Response,
        },
        r#type::v3::{HttpStatus, StatusCode},
    },
    google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message;

fn print(name: &str, message: &impl Message) {
    let hex: String = message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect();
    println!("{name} {hex}");
}

fn header(name: &str, value: &str) -> HeaderValue {
    HeaderValue { key: name.into(), value: String::new(), raw_value: value.into() }
}

fn headers(end_of_stream: bool) -> HttpHeaders {
    let text = HeaderValue { key: "x-text".into(), value: "as text".into(), raw_value: Vec::new() };
    let headers = vec![header(":method", "POST"), header(":path", "/v1/completions"), text];
    HttpHeaders { headers: Some(HeaderMap { headers }), end_of_stream, ..Default::default() }
}

/// Attributes and metadata, which the server does not decode.
fn noise() -> Struct {
    let value = Value { kind: Some(Kind::StringValue("noise".into())) };
    Struct { fields: [("noise".to_owned(), value)].into() }
}

fn request(request: Request) -> ProcessingRequest {
    ProcessingRequest { request: Some(request), ..Default::default() }
}

fn first(mode: BodySendMode) -> ProcessingRequest {
    let config = ProtocolConfiguration {
        request_body_mode: mode.into(),
        response_body_mode: BodySendMode::None.into(),
        send_body_without_waiting_for_header_response: true,
    };
    ProcessingRequest {
        protocol_config: Some(config),
        attributes: [("envoy.filters.http.ext_proc".to_owned(), noise())].into(),
        metadata_context: Some(Metadata {
            filter_metadata: [("envoy.lb".to_owned(), noise())].into(),
            typed_filter_metadata: [("x".to_owned(), Any { type_url: "type".into(), value: vec![1] })].into(),
        }),
        ..request(Request::RequestHeaders(headers(false)))
    }
}

fn response(response: Response) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), ..Default::default() }
}

fn set(name: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(header(name, value)),
        append_action: OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    }
}

fn mutation(set_headers: Vec<HeaderValueOption>, remove: &[&str]) -> Option<HeaderMutation> {
    Some(HeaderMutation { set_headers, remove_headers: remove.iter().map(|name| (*name).to_owned()).collect() })
}

fn body(mutation: Mutation) -> Option<BodyMutation> {
    Some(BodyMutation { mutation: Some(mutation) })
}

fn main() {
    for (name, mode) in [
        ("none", BodySendMode::None),
        ("streamed", BodySendMode::Streamed),
        ("buffered", BodySendMode::Buffered),
        ("buffered-partial", BodySendMode::BufferedPartial),
        ("full-duplex-streamed", BodySendMode::FullDuplexStreamed),
        ("grpc", BodySendMode::Grpc),
    ] {
        print(&format!("request/first/{name}"), &first(mode));
    }
    let chunk = |end_of_stream| HttpBody { body: b"a piece".to_vec(), end_of_stream, ..Default::default() };
    print("request/response-headers", &request(Request::ResponseHeaders(headers(true))));
    print("request/body", &request(Request::RequestBody(chunk(false))));
    print("request/response-body", &request(Request::ResponseBody(chunk(true))));
    let trailers = || HttpTrailers { trailers: Some(HeaderMap { headers: vec![header("x", "y")] }) };
    print("request/trailers", &request(Request::RequestTrailers(trailers())));
    print("request/response-trailers", &request(Request::ResponseTrailers(trailers())));
    let observed = ProcessingRequest { observability_mode: true, ..request(Request::RequestBody(chunk(true))) };
    print("request/observed", &observed);

    let common = |common| Some(common);
    print("reply/headers", &response(Response::RequestHeaders(HeadersResponse::default())));
    let changed = CommonResponse {
        header_mutation: mutation(vec![set("x-a", "1"), set("x-b", "2")], &["x-c", "x-d"]),
        clear_route_cache: true,
        ..Default::default()
    };
    print("reply/headers-changed", &response(Response::RequestHeaders(HeadersResponse { response: common(changed) })));
    let target =
        CommonResponse { header_mutation: mutation(vec![set("x-rollora-target", "v2")], &[]), ..Default::default() };
    print("reply/response-headers", &response(Response::ResponseHeaders(HeadersResponse { response: common(target) })));
    print("reply/body", &response(Response::RequestBody(BodyResponse::default())));
    let replaced = || CommonResponse {
        header_mutation: mutation(vec![set("content-length", "9")], &[]),
        body_mutation: body(Mutation::Body(b"new bytes".to_vec())),
        ..Default::default()
    };
    print("reply/body-changed", &response(Response::RequestBody(BodyResponse { response: common(replaced()) })));
    let reply = BodyResponse { response: common(replaced()) };
    print("reply/response-body-changed", &response(Response::ResponseBody(reply)));
    let streamed = |end_of_stream| CommonResponse {
        body_mutation: body(Mutation::StreamedResponse(StreamedBodyResponse {
            body: b"new bytes".to_vec(),
            end_of_stream,
            ..Default::default()
        })),
        ..Default::default()
    };
    print("reply/part", &response(Response::RequestBody(BodyResponse { response: common(streamed(false)) })));
    print("reply/response-part", &response(Response::ResponseBody(BodyResponse { response: common(streamed(true)) })));
    print("reply/trailers", &response(Response::RequestTrailers(TrailersResponse::default())));
    print("reply/response-trailers", &response(Response::ResponseTrailers(TrailersResponse::default())));
    let immediate = ImmediateResponse {
        status: Some(HttpStatus { code: StatusCode::PayloadTooLarge.into() }),
        headers: mutation(vec![set("content-type", "application/json")], &[]),
        body: b"new bytes".to_vec(),
        details: "TooLarge".into(),
        ..Default::default()
    };
    print("reply/immediate", &response(Response::ImmediateResponse(immediate)));
}
