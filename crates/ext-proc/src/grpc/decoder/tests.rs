use super::*;
use crate::proto::{HttpBody, ProcessingEvent, ProcessingRequest, ProtocolConfiguration};
use proptest::prelude::*;
use prost::Message;

const MAX_LENGTH: usize = 1 << 20;

fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// What is read where the bytes are cut so, one cut after the other.
fn read(bytes: &[u8], cuts: &[usize], in_pieces: bool) -> Result<Vec<ProcessingRequest>, GrpcStatus> {
    let mut messages = MessageDecoder::new(MAX_LENGTH);
    let (mut read, mut rest) = (Vec::new(), bytes);
    for cut in cuts.iter().cycle() {
        let (chunk, after) = rest.split_at((*cut).min(rest.len()));
        messages.push(Bytes::copy_from_slice(chunk));
        while let Some(message) = messages.next(|_| in_pieces)? {
            read.push(message);
        }
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!((messages.chunks.length, matches!(messages.state, DecodeState::Idle)), (0, true), "nothing is left");
    Ok(read)
}

/// Adds a piece to the body that it goes on with, if it does.
fn append_chunk(before: &mut ProcessingEvent, piece: &ProcessingRequest) -> bool {
    let ((ProcessingEvent::RequestBody(before), Some(ProcessingEvent::RequestBody(body)))
    | (ProcessingEvent::ResponseBody(before), Some(ProcessingEvent::ResponseBody(body)))) = (before, &piece.event)
    else {
        return false;
    };
    let goes_on = !before.end_of_stream;
    if goes_on {
        before.body = [&before.body[..], &body.body].concat().into();
        before.end_of_stream = body.end_of_stream;
    }
    goes_on
}

/// The same, with the pieces of a body put together again.
fn merge_chunks(pieces: Vec<ProcessingRequest>) -> Vec<ProcessingRequest> {
    let mut messages: Vec<ProcessingRequest> = Vec::new();
    for piece in pieces {
        if let Some(last) = messages.last_mut()
            && last.event.as_mut().is_some_and(|before| append_chunk(before, &piece))
        {
            last.protocol_config = piece.protocol_config.or(last.protocol_config);
        } else {
            messages.push(piece);
        }
    }
    messages
}

fn message() -> impl Strategy<Value = ProcessingRequest> {
    let length = prop_oneof![0..40usize, 100..50_000usize];
    let body = (length, any::<u8>(), any::<bool>(), any::<bool>()).prop_map(|(length, byte, end, of_request)| {
        let body = HttpBody { body: vec![byte; length].into(), end_of_stream: end };
        if of_request { ProcessingEvent::RequestBody(body) } else { ProcessingEvent::ResponseBody(body) }
    });
    let config = prop::option::of((0..6, 0..6)).prop_map(|config| {
        config.map(|(request_body_mode, response_body_mode)| ProtocolConfiguration {
            request_body_mode,
            response_body_mode,
        })
    });
    let event = prop_oneof![3 => body, 1 => Just(ProcessingEvent::RequestTrailers(crate::proto::HttpTrailers {}))];
    (event, config).prop_map(|(event, protocol_config)| ProcessingRequest {
        event: Some(event),
        observability_mode: false,
        protocol_config,
    })
}

proptest! {
    #[test]
    fn any_cut_of_the_bytes_gives_the_messages_that_were_sent(
        sent in prop::collection::vec(message(), 1..5),
        cuts in prop::collection::vec(1..20_000usize, 1..6),
    ) {
        let bytes: Vec<u8> = sent.iter().flat_map(|message| framed(&message.encode_to_vec())).collect();
        // Long bodies are not printed.
        prop_assert!(read(&bytes, &cuts, false).unwrap() == sent);
        prop_assert!(merge_chunks(read(&bytes, &cuts, true).unwrap()) == merge_chunks(sent));
    }

    #[test]
    fn what_anybody_sends_is_read_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        cut in 1..20usize,
    ) {
        let mut messages = MessageDecoder::new(40);
        for chunk in framed(&bytes).chunks(cut) {
            messages.push(Bytes::copy_from_slice(chunk));
            while let Ok(Some(ProcessingRequest { .. })) = messages.next(|_| true) {}
        }
    }
}

#[test]
fn a_long_body_is_there_before_its_message_is() {
    let body = HttpBody { body: vec![b'x'; 100_000].into(), end_of_stream: true };
    let message = ProcessingRequest { event: Some(ProcessingEvent::RequestBody(body)), ..ProcessingRequest::default() };
    let bytes = framed(&message.encode_to_vec());
    let mut messages = MessageDecoder::new(MAX_LENGTH);
    messages.push(Bytes::copy_from_slice(&bytes[..1000]));
    let lengths = |messages: &mut MessageDecoder| -> Vec<(usize, bool)> {
        let pieces = std::iter::from_fn(|| messages.next::<ProcessingRequest>(|_| true).unwrap());
        let length = |piece: ProcessingRequest| match piece.event {
            Some(ProcessingEvent::RequestBody(body)) => (body.body.len(), body.end_of_stream),
            other => panic!("{other:?}"),
        };
        pieces.map(length).collect()
    };
    let around = bytes.len() - 100_000;
    assert_eq!(lengths(&mut messages), [(1000 - around + 2, false)]);
    // That it is the last is told with it, and not behind it.
    messages.push(Bytes::copy_from_slice(&bytes[1000..99_000]));
    messages.push(Bytes::copy_from_slice(&bytes[99_000..bytes.len() - 1]));
    assert_eq!(lengths(&mut messages), [(98_000, false)]);
    messages.push(Bytes::copy_from_slice(&bytes[bytes.len() - 1..]));
    assert_eq!(lengths(&mut messages), [(bytes.len() - 99_000 - 2, true)]);
}

#[test]
fn what_cannot_be_a_message_is_refused_as_soon_as_that_is_known() {
    let refused = |bytes: &[u8]| read(bytes, &[3], true).unwrap_err();
    assert_eq!(refused(&[1, 0, 0, 0, 0]), GrpcStatus::unimplemented("compressed messages are not read here"));
    let too_long = u32::try_from(MAX_LENGTH + 1).unwrap().to_be_bytes();
    let words = "a message of 1048577 bytes, where 1048576 are the most";
    assert_eq!(refused(&[&[0], &too_long[..]].concat()), GrpcStatus::out_of_range(words));
    // A body, and behind it another one.
    let body = [&[0x22, 44, 0x0a, 20][..], &[b'x'; 20], &[0x0a, 20], &[b'y'; 20]].concat();
    let words = "not a message of this method: a body behind the body";
    assert_eq!(refused(&framed(&body)), GrpcStatus::invalid_argument(words));
}
