//! One constant exchange, from the bytes of Envoy's frames to the bytes of the replies, without network, clock or
//! random numbers, for counting its instructions.

use crate::{
    grpc::{MessageDecoder, ReplyQueue, SendBuffer},
    processor::{BufferBudget, CallContext, ObservedMetrics, Processor, ProcessorShared, RewriteOptions},
    proto,
};
use bytes::{Buf, Bytes};
use jiff::Timestamp;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use prost::Message;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef};
use rollora_router::{active_rules::ActiveRules, guard::PathGuard};
use std::{sync::Arc, time::Duration};

/// HTTP/2's default maximum frame size.
const FRAME_SIZE: usize = 16 * 1024;
const CONTEXT: CallContext = CallContext { now: Timestamp::UNIX_EPOCH, random: 0 };

const HEADERS: [(&str, &str); 10] = [
    (":authority", "models.example.com"),
    (":path", "/v1/chat/completions"),
    (":method", "POST"),
    (":scheme", "http"),
    ("accept", "*/*"),
    ("content-type", "application/json"),
    ("user-agent", "client/1.0"),
    ("x-envoy-expected-rq-timeout-ms", "15000"),
    ("x-forwarded-proto", "http"),
    ("x-request-id", "4c4bdc27-93f5-4ef0-b5b1-1f2c9f1b4e0f"),
];

/// A chat request in full duplex mode with `model` as the last key of its body, and the response headers.
#[derive(Debug)]
pub struct FixedExchange {
    shared: Arc<ProcessorShared>,
    frames: Vec<Bytes>,
}

impl FixedExchange {
    /// Creates an exchange with a prompt of `prompt` bytes under the rule of `rewrite`, which must belong to the pool
    /// `pool` and match `model`.
    pub fn new(rewrite: &InferenceModelRewrite, pool: &str, model: &str, prompt: usize) -> Self {
        let pool = PoolRef { name: pool.to_owned(), ..PoolRef::default() };
        let active_rules = Arc::new(ActiveRules::new(pool, rewrite.group().as_slice()));
        active_rules.reset(std::slice::from_ref(rewrite));
        let shared = Arc::new(ProcessorShared {
            active_rules,
            guard: PathGuard::default(),
            rewrite: RewriteOptions::default(),
            buffer: BufferBudget::new(0, 0, Duration::ZERO),
            observed: ObservedMetrics::new(&mut Registry::default()),
            max_body: 0,
            mode_warned: false.into(),
            streams: Gauge::default(),
            clock: || CONTEXT.now,
        });
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":"{}"}}],"model":"{model}"}}"#, "x".repeat(prompt));
        let mode = proto::BodySendMode::FullDuplexStreamed.into();
        let config = proto::ProtocolConfiguration { request_body_mode: mode, response_body_mode: 0 };
        let messages = [
            (proto::ProcessingEvent::RequestHeaders(headers(&HEADERS)), Some(config)),
            (proto::ProcessingEvent::RequestBody(proto::HttpBody { body: body.into(), end_of_stream: false }), None),
            (proto::ProcessingEvent::RequestBody(proto::HttpBody { body: Bytes::new(), end_of_stream: true }), None),
            (
                proto::ProcessingEvent::ResponseHeaders(headers(&[
                    (":status", "200"),
                    ("content-type", "application/json"),
                ])),
                None,
            ),
        ];
        let frames = messages.into_iter().flat_map(|(event, protocol_config)| {
            frames(&proto::ProcessingRequest { event: Some(event), observability_mode: false, protocol_config })
        });
        Self { shared, frames: frames.collect() }
    }

    /// Runs the exchange once. Returns the size of the replies in bytes.
    pub fn run(&self) -> usize {
        let mut processor = Processor::new(Arc::clone(&self.shared));
        let (mut decoder, mut replies, mut sent) = (MessageDecoder::new(usize::MAX), ReplyQueue::new(), 0);
        for frame in &self.frames {
            decoder.push(frame.clone());
            while let Ok(Some(message)) = decoder.next(|direction| processor.accepts_chunks(direction)) {
                processor.handle_message(message, CONTEXT, &mut replies);
            }
            let mut buffer = SendBuffer::default();
            replies.drain(..).for_each(|reply| buffer.push(reply));
            sent += buffer.take(usize::MAX).remaining();
        }
        sent
    }
}

fn headers(lines: &[(&'static str, &'static str)]) -> proto::HttpHeaders {
    let line = |(name, value): &(&'static str, &'static str)| proto::HeaderValue {
        key: Bytes::from_static(name.as_bytes()),
        value: Bytes::new(),
        raw_value: Bytes::from_static(value.as_bytes()),
    };
    proto::HttpHeaders {
        headers: Some(proto::HeaderMap { headers: lines.iter().map(line).collect() }),
        end_of_stream: false,
    }
}

/// Encodes a message with its gRPC prefix, split into frames.
fn frames(message: &proto::ProcessingRequest) -> Vec<Bytes> {
    let message = message.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes();
    let framed = Bytes::from([&[0], &length[..], &message].concat());
    (0..framed.len())
        .step_by(FRAME_SIZE)
        .map(|begin| framed.slice(begin..framed.len().min(begin + FRAME_SIZE)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::rewrite;
    use rollora_api::rewrite::RewriteGroup;

    #[test]
    fn model_is_replaced_and_all_other_bytes_are_forwarded() {
        let rewrite = rewrite(RewriteGroup::Current, "r", "alias", &[("alias-v2", 1)]);
        for prompt in [0, 1024, 100_000] {
            let exchange = FixedExchange::new(&rewrite, "pool", "alias", prompt);
            let sent = exchange.run();
            assert!((prompt..prompt + 500).contains(&sent), "{sent} bytes for {prompt}");
            assert_eq!(exchange.run(), sent);
            let metrics = crate::fixtures::nonzero_metrics(&exchange.shared.active_rules);
            let responses = r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 2"#;
            assert!(metrics.iter().any(|line| line == responses), "{metrics:?}");
        }
    }
}
