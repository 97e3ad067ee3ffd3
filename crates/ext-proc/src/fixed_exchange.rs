//! One exchange, always the same, from the bytes of Envoy's frames to those of the replies' without a network, clock or
//! chance: for counting the instructions that it takes.

use crate::{
    grpc::{Messages, Outbox, Replies},
    processor::{Figures, Hold, How, Moment, Processor, Rules},
    protocol::{
        BodySendMode, Event, HeaderLine, HeaderMap, HttpBody, HttpHeaders, ProcessingRequest, ProtocolConfiguration,
    },
};
use bytes::{Buf, Bytes};
use jiff::Timestamp;
use prometheus_client::{metrics::gauge::Gauge, registry::Registry};
use prost::Message;
use rollora_api::rewrite::{InferenceModelRewrite, PoolRef};
use rollora_router::{guard::Guard, in_force::InForce};
use std::{sync::Arc, time::Duration};

/// The longest frame that anybody sends who was not asked for longer ones.
const FRAME: usize = 16 * 1024;
const MOMENT: Moment = Moment { now: Timestamp::UNIX_EPOCH, random: 0 };

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
    rules: Arc<Rules>,
    frames: Vec<Bytes>,
}

impl FixedExchange {
    /// One with a prompt of so many bytes, under the rule of `rewrite`, which is of the pool `pool` and has `model` in it.
    pub fn new(rewrite: &InferenceModelRewrite, pool: &str, model: &str, prompt: usize) -> Self {
        let pool = PoolRef { name: pool.to_owned(), ..PoolRef::default() };
        let in_force = Arc::new(InForce::new(pool, rewrite.group().as_slice()));
        in_force.reset(std::slice::from_ref(rewrite));
        let rules = Arc::new(Rules {
            in_force,
            guard: Guard::default(),
            how: How::default(),
            hold: Hold::new(0, 0, Duration::ZERO),
            figures: Figures::new(&mut Registry::default()),
            max_body: 0,
            complained: false.into(),
            streams: Gauge::default(),
            clock: || MOMENT.now,
        });
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":"{}"}}],"model":"{model}"}}"#, "x".repeat(prompt));
        let mode = BodySendMode::FullDuplexStreamed.into();
        let config = ProtocolConfiguration { request_body_mode: mode, response_body_mode: 0 };
        let messages = [
            (Event::RequestHeaders(headers(&HEADERS)), Some(config)),
            (Event::RequestBody(HttpBody { body: body.into(), end_of_stream: false }), None),
            (Event::RequestBody(HttpBody { body: Bytes::new(), end_of_stream: true }), None),
            (Event::ResponseHeaders(headers(&[(":status", "200"), ("content-type", "application/json")])), None),
        ];
        let frames = messages.into_iter().flat_map(|(event, protocol_config)| {
            frames(&ProcessingRequest { event: Some(event), observability_mode: false, protocol_config })
        });
        Self { rules, frames: frames.collect() }
    }

    /// Goes through it. Returns how many bytes were said.
    pub fn run(&self) -> usize {
        let mut processor = Processor::new(Arc::clone(&self.rules));
        let (mut messages, mut replies, mut said) = (Messages::new(usize::MAX), Replies::new(), 0);
        for frame in &self.frames {
            messages.push(frame.clone());
            while let Ok(Some(message)) = messages.next(|direction| processor.takes_pieces(direction)) {
                processor.take(message, MOMENT, &mut replies);
            }
            let mut outbox = Outbox::default();
            replies.drain(..).for_each(|reply| outbox.push(reply));
            said += outbox.take(usize::MAX).remaining();
        }
        said
    }
}

fn headers(lines: &[(&'static str, &'static str)]) -> HttpHeaders {
    let line = |(name, value): &(&'static str, &'static str)| HeaderLine {
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
    (0..framed.len()).step_by(FRAME).map(|begin| framed.slice(begin..framed.len().min(begin + FRAME))).collect()
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
            let metrics = crate::fixtures::counted(&exchange.rules.in_force);
            let answered = r#"rollora_router_requests_total{rewrite="ns/r",target="alias-v2",code="2xx"} 2"#;
            assert!(metrics.iter().any(|line| line == answered), "{metrics:?}");
        }
    }
}
