//! Messages of Envoy's external processing protocol (`envoy.service.ext_proc.v3`) and of gRPC's health protocol, as
//! far as this server uses them, under their original names. Refer to them with the module name: `proto::HeaderValue`.
//!
//! Other fields that Envoy sends (attributes, metadata) are skipped while decoding. Strings that are only compared are
//! decoded as [`Bytes`], which has the same encoding, so that nothing is copied out of the receive buffer. The field
//! numbers are Envoy's; `proto/tests.rs` compares them with envoy-types, and `processor/tests/recorded.rs` with what a
//! real Envoy sent.

mod partial;
mod reply;
#[cfg(test)]
mod tests;

pub(crate) use reply::{BodyChunk, Direction, ProcessorReply, RequestHeaderMutation};

use bytes::Bytes;
use http::HeaderName;
use rollora_router::headers::HeaderLookup;

/// Path of the ext_proc method `Process`.
pub(crate) const PROCESS_PATH: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// Paths of the methods of the gRPC health service.
pub(crate) const HEALTH_CHECK_PATH: &str = "/grpc.health.v1.Health/Check";
pub(crate) const HEALTH_WATCH_PATH: &str = "/grpc.health.v1.Health/Watch";

/// Message from Envoy, one per event.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessingRequest {
    #[prost(oneof = "ProcessingEvent", tags = "2, 3, 4, 5, 6, 7")]
    pub(crate) event: Option<ProcessingEvent>,
    /// Whether the filter is in observability mode, in which Envoy reads no replies.
    #[prost(bool, tag = "10")]
    pub(crate) observability_mode: bool,
    /// Body modes of the filter; only in the first message of a stream.
    #[prost(message, optional, tag = "11")]
    pub(crate) protocol_config: Option<ProtocolConfiguration>,
}

/// Event of a request or its response: its headers, its body or a chunk of it, or its trailers (Envoy's `request`).
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ProcessingEvent {
    #[prost(message, tag = "2")]
    RequestHeaders(HttpHeaders),
    #[prost(message, tag = "3")]
    ResponseHeaders(HttpHeaders),
    #[prost(message, tag = "4")]
    RequestBody(HttpBody),
    #[prost(message, tag = "5")]
    ResponseBody(HttpBody),
    #[prost(message, tag = "6")]
    RequestTrailers(HttpTrailers),
    #[prost(message, tag = "7")]
    ResponseTrailers(HttpTrailers),
}

/// Body modes of a filter, as values of [`BodySendMode`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ProtocolConfiguration {
    #[prost(enumeration = "BodySendMode", tag = "1")]
    pub(crate) request_body_mode: i32,
    #[prost(enumeration = "BodySendMode", tag = "2")]
    pub(crate) response_body_mode: i32,
}

/// How the bodies of one direction are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum BodySendMode {
    /// Bodies are not sent.
    None = 0,
    /// Chunk by chunk, with one reply for each.
    Streamed = 1,
    /// The whole body in one message.
    Buffered = 2,
    /// Only the beginning of the body, up to Envoy's buffer limit.
    BufferedPartial = 3,
    /// Chunk by chunk, with replies at any time.
    FullDuplexStreamed = 4,
    /// As the messages of a gRPC stream.
    Grpc = 5,
}

/// Headers, and whether a body follows them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpHeaders {
    #[prost(message, optional, tag = "1")]
    pub(crate) headers: Option<HeaderMap>,
    /// Whether no body follows.
    #[prost(bool, tag = "3")]
    pub(crate) end_of_stream: bool,
}

/// A whole body or a chunk of it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HttpBody {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) body: Bytes,
    /// Whether neither another chunk nor trailers follow.
    #[prost(bool, tag = "2")]
    pub(crate) end_of_stream: bool,
}

/// Trailers; their content is not decoded.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HttpTrailers {}

/// Headers as Envoy stores them: names in lower case, including HTTP/2 pseudo-headers.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderMap {
    #[prost(message, repeated, tag = "1")]
    pub(crate) headers: Vec<HeaderValue>,
}

/// One header. `key` and `value` are strings in Envoy's definition, which have the same encoding as bytes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderValue {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) key: Bytes,
    /// Set instead of `raw_value` if Envoy is configured to send values as text.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) value: Bytes,
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
        self.headers.iter().find(|header| header.key == name).map(HeaderValue::value)
    }
}

