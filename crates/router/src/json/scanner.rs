//! A push scanner that finds the top-level `model` of a JSON object, whatever pieces the body comes in.
//!
//! Invariants: every byte is looked at once; a body gives the same events wherever it is cut; memory does not
//! grow with the body (a key of at most 30 bytes is kept, nesting is a number). It is never stricter than
//! Python's `json.loads`, which vLLM reads bodies with: what that accepts is read to its end here. It does not
//! validate: numbers, escapes and nested structure are skipped, not checked.

use super::text;
use memchr::memchr2;

/// The longest way to write `model`: five characters as `\uXXXX`.
const LONGEST_KEY: usize = 30;

/// What stands at the place where the scanner stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The next byte is the first of the value of `model`.
    ModelStarts {
        /// Whether the value is a string; its first byte is the quote then.
        string: bool,
    },
    /// The byte before was the last of the value of `model`.
    ModelEnds,
    /// The next byte closes the object, and there was no `model` in it.
    NoModel {
        /// Whether the object has no members at all.
        empty: bool,
    },
    /// A second `model` at the top level.
    Duplicate,
    /// The body is UTF-16 or UTF-32.
    WideEncoding,
    /// From here on this is not JSON, or no object: nothing more will be found.
    NotAnObject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the opening brace.
    Open,
    /// Behind the opening brace.
    FirstKey,
    /// Behind a comma.
    NextKey,
    Key,
    Colon,
    Value,
    String,
    /// A number, `true`, `NaN` and the like.
    Scalar,
    /// Inside arrays and objects, so many of them.
    Nested(u64),
    NestedString(u64),
    BehindValue,
    /// Behind the closing brace: white space only.
    Closed,
    /// Nothing is looked at any more.
    Stopped,
}

/// How far the search for `model` has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Unseen,
    /// Its key was read, its value has not begun.
    Key,
    /// Its value is being read.
    Value,
    Seen,
    /// There is none, and that has been said.
    Absent,
}

