//! What comes on a stream, cut into messages; a long one in pieces, where whoever reads them can do with that.

use super::{GrpcStatus, PREFIX_LENGTH};
use crate::proto::Direction;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// So much of a message tells whether it can be read in pieces.
const PARTIAL_PREFIX: usize = 16;
/// A message of this length may be put together without asking.
const SMALL_MESSAGE: usize = 64 * 1024;
/// What is kept free at first for a message that has to be put together.
const INITIAL_CAPACITY: usize = 256 * 1024;

/// A message that comes in.
pub(crate) trait StreamableMessage: prost::Message + Default {
    /// How a message opens that can be read in pieces, from its first bytes; none where it cannot.
    fn partial_frame(_first: &[u8]) -> Option<PartialFrame> {
        None
    }

    /// A piece of such a message; with the bytes behind the body, where it is the last.
    fn from_chunk(_opening: &PartialFrame, _body: Bytes, _behind: Option<&[u8]>) -> Result<Self, GrpcStatus> {
        Err(GrpcStatus::unimplemented("this message does not come in pieces"))
    }
}

/// The beginning of a message with a body that is longer than what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartialFrame {
    /// Whose body it is.
    pub(crate) direction: Direction,
    /// How many bytes stand before it.
    pub(crate) prefix_length: usize,
    /// Its length.
    pub(crate) body_length: usize,
    /// How many bytes of what it lies in stand behind it.
    pub(crate) suffix_length: usize,
}

/// The messages of a stream.
#[derive(Debug)]
pub(crate) struct MessageDecoder {
    chunks: ChunkBuffer,
    state: DecodeState,
    /// The length of the longest.
    max_length: usize,
}

/// The message that comes next.
#[derive(Debug)]
enum DecodeState {
    /// Nothing of it has been read.
    Idle,
    /// Its length is known.
    LengthKnown { length: usize },
    /// It is put together.
    Collecting { length: usize, buffer: BytesMut },
    /// It is read in pieces: so much of the body is left, and so much stands behind it.
    Streaming { frame: PartialFrame, body_left: usize, trailing_length: usize },
}

impl MessageDecoder {
    pub(crate) fn new(max_length: usize) -> Self {
        Self { chunks: ChunkBuffer::default(), state: DecodeState::Idle, max_length }
    }

    /// More has come.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }

    /// How long the message is that is being put together, where it is a long one.
    pub(super) fn collecting_length(&self) -> Option<usize> {
        match self.state {
            DecodeState::Collecting { length, .. } if length > SMALL_MESSAGE => Some(length),
            _ => None,
        }
    }

    /// The next message, or piece of one; none until more has come.
    pub(crate) fn next<M: StreamableMessage>(
        &mut self,
        in_pieces: impl Fn(Direction) -> bool,
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
                    let opening =
                        M::partial_frame(&self.chunks.peek_prefix()).filter(|opening| in_pieces(opening.direction));
                    self.state = match opening.and_then(|opening| Some((opening, opening.trailing_length(length)?))) {
                        Some((opening, behind)) => {
                            self.chunks.take(opening.prefix_length);
                            DecodeState::Streaming {
                                frame: opening,
                                body_left: opening.body_length,
                                trailing_length: behind,
                            }
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
                DecodeState::Streaming { frame: opening, body_left: left, trailing_length: behind } => {
                    let (opening, here) = (*opening, self.chunks.front_length());
                    if here < *left {
                        let Some(body) = self.chunks.take_front(here) else { return Ok(None) };
                        *left -= body.len();
                        return M::from_chunk(&opening, body, None).map(Some);
                    }
                    // The last is told together with what stands behind it, such as that nothing follows.
                    if self.chunks.length < *left + *behind {
                        return Ok(None);
                    }
                    let (body, behind) = (self.chunks.take(*left), self.chunks.take(*behind));
                    self.state = DecodeState::Idle;
                    return M::from_chunk(&opening, body, Some(&behind)).map(Some);
                }
            }
        }
    }

    /// The length of the next message, as soon as it is there.
    fn read_length(&mut self) -> Result<Option<usize>, GrpcStatus> {
        if self.chunks.length < PREFIX_LENGTH {
            return Ok(None);
        }
        let mut prefix = self.chunks.take(PREFIX_LENGTH);
        if prefix.get_u8() != 0 {
            return Err(GrpcStatus::unimplemented("compressed messages are not read here"));
        }
        let (length, longest) = (prefix.get_u32() as usize, self.max_length);
        if length > longest {
            return Err(GrpcStatus::out_of_range(format!("a message of {length} bytes, where {longest} are the most")));
        }
        Ok(Some(length))
    }

    fn decode_whole<M: StreamableMessage>(&mut self, bytes: Bytes) -> Result<Option<M>, GrpcStatus> {
        self.state = DecodeState::Idle;
        M::decode(bytes).map(Some).map_err(GrpcStatus::malformed)
    }
}

impl PartialFrame {
    /// How much of a message of this length stands behind the body; none where the body does not fit.
    fn trailing_length(&self, length: usize) -> Option<usize> {
        length.checked_sub(self.prefix_length)?.checked_sub(self.body_length).filter(|rest| *rest >= self.suffix_length)
    }
}

/// Bytes as they have come.
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

    /// How many bytes lie together in front.
    fn front_length(&self) -> usize {
        self.chunks.front().map_or(0, Bytes::len)
    }

    /// The first bytes, [`OPENING`] of them where there are so many.
    fn peek_prefix(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied()).take(PARTIAL_PREFIX).collect()
    }

    /// Takes out what lies together in front, at most so much of it; none where nothing is there.
    fn take_front(&mut self, most: usize) -> Option<Bytes> {
        let first = self.chunks.front_mut()?;
        let slice = first.split_to(most.min(first.len()));
        if first.is_empty() {
            self.chunks.pop_front();
        }
        self.length -= slice.len();
        Some(slice)
    }

    /// Takes out so much, or all where it is less.
    fn take(&mut self, count: usize) -> Bytes {
        if count <= self.front_length() {
            return self.take_front(count).unwrap_or_default();
        }
        let mut together = BytesMut::with_capacity(count.min(self.length));
        self.fill(&mut together, count);
        together.freeze()
    }

    /// Moves bytes behind those of `buffer`, until it has so many or nothing is left here.
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
