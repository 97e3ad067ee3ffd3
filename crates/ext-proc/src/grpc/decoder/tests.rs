use super::*;
use crate::proto;
use proptest::prelude::*;
use prost::Message;

const MAX_LENGTH: usize = 1 << 20;

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// Decodes `bytes` from chunks of these lengths, which are repeated.
fn read(bytes: &[u8], lengths: &[usize], in_parts: bool) -> Result<Vec<proto::ProcessingRequest>, GrpcStatus> {
    let mut decoder = MessageDecoder::new(MAX_LENGTH);
    let (mut read, mut rest) = (Vec::new(), bytes);
    for length in lengths.iter().cycle() {
        let (chunk, after) = rest.split_at((*length).min(rest.len()));
        decoder.push(Bytes::copy_from_slice(chunk));
        while let Some(message) = decoder.next(|_| in_parts)? {
            read.push(message);
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!((decoder.chunks.length, matches!(decoder.state, DecodeState::Idle)), (0, true), "nothing is left");
    Ok(read)
}

/// Appends `part` to the body `before`, if it continues that body. Returns whether it does.
fn append_chunk(before: &mut proto::ProcessingEvent, part: &proto::ProcessingRequest) -> bool {
    let ((proto::ProcessingEvent::RequestBody(before), Some(proto::ProcessingEvent::RequestBody(body)))
    | (proto::ProcessingEvent::ResponseBody(before), Some(proto::ProcessingEvent::ResponseBody(body)))) =
        (before, &part.event)
    else {
        return false;
    };
    let continues = !before.end_of_stream;
    if continues {
        before.body = [&before.body[..], &body.body].concat().into();
        before.end_of_stream = body.end_of_stream;
    }
    continues
}

/// Merges the parts of each body into one message.
fn merge_chunks(parts: Vec<proto::ProcessingRequest>) -> Vec<proto::ProcessingRequest> {
    let mut messages: Vec<proto::ProcessingRequest> = Vec::new();
    for part in parts {
        if let Some(last) = messages.last_mut()
            && last.event.as_mut().is_some_and(|before| append_chunk(before, &part))
        {
            last.protocol_config = part.protocol_config.or(last.protocol_config);
        } else {
            messages.push(part);
        }
    }
    messages
}

fn message() -> impl Strategy<Value = proto::ProcessingRequest> {
    let length = prop_oneof![0..40usize, 100..50_000usize];
    let body = (length, any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(length, byte, end, is_request)| {
        let body = proto::HttpBody { body: vec![byte; length].into(), end_of_stream: end };
        if is_request { proto::ProcessingEvent::RequestBody(body) } else { proto::ProcessingEvent::ResponseBody(body) }
    });
    let config = prop::option::of((0..6, 0..6)).prop_map(|config| {
        config.map(|(request_body_mode, response_body_mode)| proto::ProtocolConfiguration {
            request_body_mode,
            response_body_mode,
        })
    });
    let event = prop_oneof![3 => body, 1 => Just(proto::ProcessingEvent::RequestTrailers(proto::HttpTrailers {}))];
    (event, config).prop_map(|(event, protocol_config)| proto::ProcessingRequest {
        event: Some(event),
        observability_mode: false,
        protocol_config,
    })
}

proptest! {
    #[test]
    fn any_chunking_gives_the_messages_that_were_sent(
        sent in prop::collection::vec(message(), 1..5),
        lengths in prop::collection::vec(1..20_000usize, 1..6),
    ) {
        let bytes: Vec<u8> = sent.iter().flat_map(|message| framed(&message.encode_to_vec())).collect();
        // `prop_assert_eq` would print the long bodies.
        prop_assert!(read(&bytes, &lengths, false).unwrap() == sent);
        prop_assert!(merge_chunks(read(&bytes, &lengths, true).unwrap()) == merge_chunks(sent));
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        length in 1..20usize,
    ) {
        let mut decoder = MessageDecoder::new(40);
        for chunk in framed(&bytes).chunks(length) {
            decoder.push(Bytes::copy_from_slice(chunk));
            while let Ok(Some(proto::ProcessingRequest { .. })) = decoder.next(|_| true) {}
        }
    }
}

#[test]
fn long_body_is_yielded_before_its_message_is_complete() {
    let body = proto::HttpBody { body: vec![b'x'; 100_000].into(), end_of_stream: true };
    let message = proto::ProcessingRequest {
        event: Some(proto::ProcessingEvent::RequestBody(body)),
        ..proto::ProcessingRequest::default()
    };
    let bytes = framed(&message.encode_to_vec());
    let mut decoder = MessageDecoder::new(MAX_LENGTH);
    decoder.push(Bytes::copy_from_slice(&bytes[..1000]));
    let lengths = |decoder: &mut MessageDecoder| -> Vec<(usize, bool)> {
        let parts = std::iter::from_fn(|| decoder.next::<proto::ProcessingRequest>(|_| true).unwrap());
        let length = |part: proto::ProcessingRequest| match part.event {
            Some(proto::ProcessingEvent::RequestBody(body)) => (body.body.len(), body.end_of_stream),
            other => panic!("{other:?}"),
        };
        parts.map(length).collect()
    };
    let around = bytes.len() - 100_000;
    assert_eq!(lengths(&mut decoder), [(1000 - around + 2, false)]);
    // The last part has `end_of_stream`; no empty part follows.
    decoder.push(Bytes::copy_from_slice(&bytes[1000..99_000]));
    decoder.push(Bytes::copy_from_slice(&bytes[99_000..bytes.len() - 1]));
    assert_eq!(lengths(&mut decoder), [(98_000, false)]);
    decoder.push(Bytes::copy_from_slice(&bytes[bytes.len() - 1..]));
    assert_eq!(lengths(&mut decoder), [(bytes.len() - 99_000 - 2, true)]);
}

#[test]
fn invalid_messages_are_refused_as_early_as_possible() {
    let read_error = |bytes: &[u8]| read(bytes, &[3], true).unwrap_err();
    assert_eq!(read_error(&[1, 0, 0, 0, 0]), GrpcStatus::unimplemented("compressed messages are not supported"));
    let too_long = u32::try_from(MAX_LENGTH + 1).unwrap().to_be_bytes();
    let expected = "message of 1048577 bytes exceeds the maximum of 1048576 bytes";
    assert_eq!(read_error(&[&[0], &too_long[..]].concat()), GrpcStatus::out_of_range(expected));
    // A body that is followed by another body.
    let body = [&[0x22, 44, 0x0a, 20][..], &[b'x'; 20], &[0x0a, 20], &[b'y'; 20]].concat();
    let expected = "invalid message for this method: the message has two bodies";
    assert_eq!(read_error(&framed(&body)), GrpcStatus::invalid_argument(expected));
}
