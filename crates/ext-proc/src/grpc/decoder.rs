//! Splits a stream into gRPC messages; long ones are yielded in parts to handlers that accept them.

use super::{GrpcStatus, PREFIX_LENGTH};
use crate::proto::Direction;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// Number of bytes of a message that determine whether it can be read in parts.
const PARTIAL_PREFIX: usize = 16;
/// A message up to this length is buffered without a permit.
const SMALL_MESSAGE: usize = 64 * 1024;
/// Initial buffer capacity for a message that is buffered whole.
const INITIAL_CAPACITY: usize = 256 * 1024;

/// An incoming message type.
pub(crate) trait StreamableMessage: prost::Message + Default {
    /// Parses the first bytes of a message that can be read in parts. `None` if it cannot.
    fn partial_frame(_prefix: &[u8]) -> Option<PartialFrame> {
        None
    }

    /// Creates a message from a part of the body. `suffix` has the bytes after the body; it is `None` unless this is
    /// the last part.
    fn from_chunk(_frame: &PartialFrame, _body: Bytes, _suffix: Option<&[u8]>) -> Result<Self, GrpcStatus> {
        Err(GrpcStatus::unimplemented("this message cannot be read in parts"))
    }
}

/// Layout of a message with a body that has not arrived completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartialFrame {
    /// Direction of the body.
    pub(crate) direction: Direction,
    /// Number of bytes before the body.
    pub(crate) prefix_length: usize,
    /// Length of the body in bytes.
    pub(crate) body_length: usize,
    /// Number of bytes after the body that belong to the enclosing field.
    pub(crate) suffix_length: usize,
}

/// Decoder of the messages of one stream.
#[derive(Debug)]
pub(crate) struct MessageDecoder {
    chunks: ChunkBuffer,
    state: DecodeState,
    max_length: usize,
}

/// Progress of the next message.
#[derive(Debug)]
enum DecodeState {
    Idle,
    LengthKnown {
        length: usize,
    },
    /// The message is buffered whole.
    Collecting {
        length: usize,
        buffer: BytesMut,
    },
    /// The message is read in parts.
    Streaming {
        frame: PartialFrame,
        body_left: usize,
        trailing_length: usize,
    },
}

