//! The part of Envoy's external processing protocol (`envoy.service.ext_proc.v3`) and of gRPC's health protocol
//! that is spoken here, as on the wire.
//!
//! What Envoy sends besides (attributes, metadata) is skipped while reading. Text that is only looked at is read as
//! [`Bytes`], which on the wire is the same, so that nothing is copied out of the buffer it came in. The numbers of
//! the fields are Envoy's; `protocol/tests.rs` holds them against envoy-types,
//! and `processor/tests/recorded.rs` against what a real Envoy sent.

mod partial;
mod reply;
#[cfg(test)]
mod tests;

pub(crate) use reply::{BodyChunk, Direction, ProcessorReply, RequestHeaderMutation};

use bytes::Bytes;
use http::HeaderName;
use rollora_router::headers::HeaderLookup;

/// The path of the one method of the external processor.
pub(crate) const PROCESS_PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// The paths of the health service.
pub(crate) const HEALTH_CHECK_PATH: &str = "/grpc.health.v1.Health/Check";
pub(crate) const HEALTH_WATCH_PATH: &str = "/grpc.health.v1.Health/Watch";

/// One message of Envoy.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessingRequest {
    /// What happened.
    #[prost(oneof = "ProcessingEvent", tags = "2, 3, 4, 5, 6, 7")]
    pub(crate) event: Option<ProcessingEvent>,
    /// Nobody waits for a reply.
    #[prost(bool, tag = "10")]
    pub(crate) observability_mode: bool,
    /// In the first message of a stream: how bodies are sent.
    #[prost(message, optional, tag = "11")]
    pub(crate) protocol_config: Option<ProtocolConfiguration>,
}

/// What happened to a request or its response.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ProcessingEvent {
    /// The request's headers.
    #[prost(message, tag = "2")]
    RequestHeaders(HttpHeaders),
    /// The response's headers.
    #[prost(message, tag = "3")]
    ResponseHeaders(HttpHeaders),
    /// The request's body, or a piece of it.
    #[prost(message, tag = "4")]
    RequestBody(HttpBody),
    /// The response's body, or a piece of it.
    #[prost(message, tag = "5")]
    ResponseBody(HttpBody),
    /// The request's trailers.
    #[prost(message, tag = "6")]
    RequestTrailers(HttpTrailers),
    /// The response's trailers.
    #[prost(message, tag = "7")]
    ResponseTrailers(HttpTrailers),
}

/// How a filter sends bodies.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ProtocolConfiguration {
    /// Those of requests.
    #[prost(enumeration = "BodySendMode", tag = "1")]
    pub(crate) request_body_mode: i32,
    /// Those of responses.
    #[prost(enumeration = "BodySendMode", tag = "2")]
    pub(crate) response_body_mode: i32,
}

/// How bodies of one direction are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum BodySendMode {
    /// Not at all.
    None = 0,
    /// Piece by piece, one reply for each.
    Streamed = 1,
    /// As a whole.
    Buffered = 2,
    /// The beginning only.
    BufferedPartial = 3,
    /// Piece by piece, with replies whenever there are some.
    FullDuplexStreamed = 4,
    /// As the messages of a gRPC stream.
    Grpc = 5,
}

/// Headers, and whether a body follows them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpHeaders {
    /// The headers.
    #[prost(message, optional, tag = "1")]
    pub(crate) headers: Option<HeaderMap>,
    /// No body follows.
    #[prost(bool, tag = "3")]
    pub(crate) end_of_stream: bool,
}

/// A piece of a body.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpBody {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) body: Bytes,
    /// Neither more of it nor trailers follow.
    #[prost(bool, tag = "2")]
    pub(crate) end_of_stream: bool,
}

/// Trailers; what is in them concerns nobody here.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HttpTrailers {}

/// Headers as Envoy keeps them: names in lower case, those of HTTP/2 among them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderMap {
    /// The lines.
    #[prost(message, repeated, tag = "1")]
    pub(crate) headers: Vec<HeaderValue>,
}

/// One header. On the wire its name and value are text; they are the same as bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderValue {
    /// The name.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    /// The value, where it is text and Envoy was asked to send it so.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
    /// The value.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) raw_value: Bytes,
}

impl HeaderValue {
    pub(crate) fn value(&self) -> &[u8] {
        if self.raw_value.is_empty() { &self.value } else { &self.raw_value }
    }
}

impl HeaderLookup for HeaderMap {
    fn first(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|line| line.key == name).map(HeaderValue::value)
    }
}

/// One message to Envoy.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessingResponse {
    /// What to do.
    #[prost(oneof = "ProcessingAction", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) action: Option<ProcessingAction>,
}

