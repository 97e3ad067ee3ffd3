//! Messages in any order, also in those that no Envoy sends.

use super::*;
use crate::{
    fixtures::{header_map, shared_with},
    proto::{HttpTrailers, ProtocolConfiguration},
};

/// One message, by a number: which, and in which modes where it is the first.
fn any_message(number: u16) -> ProcessingRequest {
    const BODIES: [&[u8]; 5] =
        [br#"{"model":"alias"}"#, br#"{"model":"#, br#""alias-v2"}"#, b"data: {\"model\":\"alias-v2\"}\n\n", b""];
    let piece = HttpBody {
        body: Bytes::from_static(BODIES[usize::from(number >> 3) % BODIES.len()]),
        end_of_stream: number & 0x100 > 0,
    };
    let kind = if number & 0x200 > 0 { "application/json" } else { "text/event-stream" };
    let event = match number % 8 {
        0 | 1 => {
            let path = ["/v1/completions", "/v1/load_lora_adapter", "/v1/files"][usize::from(number >> 3) % 3];
            let headers = Some(header_map(&[(":path", path), ("x-gateway-model-name", "alias")]));
            ProcessingEvent::RequestHeaders(HttpHeaders { headers, end_of_stream: number & 0x80 > 0 })
        }
        2 | 3 => ProcessingEvent::RequestBody(piece),
        4 => ProcessingEvent::RequestTrailers(HttpTrailers {}),
        5 => {
            let headers = Some(header_map(&[(":status", "200"), ("content-type", kind)]));
            ProcessingEvent::ResponseHeaders(HttpHeaders { headers, end_of_stream: number & 0x80 > 0 })
        }
        6 => ProcessingEvent::ResponseBody(piece),
        _ => ProcessingEvent::ResponseTrailers(HttpTrailers {}),
    };
    let config = ProtocolConfiguration {
        request_body_mode: i32::from(number >> 10) % 6,
        response_body_mode: i32::from(number >> 12) % 6,
    };
    ProcessingRequest {
        protocol_config: (number & 0x4000 == 0).then_some(config),
        observability_mode: number & 0x8000 > 0 && number & 0x1000 > 0,
        ..message(event)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn whatever_comes_in_whatever_order_the_stream_is_over_in_the_end(
        numbers in prop::collection::vec(any::<u16>(), 0..10),
        restore_model in any::<bool>(),
        routing_headers in any::<bool>(),
    ) {
        let in_force = active_rules();
        let rules = shared_with(&in_force, RewriteOptions { routing_headers, restore_model, ..RewriteOptions::default() });
        let mut processor = Processor::new(Arc::clone(&rules));
        let mut goes_on = true;
        for number in numbers {
            let mut replies = ReplyQueue::new();
            let moment = CallContext { now: timestamp(1), random: u64::from(number) << 48 };
            let more = processor.handle_message(any_message(number), moment, &mut replies);
            prop_assert!(goes_on || replies.is_empty(), "nothing is said behind an answer: {replies:?}");
            for reply in &replies {
                prop_assert!(ProcessingResponse::decode(&reply.to_bytes()[..]).unwrap().action.is_some());
            }
            goes_on = more;
        }
        drop(processor);
        prop_assert_eq!(rules.streams.get(), 0);
        let in_flight: Vec<_> = nonzero_metrics(&in_force).into_iter().filter(|line| line.contains("in_flight")).collect();
        prop_assert!(in_flight.is_empty(), "{in_flight:?}");
    }
}