impl MessageDecoder {
    pub(crate) fn new(max_length: usize) -> Self {
        Self { chunks: ChunkBuffer::default(), state: DecodeState::Idle, max_length }
    }

    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }

    /// Returns the length of the message that is being buffered whole, if it is a long one.
    pub(super) fn collecting_length(&self) -> Option<usize> {
        match self.state {
            DecodeState::Collecting { length, .. } if length > SMALL_MESSAGE => Some(length),
            _ => None,
        }
    }

    /// Decodes the next message or the next part of one. `None` if more data is needed. `accepts_chunks` returns
    /// whether messages of a direction may be yielded in parts.
    pub(crate) fn next<M: StreamableMessage>(
        &mut self,
        accepts_chunks: impl Fn(Direction) -> bool,
    ) -> Result<Option<M>, GrpcStatus> {
        loop {
            match &mut self.state {
                DecodeState::Idle => {
                    let Some(length) = self.read_length()? else { return Ok(None) };
                    self.state = DecodeState::LengthKnown { length };
                }
                DecodeState::LengthKnown { length } if *length <= self.chunks.length => {
                    let bytes = self.chunks.take(*length);
                    return self.decode_whole(bytes);
                }
                DecodeState::LengthKnown { .. } if self.chunks.length < PARTIAL_PREFIX => return Ok(None),
                DecodeState::LengthKnown { length } => {
                    let length = *length;
                    let frame =
                        M::partial_frame(&self.chunks.peek_prefix()).filter(|frame| accepts_chunks(frame.direction));
                    self.state = match frame.and_then(|frame| Some((frame, frame.trailing_length(length)?))) {
                        Some((frame, trailing_length)) => {
                            self.chunks.take(frame.prefix_length);
                            DecodeState::Streaming { frame, body_left: frame.body_length, trailing_length }
                        }
                        None => DecodeState::Collecting {
                            length,
                            buffer: BytesMut::with_capacity(length.min(INITIAL_CAPACITY)),
                        },
                    };
                }
                DecodeState::Collecting { length, buffer } => {
                    self.chunks.fill(buffer, *length);
                    if buffer.len() < *length {
                        return Ok(None);
                    }
                    let bytes = buffer.split().freeze();
                    return self.decode_whole(bytes);
                }
                DecodeState::Streaming { frame, body_left, trailing_length } => {
                    let (frame, available) = (*frame, self.chunks.front_length());
                    if available < *body_left {
                        let Some(body) = self.chunks.take_front(available) else { return Ok(None) };
                        *body_left -= body.len();
                        return M::from_chunk(&frame, body, None).map(Some);
                    }
                    // The last part is yielded with the fields after the body, such as `end_of_stream`.
                    if self.chunks.length < *body_left + *trailing_length {
                        return Ok(None);
                    }
                    let (body, suffix) = (self.chunks.take(*body_left), self.chunks.take(*trailing_length));
                    self.state = DecodeState::Idle;
                    return M::from_chunk(&frame, body, Some(&suffix)).map(Some);
                }
            }
        }
    }

    /// Reads the prefix of the next message. `None` if it has not arrived completely.
    fn read_length(&mut self) -> Result<Option<usize>, GrpcStatus> {
        if self.chunks.length < PREFIX_LENGTH {
            return Ok(None);
        }
        let mut prefix = self.chunks.take(PREFIX_LENGTH);
        if prefix.get_u8() != 0 {
            return Err(GrpcStatus::unimplemented("compressed messages are not supported"));
        }
        let (length, max) = (prefix.get_u32() as usize, self.max_length);
        if length > max {
            return Err(GrpcStatus::out_of_range(format!(
                "message of {length} bytes exceeds the maximum of {max} bytes"
            )));
        }
        Ok(Some(length))
    }

    fn decode_whole<M: StreamableMessage>(&mut self, bytes: Bytes) -> Result<Option<M>, GrpcStatus> {
        self.state = DecodeState::Idle;
        M::decode(bytes).map(Some).map_err(GrpcStatus::malformed)
    }
}

impl PartialFrame {
    /// Returns how many bytes of a message of this length follow the body. `None` if the lengths are inconsistent.
    fn trailing_length(&self, length: usize) -> Option<usize> {
        length.checked_sub(self.prefix_length)?.checked_sub(self.body_length).filter(|rest| *rest >= self.suffix_length)
    }
}

/// Received chunks that were not decoded yet.
#[derive(Debug, Default)]
struct ChunkBuffer {
    chunks: VecDeque<Bytes>,
    length: usize,
}

impl ChunkBuffer {
    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.length += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Returns the length of the first chunk.
    fn front_length(&self) -> usize {
        self.chunks.front().map_or(0, Bytes::len)
    }

    /// Copies the first [`PARTIAL_PREFIX`] bytes, or all if there are fewer.
    fn peek_prefix(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied()).take(PARTIAL_PREFIX).collect()
    }

    /// Removes at most `max` bytes of the first chunk, without copying. `None` if the buffer is empty.
    fn take_front(&mut self, max: usize) -> Option<Bytes> {
        let first = self.chunks.front_mut()?;
        let slice = first.split_to(max.min(first.len()));
        if first.is_empty() {
            self.chunks.pop_front();
        }
        self.length -= slice.len();
        Some(slice)
    }

    /// Removes `count` bytes, or all if there are fewer; copies them if they span chunks.
    fn take(&mut self, count: usize) -> Bytes {
        if count <= self.front_length() {
            return self.take_front(count).unwrap_or_default();
        }
        let mut joined = BytesMut::with_capacity(count.min(self.length));
        self.fill(&mut joined, count);
        joined.freeze()
    }

    /// Moves bytes to the end of `buffer` until it has `length` bytes or nothing is left.
    fn fill(&mut self, buffer: &mut BytesMut, length: usize) {
        while buffer.len() < length
            && let Some(slice) = self.take_front(length - buffer.len())
        {
            buffer.extend_from_slice(&slice);
        }
    }
}

#[cfg(test)]
mod tests;
