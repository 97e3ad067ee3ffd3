//! Line parser for event streams (`text/event-stream`), which finds the JSON object of each event.

use super::{ChunkCursor, ModelNames, ObjectRestorer};
use memchr::memchr2;

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];
const DATA_FIELD: &[u8] = b"data";

/// State of the line parser.
#[derive(Debug)]
pub(super) struct SseParser {
    state: LineState,
    /// The previous line ended with a carriage return, so a line feed here belongs to it.
    after_carriage_return: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineState {
    /// At the beginning of the stream, after this many bytes of a byte order mark.
    ByteOrderMark(usize),
    /// In a field name, after this many bytes that match `data`.
    FieldName(usize),
    /// In the value of a `data` field.
    Data,
    /// In a line that is no `data` field.
    Other,
}

impl SseParser {
    pub(super) fn new() -> Self {
        Self { state: LineState::ByteOrderMark(0), after_carriage_return: false }
    }

    pub(super) fn push(&mut self, object: &mut ObjectRestorer, names: &ModelNames, cursor: &mut ChunkCursor<'_>) {
        let mut at = 0;
        while let Some((&byte, rest)) = cursor.chunk.get(at..).and_then(<[u8]>::split_first) {
            if std::mem::take(&mut self.after_carriage_return) && byte == b'\n' {
                at += 1;
                continue;
            }
            match self.state {
                LineState::ByteOrderMark(read) if BYTE_ORDER_MARK.get(read) == Some(&byte) => {
                    self.state = if read == 2 { LineState::FieldName(0) } else { LineState::ByteOrderMark(read + 1) };
                    at += 1;
                    continue;
                }
                LineState::ByteOrderMark(0) => self.state = LineState::FieldName(0),
                LineState::ByteOrderMark(_) => self.state = LineState::Other,
                _ => {}
            }
            at += match (self.state, byte) {
                (_, b'\n' | b'\r') => {
                    self.end_line(object, cursor);
                    self.after_carriage_return = byte == b'\r';
                    1
                }
                (LineState::FieldName(read), _) => {
                    self.state = match DATA_FIELD.get(read) {
                        Some(expected) if *expected == byte => LineState::FieldName(read + 1),
                        None if byte == b':' => LineState::Data,
                        _ => LineState::Other,
                    };
                    1
                }
                _ => {
                    let length = memchr2(b'\n', b'\r', rest).map_or(rest.len(), |end| end) + 1;
                    if self.state == LineState::Data {
                        object.read(at..at + length, names, cursor);
                    }
                    length
                }
            };
        }
    }

    fn end_line(&mut self, object: &mut ObjectRestorer, cursor: &mut ChunkCursor<'_>) {
        match std::mem::replace(&mut self.state, LineState::FieldName(0)) {
            // An empty line ends the event.
            LineState::FieldName(0) => {
                object.flush(cursor.out);
                *object = ObjectRestorer::new();
            }
            LineState::Data => object.end_line(cursor.out),
            LineState::ByteOrderMark(_) | LineState::FieldName(_) | LineState::Other => {}
        }
    }
}