/// The state of one scan. Feed it with [`Scanner::read`].
#[derive(Debug, Clone)]
pub(crate) struct Scanner {
    state: State,
    /// How many bytes were read, as far as the first three matter.
    preface: u8,
    byte_order_mark: bool,
    /// The last byte was a backslash in a string: the next one belongs to it.
    escaped: bool,
    key: [u8; LONGEST_KEY],
    /// The length of the key; above `LONGEST_KEY` it is none that matters.
    key_length: usize,
    model: Model,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Open,
            preface: 0,
            byte_order_mark: false,
            escaped: false,
            key: [0; LONGEST_KEY],
            key_length: 0,
            model: Model::Unseen,
        }
    }

    /// Whether everything read so far is one whole object (and white space).
    pub(crate) fn is_complete(&self) -> bool {
        self.state == State::Closed
    }

    /// Reads on until something is found or `chunk` ends: how many bytes were read, and what was found behind
    /// them. Without an event the whole chunk was read; with one, call again with the rest.
    pub(crate) fn read(&mut self, chunk: &[u8]) -> (usize, Option<Event>) {
        let mut at = 0;
        while at < chunk.len() {
            let rest = chunk.get(at..).unwrap_or_default();
            let in_preface = self.preface < 3 && self.state != State::Stopped;
            let (read, event) = if in_preface { self.read_preface(rest) } else { self.step(rest) };
            at += read;
            if matches!(event, Some(Event::Duplicate | Event::WideEncoding | Event::NotAnObject)) {
                self.state = State::Stopped;
            }
            if event.is_some() {
                return (at, event);
            }
        }
        (at, None)
    }

    /// The first three bytes, one at a time: they tell the encoding as `json.loads` detects it.
    fn read_preface(&mut self, rest: &[u8]) -> (usize, Option<Event>) {
        let Some(&byte) = rest.first() else { return (0, None) };
        match (self.preface, byte) {
            (0, 0x00 | 0xFE | 0xFF) | (1, 0x00) => return (0, Some(Event::WideEncoding)),
            (0, 0xEF) => {
                self.byte_order_mark = true;
                self.preface = 1;
                return (1, None);
            }
            (1, 0xBB) | (2, 0xBF) if self.byte_order_mark => {
                self.preface += 1;
                return (1, None);
            }
            (1 | 2, _) if self.byte_order_mark => return (0, Some(Event::NotAnObject)),
            _ => {}
        }
        let (read, event) = self.step(rest.get(..1).unwrap_or_default());
        self.preface += u8::from(read > 0);
        (read, event)
    }

    fn step(&mut self, rest: &[u8]) -> (usize, Option<Event>) {
        match self.state {
            State::Stopped => return (rest.len(), None),
            State::Key => return self.read_key(rest),
            State::String => {
                let (read, ended) = self.skip_string(rest);
                return (read, if ended { self.value_ended() } else { None });
            }
            State::NestedString(depth) => {
                let (read, ended) = self.skip_string(rest);
                if ended {
                    self.state = State::Nested(depth);
                }
                return (read, None);
            }
            State::Nested(depth) => return self.skip_nested(rest, depth),
            State::Scalar => {
                let read = rest.iter().position(|byte| !is_scalar(*byte)).unwrap_or(rest.len());
                return (read, if read < rest.len() { self.value_ended() } else { None });
            }
            _ => {}
        }
        match rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
            Some(0) => self.punctuation(rest.first().copied().unwrap_or_default()),
            Some(white) => (white, None),
            None => (rest.len(), None),
        }
    }

    /// One byte at the top level that is neither white space nor inside a key or a value.
    fn punctuation(&mut self, byte: u8) -> (usize, Option<Event>) {
        self.state = match (self.state, byte) {
            (State::Open, b'{') => State::FirstKey,
            (State::FirstKey | State::NextKey, b'"') => {
                self.key_length = 0;
                State::Key
            }
            (state @ (State::FirstKey | State::BehindValue), b'}') if self.model == Model::Unseen => {
                self.model = Model::Absent;
                return (0, Some(Event::NoModel { empty: state == State::FirstKey }));
            }
            (State::FirstKey | State::BehindValue, b'}') => State::Closed,
            (State::Colon, b':') => State::Value,
            (State::Value, _) if self.model == Model::Key => {
                self.model = Model::Value;
                return (0, Some(Event::ModelStarts { string: byte == b'"' }));
            }
            (State::Value, b'"') => State::String,
            (State::Value, b'{' | b'[') => State::Nested(1),
            // Read again as part of the scalar, so that its end is found in one place.
            (State::Value, byte) if is_scalar(byte) => {
                self.state = State::Scalar;
                return (0, None);
            }
            (State::BehindValue, b',') => State::NextKey,
            _ => return (0, Some(Event::NotAnObject)),
        };
        (1, None)
    }

    fn value_ended(&mut self) -> Option<Event> {
        self.state = State::BehindValue;
        if self.model != Model::Value {
            return None;
        }
        self.model = Model::Seen;
        Some(Event::ModelEnds)
    }

    fn read_key(&mut self, rest: &[u8]) -> (usize, Option<Event>) {
        let (read, ended) = self.skip_string(rest);
        let part = rest.get(..read - usize::from(ended)).unwrap_or_default();
        let end = self.key_length + part.len();
        if let Some(place) = self.key.get_mut(self.key_length..end) {
            place.copy_from_slice(part);
        }
        // Also where it does not fit any more: then it stays too long.
        self.key_length = end;
        if !ended {
            return (read, None);
        }
        self.state = State::Colon;
        let key = self.key.get(..self.key_length);
        if key.is_some_and(|key| text::decode(key).is_some_and(|key| key == "model")) {
            if self.model != Model::Unseen {
                return (read, Some(Event::Duplicate));
            }
            self.model = Model::Key;
        }
        (read, None)
    }

    /// Skips to behind the closing quote, or to the end: how much, and whether the quote was there.
    fn skip_string(&mut self, rest: &[u8]) -> (usize, bool) {
        let mut at = usize::from(std::mem::take(&mut self.escaped));
        while let Some(found) = rest.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
            if rest.get(at + found) == Some(&b'"') {
                return (at + found + 1, true);
            }
            at += found + 2;
        }
        self.escaped = at > rest.len();
        (rest.len(), false)
    }

    fn skip_nested(&mut self, rest: &[u8], mut depth: u64) -> (usize, Option<Event>) {
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    self.state = State::NestedString(depth);
                    return (at + 1, None);
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return (at + 1, self.value_ended());
            }
        }
        self.state = State::Nested(depth);
        (rest.len(), None)
    }
}

/// A byte of a number or a word; everything that could open, close or part something is none.
fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}
