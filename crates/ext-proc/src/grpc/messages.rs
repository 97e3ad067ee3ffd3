//! What comes on a stream, cut into messages; a long one in pieces, where whoever reads them can do with that.

use super::{PREFIX, Status};
use crate::protocol::Direction;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// So much of a message tells whether it can be read in pieces.
const OPENING: usize = 16;
/// A message of this length may be put together without asking.
const SHORT: usize = 64 * 1024;
/// What is kept free at first for a message that has to be put together.
const AT_FIRST: usize = 256 * 1024;

/// A message that comes in.
pub(crate) trait Incoming: prost::Message + Default {
    /// How a message opens that can be read in pieces, from its first bytes; none where it cannot.
    fn opening(_first: &[u8]) -> Option<Opening> {
        None
    }

    /// A piece of such a message; with the bytes behind the body, where it is the last.
    fn piece(_opening: &Opening, _body: Bytes, _behind: Option<&[u8]>) -> Result<Self, Status> {
        Err(Status::unimplemented("this message does not come in pieces"))
    }
}

/// The beginning of a message with a body that is longer than what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    /// Whose body it is.
    pub(crate) direction: Direction,
    /// How many bytes stand before it.
    pub(crate) before: usize,
    /// Its length.
    pub(crate) body: usize,
    /// How many bytes of what it lies in stand behind it.
    pub(crate) behind: usize,
}

/// The messages of a stream.
#[derive(Debug)]
pub(crate) struct Messages {
    chunks: Chunks,
    open: Open,
    /// The length of the longest.
    longest: usize,
}

/// The message that comes next.
#[derive(Debug)]
enum Open {
    /// Nothing of it has been read.
    No,
    /// Its length is known.
    Begun { length: usize },
    /// It is put together.
    Collected { length: usize, buffer: BytesMut },
    /// It is read in pieces: so much of the body is left, and so much stands behind it.
    Pieces { opening: Opening, left: usize, behind: usize },
}

impl Messages {
    pub(crate) fn new(longest: usize) -> Self {
        Self { chunks: Chunks::default(), open: Open::No, longest }
    }

    /// More has come.
    pub(crate) fn push(&mut self, chunk: Bytes) {
        self.chunks.push(chunk);
    }

    /// How long the message is that is being put together, where it is a long one.
    pub(super) fn collects(&self) -> Option<usize> {
        match self.open {
            Open::Collected { length, .. } if length > SHORT => Some(length),
            _ => None,
        }
    }

    /// The next message, or piece of one; none until more has come.
    pub(crate) fn next<M: Incoming>(&mut self, in_pieces: impl Fn(Direction) -> bool) -> Result<Option<M>, Status> {
        loop {
            match &mut self.open {
                Open::No => {
                    let Some(length) = self.length()? else { return Ok(None) };
                    self.open = Open::Begun { length };
                }
                Open::Begun { length } if *length <= self.chunks.length => {
                    let bytes = self.chunks.take(*length);
                    return self.whole(bytes);
                }
                Open::Begun { .. } if self.chunks.length < OPENING => return Ok(None),
                Open::Begun { length } => {
                    let length = *length;
                    let opening = M::opening(&self.chunks.first()).filter(|opening| in_pieces(opening.direction));
                    self.open = match opening.and_then(|opening| Some((opening, opening.rest(length)?))) {
                        Some((opening, behind)) => {
                            self.chunks.take(opening.before);
                            Open::Pieces { opening, left: opening.body, behind }
                        }
                        None => Open::Collected { length, buffer: BytesMut::with_capacity(length.min(AT_FIRST)) },
                    };
                }
                Open::Collected { length, buffer } => {
                    self.chunks.fill(buffer, *length);
                    if buffer.len() < *length {
                        return Ok(None);
                    }
                    let bytes = buffer.split().freeze();
                    return self.whole(bytes);
                }
                Open::Pieces { opening, left, behind } => {
                    let (opening, here) = (*opening, self.chunks.front());
                    if here < *left {
                        let Some(body) = self.chunks.slice(here) else { return Ok(None) };
                        *left -= body.len();
                        return M::piece(&opening, body, None).map(Some);
                    }
                    // The last is told together with what stands behind it, such as that nothing follows.
                    if self.chunks.length < *left + *behind {
                        return Ok(None);
                    }
                    let (body, behind) = (self.chunks.take(*left), self.chunks.take(*behind));
                    self.open = Open::No;
                    return M::piece(&opening, body, Some(&behind)).map(Some);
                }
            }
        }
    }

    /// The length of the next message, as soon as it is there.
    fn length(&mut self) -> Result<Option<usize>, Status> {
        if self.chunks.length < PREFIX {
            return Ok(None);
        }
        let mut prefix = self.chunks.take(PREFIX);
        if prefix.get_u8() != 0 {
            return Err(Status::unimplemented("compressed messages are not read here"));
        }
        let (length, longest) = (prefix.get_u32() as usize, self.longest);
        if length > longest {
            return Err(Status::out_of_range(format!("a message of {length} bytes, where {longest} are the most")));
        }
        Ok(Some(length))
    }

    fn whole<M: Incoming>(&mut self, bytes: Bytes) -> Result<Option<M>, Status> {
        self.open = Open::No;
        M::decode(bytes).map(Some).map_err(Status::malformed)
    }
}

impl Opening {
    /// How much of a message of this length stands behind the body; none where the body does not fit.
    fn rest(&self, length: usize) -> Option<usize> {
        length.checked_sub(self.before)?.checked_sub(self.body).filter(|rest| *rest >= self.behind)
    }
}

/// Bytes as they have come.
#[derive(Debug, Default)]
struct Chunks {
    chunks: VecDeque<Bytes>,
    length: usize,
}

impl Chunks {
    fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.length += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// How many bytes lie together in front.
    fn front(&self) -> usize {
        self.chunks.front().map_or(0, Bytes::len)
    }

    /// The first bytes, [`OPENING`] of them where there are so many.
    fn first(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied()).take(OPENING).collect()
    }

    /// Takes out what lies together in front, at most so much of it; none where nothing is there.
    fn slice(&mut self, most: usize) -> Option<Bytes> {
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
        if count <= self.front() {
            return self.slice(count).unwrap_or_default();
        }
        let mut together = BytesMut::with_capacity(count.min(self.length));
        self.fill(&mut together, count);
        together.freeze()
    }

    /// Moves bytes behind those of `buffer`, until it has so many or nothing is left here.
    fn fill(&mut self, buffer: &mut BytesMut, length: usize) {
        while buffer.len() < length
            && let Some(slice) = self.slice(length - buffer.len())
        {
            buffer.extend_from_slice(&slice);
        }
    }
}

#[cfg(test)]
mod tests;