/// Message to Envoy, usually one per event.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessingResponse {
    #[prost(oneof = "ProcessingAction", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub(crate) action: Option<ProcessingAction>,
}

/// Reply to one event, or the response to the client (Envoy's `response`).
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum ProcessingAction {
    #[prost(message, tag = "1")]
    RequestHeaders(HeadersOrBodyResponse),
    #[prost(message, tag = "2")]
    ResponseHeaders(HeadersOrBodyResponse),
    #[prost(message, tag = "3")]
    RequestBody(HeadersOrBodyResponse),
    #[prost(message, tag = "4")]
    ResponseBody(HeadersOrBodyResponse),
    #[prost(message, tag = "5")]
    RequestTrailers(TrailersResponse),
    #[prost(message, tag = "6")]
    ResponseTrailers(TrailersResponse),
    /// Respond to the client instead of forwarding the request.
    #[prost(message, tag = "7")]
    ImmediateResponse(ImmediateResponse),
}

/// Reply to headers or to a body; Envoy's `HeadersResponse` and `BodyResponse`, which have equal fields.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeadersOrBodyResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) response: Option<CommonResponse>,
}

/// Changes of headers and body. Without any the message is forwarded unchanged.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CommonResponse {
    #[prost(message, optional, tag = "2")]
    pub(crate) header_mutation: Option<HeaderMutation>,
    #[prost(message, optional, tag = "3")]
    pub(crate) body_mutation: Option<BodyMutation>,
    /// Whether to select the route again. Envoy ignores this, and counts it, if no header changes.
    #[prost(bool, tag = "5")]
    pub(crate) clear_route_cache: bool,
}

/// Reply to trailers, which leaves them unchanged.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct TrailersResponse {}

/// Headers to set and to remove.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderMutation {
    #[prost(message, repeated, tag = "1")]
    pub(crate) set_headers: Vec<HeaderValueOption>,
    #[prost(string, repeated, tag = "2")]
    pub(crate) remove_headers: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HeaderValueOption {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<HeaderValue>,
    /// What happens to an existing header, as a value of [`HeaderAppendAction`].
    #[prost(enumeration = "HeaderAppendAction", tag = "3")]
    pub(crate) append_action: i32,
}

/// What happens to an existing header of the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum HeaderAppendAction {
    /// Keep it and add another one.
    AppendIfExistsOrAdd = 0,
    /// Keep it and add nothing.
    AddIfAbsent = 1,
    /// Overwrite the existing header.
    OverwriteIfExistsOrAdd = 2,
}

/// Change of a body.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct BodyMutation {
    #[prost(oneof = "Mutation", tags = "1, 3")]
    pub(crate) mutation: Option<Mutation>,
}

/// Replacement of a body (Envoy's `mutation`).
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Mutation {
    #[prost(bytes = "bytes", tag = "1")]
    Body(Bytes),
    /// The next chunk of the body to forward; only in full duplex mode.
    #[prost(message, tag = "3")]
    StreamedResponse(StreamedBodyResponse),
}

/// Chunk of a body to forward.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StreamedBodyResponse {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) body: Bytes,
    /// Whether this is the last chunk.
    #[prost(bool, tag = "2")]
    pub(crate) end_of_stream: bool,
}

/// Response to the client, generated by Envoy.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ImmediateResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<HttpStatus>,
    #[prost(message, optional, tag = "2")]
    pub(crate) headers: Option<HeaderMutation>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) body: Bytes,
    /// Reason for Envoy's access log.
    #[prost(string, tag = "5")]
    pub(crate) details: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HttpStatus {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
}

/// Request of the gRPC health service.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckRequest {
    /// Name of the service; empty for the whole server.
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

/// Response of the gRPC health service; `status` is a value of [`ServingStatus`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    pub(crate) status: i32,
}

/// Health status of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    /// There is no service of this name; only for `Watch`.
    ServiceUnknown = 3,
}

impl HeaderMutation {
    /// Creates a mutation that sets these headers and overwrites existing ones.
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

    /// Creates a mutation that removes the headers with these names.
    pub(crate) fn remove<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        Self { set_headers: Vec::new(), remove_headers: names.into_iter().map(str::to_owned).collect() }
    }
}
