//! Send buffer for replies, which does not copy the long body slices in them.

use super::PREFIX_LENGTH;
use crate::proto::{BodyChunk, ProcessorReply};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use std::{collections::VecDeque, io::IoSlice};

/// Slices up to this length are copied, which is cheaper than sending them separately.
const MAX_COPY: usize = 2048;
/// Capacity for the fields around the slices of a body.
const OVERHEAD: usize = 64;

/// Encoded replies that wait to be sent.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    slices: VecDeque<Bytes>,
    /// Encoded bytes after the last slice.
    tail: BytesMut,
    /// Total length of slices and tail.
    length: usize,
}

impl SendBuffer {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn push(&mut self, reply: ProcessorReply) {
        match reply {
            ProcessorReply::Encoded(bytes) => {
                self.begin_message(bytes.len());
                self.tail.put_slice(&bytes);
            }
            ProcessorReply::Message(message) => {
                self.begin_message(message.encoded_len());
                message.encode_raw(&mut self.tail);
            }
            ProcessorReply::BodyChunk(chunk) => self.push_body(chunk),
        }
    }

    fn push_body(&mut self, chunk: BodyChunk) {
        self.begin_message(chunk.encoded_len());
        chunk.write_prefix(&mut self.tail);
        for slice in chunk.slices {
            if slice.len() <= MAX_COPY {
                self.tail.put_slice(&slice);
            } else {
                self.freeze_tail();
                self.slices.push_back(slice);
            }
        }
        BodyChunk::write_suffix(chunk.end_of_stream, &mut self.tail);
    }

    /// Writes the prefix of a message of this length.
    fn begin_message(&mut self, length: usize) {
        self.length += PREFIX_LENGTH + length;
        self.tail.reserve(PREFIX_LENGTH + length.min(MAX_COPY) + OVERHEAD);
        self.tail.put_u8(0);
        // Bodies are limited to far less than 4 GiB, so the fallback is never taken.
        self.tail.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            self.slices.push_back(self.tail.split().freeze());
        }
    }

    /// Removes at most the first `max` bytes.
    pub(crate) fn take(&mut self, max: usize) -> Slices {
        self.freeze_tail();
        if max >= self.length {
            self.length = 0;
            return Slices(std::mem::take(&mut self.slices));
        }
        self.length -= max;
        let (mut taken, mut left) = (VecDeque::new(), max);
        while let Some(first) = self.slices.front_mut().filter(|_| left > 0) {
            let slice = first.split_to(left.min(first.len()));
            left -= slice.len();
            taken.push_back(slice);
            if first.is_empty() {
                self.slices.pop_front();
            }
        }
        Slices(taken)
    }
}

/// Non-contiguous bytes of one frame.
#[derive(Debug, Default)]
pub(crate) struct Slices(VecDeque<Bytes>);

impl Buf for Slices {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |first| first)
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let slices = self.0.iter().zip(into);
        slices.map(|(slice, into)| *into = IoSlice::new(slice)).count()
    }

    fn advance(&mut self, mut count: usize) {
        // Callers never advance beyond the remaining bytes.
        while let Some(first) = self.0.front_mut().filter(|_| count > 0) {
            let step = count.min(first.len());
            first.advance(step);
            count -= step;
            if first.is_empty() {
                self.0.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{self, Direction};
    use proptest::prelude::*;

    fn replies() -> impl Strategy<Value = Vec<ProcessorReply>> {
        let slices = prop::collection::vec((0..3 * MAX_COPY).prop_map(|length| Bytes::from(vec![b'x'; length])), 0..4);
        let body = (slices, any::<bool>()).prop_map(|(slices, end_of_stream)| {
            ProcessorReply::BodyChunk(BodyChunk { direction: Direction::Request, slices, end_of_stream })
        });
        let refused = Just(ProcessorReply::immediate(http::StatusCode::NOT_FOUND, Bytes::from_static(b"{}"), "No"));
        prop::collection::vec(prop_oneof![Just(ProcessorReply::request_trailers()), refused, body], 0..6)
    }

    proptest! {
        #[test]
        fn bytes_taken_out_are_the_messages_that_were_pushed(
            replies in replies(),
            max in prop::collection::vec(1..20_000usize, 1..8),
            step in 1..5000usize,
        ) {
            let mut buffer = SendBuffer::default();
            for reply in &replies {
                buffer.push(reply.clone());
            }
            let (length, mut sent) = (buffer.len(), Vec::new());
            for max in max.into_iter().cycle() {
                if buffer.len() == 0 {
                    break;
                }
                let mut slices = buffer.take(max);
                prop_assert!(slices.remaining() <= max);
                while slices.has_remaining() {
                    // Consumes the slices like a writer that accepts a few bytes at a time.
                    let mut vectored = [IoSlice::new(&[]); 3];
                    let count = slices.chunks_vectored(&mut vectored);
                    let written = vectored[..count].iter().flat_map(|slice| slice.iter().copied()).take(step);
                    let written: Vec<u8> = written.collect();
                    prop_assert!(slices.chunk().starts_with(&written[..written.len().min(slices.chunk().len())]));
                    slices.advance(written.len());
                    sent.extend(written);
                }
            }
            prop_assert_eq!(sent.len(), length);
            let mut sent = &sent[..];
            for reply in replies {
                prop_assert_eq!(sent.get_u8(), 0);
                let length = usize::try_from(sent.get_u32()).unwrap();
                let (message, rest) = sent.split_at(length);
                let expected = reply.to_bytes();
                prop_assert_eq!(message, &expected[..]);
                prop_assert!(proto::ProcessingResponse::decode(message).is_ok());
                sent = rest;
            }
        }
    }
}
