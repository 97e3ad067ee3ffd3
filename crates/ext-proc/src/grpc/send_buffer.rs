//! Replies on their way: put together without copying the long slices of bodies that are in them.

use super::PREFIX_LENGTH;
use crate::proto::{BodyChunk, ProcessorReply};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use std::{collections::VecDeque, io::IoSlice};

/// Up to this length copying a slice costs less than keeping it apart.
const MAX_COPY: usize = 2048;
/// What stands around the slices of a body.
const OVERHEAD: usize = 64;

/// What is to be sent, as bytes.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    slices: VecDeque<Bytes>,
    /// What has been written behind them.
    tail: BytesMut,
    /// Of all of it.
    length: usize,
}

impl SendBuffer {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Adds a reply behind those that are there.
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
            ProcessorReply::BodyChunk(part) => self.push_body(part),
        }
    }

    fn push_body(&mut self, part: BodyChunk) {
        self.begin_message(part.encoded_len());
        part.write_prefix(&mut self.tail);
        for slice in part.slices {
            if slice.len() <= MAX_COPY {
                self.tail.put_slice(&slice);
            } else {
                self.freeze_tail();
                self.slices.push_back(slice);
            }
        }
        BodyChunk::write_suffix(part.end_of_stream, &mut self.tail);
    }

    /// Begins a message of this length.
    fn begin_message(&mut self, length: usize) {
        self.length += PREFIX_LENGTH + length;
        self.tail.reserve(PREFIX_LENGTH + length.min(MAX_COPY) + OVERHEAD);
        self.tail.put_u8(0);
        // Nothing here is longer than a body, of which lengths are limited far below.
        self.tail.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn freeze_tail(&mut self) {
        if !self.tail.is_empty() {
            self.slices.push_back(self.tail.split().freeze());
        }
    }

    /// Takes at most the first `most` bytes out.
    pub(crate) fn take(&mut self, most: usize) -> Slices {
        self.freeze_tail();
        if most >= self.length {
            self.length = 0;
            return Slices(std::mem::take(&mut self.slices));
        }
        self.length -= most;
        let (mut taken, mut left) = (VecDeque::new(), most);
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

/// Bytes that lie apart, as those of one frame.
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
        // Nobody goes further than there are bytes.
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
    use crate::proto::{Direction, ProcessingResponse};
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
        fn whatever_is_taken_out_is_the_messages_that_went_in(
            replies in replies(),
            most in prop::collection::vec(1..20_000usize, 1..8),
            step in 1..5000usize,
        ) {
            let mut outbox = SendBuffer::default();
            for reply in &replies {
                outbox.push(reply.clone());
            }
            let (length, mut sent) = (outbox.len(), Vec::new());
            for most in most.into_iter().cycle() {
                if outbox.len() == 0 {
                    break;
                }
                let mut slices = outbox.take(most);
                prop_assert!(slices.remaining() <= most);
                while slices.has_remaining() {
                    // As a writer sees them that gets rid of some at a time.
                    let mut vectored = [IoSlice::new(&[]); 3];
                    let count = slices.chunks_vectored(&mut vectored);
                    let seen = vectored[..count].iter().flat_map(|slice| slice.iter().copied()).take(step);
                    let seen: Vec<u8> = seen.collect();
                    prop_assert!(slices.chunk().starts_with(&seen[..seen.len().min(slices.chunk().len())]));
                    slices.advance(seen.len());
                    sent.extend(seen);
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
                prop_assert!(ProcessingResponse::decode(message).is_ok());
                sent = rest;
            }
        }
    }
}