/// What to do with what happened.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ProcessingAction {
    /// With the request's headers.
    #[prost(message, tag = "1")]
    RequestHeaders(HeadersOrBodyResponse),
    /// With the response's headers.
    #[prost(message, tag = "2")]
    ResponseHeaders(HeadersOrBodyResponse),
    /// With the request's body.
    #[prost(message, tag = "3")]
    RequestBody(HeadersOrBodyResponse),
    /// With the response's body.
    #[prost(message, tag = "4")]
    ResponseBody(HeadersOrBodyResponse),
    /// With the request's trailers.
    #[prost(message, tag = "5")]
    RequestTrailers(TrailersResponse),
    /// With the response's trailers.
    #[prost(message, tag = "6")]
    ResponseTrailers(TrailersResponse),
    /// Answer the client.
    #[prost(message, tag = "7")]
    ImmediateResponse(ImmediateResponse),
}

/// The reply to headers, or to a body.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeadersOrBodyResponse {
    /// What changes.
    #[prost(message, optional, tag = "1")]
    pub(crate) response: Option<CommonResponse>,
}

/// What changes of headers and body. Without anything in it the message goes on as it is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CommonResponse {
    /// Of the headers.
    #[prost(message, optional, tag = "2")]
    pub(crate) header_mutation: Option<HeaderMutation>,
    /// Of the body.
    #[prost(message, optional, tag = "3")]
    pub(crate) body_mutation: Option<BodyMutation>,
    /// The route is to be chosen anew. Envoy ignores it, and counts that, where no header changes.
    #[prost(bool, tag = "5")]
    pub(crate) clear_route_cache: bool,
}

/// The reply to trailers: they stay.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct TrailersResponse {}

/// What changes of headers.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderMutation {
    /// Headers that are set.
    #[prost(message, repeated, tag = "1")]
    pub(crate) set_headers: Vec<HeaderValueOption>,
    /// Names of headers that are removed.
    #[prost(string, repeated, tag = "2")]
    pub(crate) remove_headers: Vec<String>,
}

/// A header that is set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderValueOption {
    /// Name and value.
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<HeaderValue>,
    /// What happens to one that is there.
    #[prost(enumeration = "HeaderAppendAction", tag = "3")]
    pub(crate) append_action: i32,
}

/// What happens to a header that is there and is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum HeaderAppendAction {
    /// It stays, and a second one is added.
    AppendIfExistsOrAdd = 0,
    /// It stays, and nothing is added.
    AddIfAbsent = 1,
    /// It is overwritten.
    OverwriteIfExistsOrAdd = 2,
}

/// What changes of a body.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BodyMutation {
    /// How.
    #[prost(oneof = "Mutation", tags = "1, 3")]
    pub(crate) mutation: Option<Mutation>,
}

/// What a body becomes.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Mutation {
    /// This.
    #[prost(bytes = "bytes", tag = "1")]
    Body(Bytes),
    /// Whatever was sent so, one after the other.
    #[prost(message, tag = "3")]
    StreamedResponse(StreamedBodyResponse),
}

/// A piece of a body that is sent on.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StreamedBodyResponse {
    /// The bytes.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) body: Bytes,
    /// It was the last.
    #[prost(bool, tag = "2")]
    pub(crate) end_of_stream: bool,
}

/// An answer to the client.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImmediateResponse {
    /// Its status.
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<HttpStatus>,
    /// Its headers.
    #[prost(message, optional, tag = "2")]
    pub(crate) headers: Option<HeaderMutation>,
    /// Its body.
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) body: Bytes,
    /// What access logs say of it.
    #[prost(string, tag = "5")]
    pub(crate) details: String,
}

/// A status of HTTP.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HttpStatus {
    /// The number.
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
}

/// A question about a service's health.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckRequest {
    /// Which service; none means the server.
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

/// A service's health.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HealthCheckResponse {
    /// How it is.
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub(crate) status: i32,
}

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum ServingStatus {
    /// Nothing is known.
    Unknown = 0,
    /// It serves.
    Serving = 1,
    /// It does not serve.
    NotServing = 2,
    /// There is none of this name.
    ServiceUnknown = 3,
}

impl HeaderMutation {
    /// Sets these, whatever is there under their names.
    pub(crate) fn overwrite(headers: impl IntoIterator<Item = (HeaderName, Bytes)>) -> Self {
        let set = |(name, value): (HeaderName, Bytes)| HeaderValueOption {
            header: Some(HeaderValue {
                key: Bytes::copy_from_slice(name.as_str().as_bytes()),
                value: Bytes::new(),
                raw_value: value,
            }),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        };
        Self { set_headers: headers.into_iter().map(set).collect(), remove_headers: Vec::new() }
    }

    /// Removes these.
    pub(crate) fn remove<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        Self { set_headers: Vec::new(), remove_headers: names.into_iter().map(str::to_owned).collect() }
    }
}
