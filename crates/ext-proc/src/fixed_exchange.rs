//! One exchange, always the same, from the bytes of Envoy's frames to those of the replies' without a network, clock or
//! chance: for counting the instructions that it takes.

use crate::{
    grpc::{MessageDecoder, ReplyQueue, SendBuffer},
    processor::{BufferBudget, CallContext, ObservedMetrics, Processor, ProcessorShared, RewriteOptions},
    proto::{
        BodySendMode, HeaderMap, HeaderValue, HttpBody, HttpHeaders, ProcessingEvent, ProcessingRequest,
        ProtocolConfiguration,
    },
};
use bytes::{Buf, Bytes};
use jiff::Timestamp;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use prost::Message;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef};
use rollora_router::{active_rules::ActiveRules, guard::PathGuard};
use std::{sync::Arc, time::Duration};

/// The longest frame that anybody sends who was not asked for longer ones.
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

/// The exchange: a chat request in full duplex whose body has its model as the last key, and the headers of the answer.
#[derive(Debug)]
pub struct FixedExchange {
    shared: Arc<ProcessorShared>,
    frames: Vec<Bytes>,
}

impl FixedExchange {
    /// One with a prompt of so many bytes, under the rule of `rewrite`, which is of the pool `pool` and has `model` in it.
    pub fn new(rewrite: &InferenceModelRewrite, pool: &str, model: &str, prompt: usize) -> Self {
        let pool = PoolRef { name: pool.to_owned(), ..PoolRef::default() };
        let in_force = Arc::new(ActiveRules::new(pool, rewrite.group().as_slice()));
        in_force.reset(std::slice::from_ref(rewrite));
        let shared = Arc::new(ProcessorShared {
            active_rules: in_force,
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
        let mode = BodySendMode::FullDuplexStreamed.into();
        let config = ProtocolConfiguration { request_body_mode: mode, response_body_mode: 0 };
        let messages = [
            (ProcessingEvent::RequestHeaders(headers(&HEADERS)), Some(config)),
            (ProcessingEvent::RequestBody(HttpBody { body: body.into(), end_of_stream: false }), None),
            (ProcessingEvent::RequestBody(HttpBody { body: Bytes::new(), end_of_stream: true }), None),
            (
                ProcessingEvent::ResponseHeaders(headers(&[(":status", "200"), ("content-type", "application/json")])),
                None,
            ),
        ];
        let frames = messages.into_iter().flat_map(|(event, protocol_config)| {
            frames(&ProcessingRequest { event: Some(event), observability_mode: false, protocol_config })
        });
        Self { shared, frames: frames.collect() }
    }

    /// Goes through it. Returns how many bytes were said.
    pub fn run(&self) -> usize {
        let mut processor = Processor::new(Arc::clone(&self.shared));
        let (mut messages, mut replies, mut said) = (MessageDecoder::new(usize::MAX), ReplyQueue::new(), 0);
        for frame in &self.frames {
            messages.push(frame.clone());
            while let Ok(Some(message)) = messages.next(|direction| processor.accepts_chunks(direction)) {
                processor.handle_message(message, CONTEXT, &mut replies);
            }
            let mut outbox = SendBuffer::default();
            replies.drain(..).for_each(|reply| outbox.push(reply));
            said += outbox.take(usize::MAX).remaining();
        }
        said
    }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HttpHeaders {
    let line = |(name, value): &(&'static str, &'static str)| HeaderValue {
        key: Bytes::from_static(name.as_bytes()),
        value: Bytes::new(),
        raw_value: Bytes::from_static(value.as_bytes()),
    };
    HttpHeaders { headers: Some(HeaderMap { headers: lines.iter().map(line).collect() }), end_of_stream: false }
}

/// A message as it comes: with its length before it, in frames.
fn frames(message: &ProcessingRequest) -> Vec<Bytes> {
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
    fn the_model_is_replaced_and_everything_else_is_said_again() {
        let rewrite = rewrite(RewriteGroup::Current, "r", "alias", &[("alias-v2", 1)]);
        for prompt in [0, 1024, 100_000] {
            let exchange = FixedExchange::new(&rewrite, "pool", "alias", prompt);
            let said = exchange.run();
            assert!((prompt..prompt + 500).contains(&said), "{said} bytes for {prompt}");
            assert_eq!(exchange.run(), said);
            let metrics = crate::fixtures::nonzero_metrics(&exchange.shared.active_rules);
            let answered = r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 2"#;
            assert!(metrics.iter().any(|line| line == answered), "{metrics:?}");
        }
    }
}
