//! Messages in any order, including orders that Envoy never sends.

use super::*;
use crate::{
    fixtures::{header_map, shared_with},
    proto,
};

/// Generates one message, and the body modes if it is the first one, from the bits of `number`.
fn any_message(number: u16) -> proto::ProcessingRequest {
    const BODIES: [&[u8]; 5] =
        [br#"{"model":"alias"}"#, br#"{"model":"#, br#""alias-v2"}"#, b"data: {\"model\":\"alias-v2\"}\n\n", b""];
    let body = proto::HttpBody {
        body: Bytes::from_static(BODIES[usize::from(number >> 3) % BODIES.len()]),
        end_of_stream: number & 0x100 > 0,
    };
    let content_type = if number & 0x200 > 0 { "application/json" } else { "text/event-stream" };
    let event = match number % 8 {
        0 | 1 => {
            let path = ["/v1/completions", "/v1/load_lora_adapter", "/v1/files"][usize::from(number >> 3) % 3];
            let headers = Some(header_map(&[(":path", path), ("x-gateway-model-name", "alias")]));
            proto::ProcessingEvent::RequestHeaders(proto::HttpHeaders { headers, end_of_stream: number & 0x80 > 0 })
        }
        2 | 3 => proto::ProcessingEvent::RequestBody(body),
        4 => proto::ProcessingEvent::RequestTrailers(proto::HttpTrailers {}),
        5 => {
            let headers = Some(header_map(&[(":status", "200"), ("content-type", content_type)]));
            proto::ProcessingEvent::ResponseHeaders(proto::HttpHeaders { headers, end_of_stream: number & 0x80 > 0 })
        }
        6 => proto::ProcessingEvent::ResponseBody(body),
        _ => proto::ProcessingEvent::ResponseTrailers(proto::HttpTrailers {}),
    };
    let config = proto::ProtocolConfiguration {
        request_body_mode: i32::from(number >> 10) % 6,
        response_body_mode: i32::from(number >> 12) % 6,
    };
    proto::ProcessingRequest {
        protocol_config: (number & 0x4000 == 0).then_some(config),
        observability_mode: number & 0x8000 > 0 && number & 0x1000 > 0,
        ..message(event)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_message_order_leaves_no_stream_in_flight(
        numbers in prop::collection::vec(any::<u16>(), 0..10),
        restore_model in any::<bool>(),
        routing_headers in any::<bool>(),
    ) {
        let active_rules = active_rules();
        let rewrite = RewriteOptions { routing_headers, restore_model, ..RewriteOptions::default() };
        let shared = shared_with(&active_rules, rewrite);
        let mut processor = Processor::new(Arc::clone(&shared));
        let mut continues = true;
        for number in numbers {
            let mut replies = ReplyQueue::new();
            let context = CallContext { now: timestamp(1), random: u64::from(number) << 48 };
            let more = processor.handle_message(any_message(number), context, &mut replies);
            prop_assert!(continues || replies.is_empty(), "replies after an immediate response: {replies:?}");
            for reply in &replies {
                prop_assert!(proto::ProcessingResponse::decode(&reply.to_bytes()[..]).unwrap().action.is_some());
            }
            continues = more;
        }
        drop(processor);
        prop_assert_eq!(shared.streams.get(), 0);
        let metrics = nonzero_metrics(&active_rules);
        let in_flight: Vec<_> = metrics.iter().filter(|line| line.contains("in_flight")).collect();
        prop_assert!(in_flight.is_empty(), "{in_flight:?}");
    }
}
