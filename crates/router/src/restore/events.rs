//! The lines of an event stream (`text/event-stream`), and where in them an object stands.

use super::{Cut, Names, Object};
use memchr::memchr2;

const BYTE_ORDER_MARK: [u8; 3] = [0xEF, 0xBB, 0xBF];
const DATA: &[u8] = b"data";

/// How far the lines have been read.
#[derive(Debug)]
pub(super) struct Events {
    place: Place,
    /// The line before ended with a carriage return: a line feed here belongs to it.
    behind_return: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the beginning of the stream, with so many bytes of a byte order mark read.
    Mark(usize),
    /// In the name of a field, so many bytes of which are those of `data`.
    Field(usize),
    /// In the object.
    Data,
    /// In a line that holds none.
    Other,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { place: Place::Mark(0), behind_return: false }
    }

    pub(super) fn piece(&mut self, object: &mut Object, names: &Names, cut: &mut Cut<'_>) {
        let mut at = 0;
        while let Some((&byte, rest)) = cut.piece.get(at..).and_then(<[u8]>::split_first) {
            if std::mem::take(&mut self.behind_return) && byte == b'\n' {
                at += 1;
                continue;
            }
            match self.place {
                Place::Mark(read) if BYTE_ORDER_MARK.get(read) == Some(&byte) => {
                    self.place = if read == 2 { Place::Field(0) } else { Place::Mark(read + 1) };
                    at += 1;
                    continue;
                }
                Place::Mark(0) => self.place = Place::Field(0),
                Place::Mark(_) => self.place = Place::Other,
                _ => {}
            }
            at += match (self.place, byte) {
                (_, b'\n' | b'\r') => {
                    self.line_ends(object, cut);
                    self.behind_return = byte == b'\r';
                    1
                }
                (Place::Field(read), _) => {
                    self.place = match DATA.get(read) {
                        Some(expected) if *expected == byte => Place::Field(read + 1),
                        None if byte == b':' => Place::Data,
                        _ => Place::Other,
                    };
                    1
                }
                _ => {
                    let length = memchr2(b'\n', b'\r', rest).map_or(rest.len(), |end| end) + 1;
                    if self.place == Place::Data {
                        object.read(at..at + length, names, cut);
                    }
                    length
                }
            };
        }
    }

    fn line_ends(&mut self, object: &mut Object, cut: &mut Cut<'_>) {
        match std::mem::replace(&mut self.place, Place::Field(0)) {
            // An empty line: the event ends.
            Place::Field(0) => {
                object.let_go(cut.out);
                *object = Object::new();
            }
            Place::Data => object.line_ends(cut.out),
            Place::Mark(_) | Place::Field(_) | Place::Other => {}
        }
    }
}
