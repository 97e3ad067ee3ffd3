//! Push scanner that finds the top-level `model` of a JSON object in chunks of any length.
//!
//! Invariants: every byte is read once; a body gives the same events for every chunking; memory does not grow with the
//! body (a key of at most 30 bytes is buffered, nesting is a counter). The scanner is never stricter than Python's
//! `json.loads`, which vLLM parses bodies with: what that accepts is read to its end here. It does not validate:
//! numbers, escapes and nested structure are skipped, not checked.

use super::string;
use memchr::memchr2;

/// Longest spelling of the key `model`: five characters as `\uXXXX`.
const MAX_KEY_LENGTH: usize = 30;

/// What the scanner found at the position where it stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScanEvent {
    /// The next byte is the first one of the value of `model`.
    ModelStarts {
        /// Whether the value is a string, whose first byte is the quote.
        string: bool,
    },
    /// The previous byte was the last one of the value of `model`.
    ModelEnds,
    /// The next byte closes the object, which has no `model`.
    NoModel {
        /// Whether the object has no members.
        empty: bool,
    },
    /// A second `model` was found at the top level.
    Duplicate,
    /// The body is UTF-16 or UTF-32.
    WideEncoding,
    /// The input is not a JSON object from here on: the scanner finds nothing more.
    NotAnObject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScannerState {
    Start,
    FirstKey,
    NextKey,
    Key,
    Colon,
    Value,
    String,
    /// A number or a literal such as `true` or `NaN`.
    Scalar,
    /// Inside this many nested arrays and objects.
    Nested(u64),
    NestedString(u64),
    AfterValue,
    /// After the closing brace: only white space may follow.
    Closed,
    /// After a terminal event: all further bytes are ignored.
    Stopped,
}

/// Progress of the search for `model`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ModelProgress {
    NotFound,
    /// The key was read; the value has not started.
    Key,
    Value,
    Found,
    /// The object has no `model`, and that was reported.
    Absent,
}

/// State of one scan; see [`Scanner::read`].
#[derive(Debug, Clone)]
pub(crate) struct Scanner {
    state: ScannerState,
    /// How many of the first three bytes were read, which determine the encoding.
    encoding_bytes: u8,
    has_bom: bool,
    /// The last byte was a backslash in a string, so the next one belongs to the escape.
    escaped: bool,
    key: [u8; MAX_KEY_LENGTH],
    /// Length of the key; a key longer than `MAX_KEY_LENGTH` cannot be `model`.
    key_length: usize,
    model: ModelProgress,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            state: ScannerState::Start,
            encoding_bytes: 0,
            has_bom: false,
            escaped: false,
            key: [0; MAX_KEY_LENGTH],
            key_length: 0,
            model: ModelProgress::NotFound,
        }
    }

    /// Returns whether the input so far is one complete object, with or without white space around it.
    pub(crate) fn is_complete(&self) -> bool {
        self.state == ScannerState::Closed
    }

    /// Reads until an event or the end of `chunk`. Returns how many bytes were read, and the event after them. With an
    /// event, call again with the rest of the chunk.
    pub(crate) fn read(&mut self, chunk: &[u8]) -> (usize, Option<ScanEvent>) {
        let mut at = 0;
        while at < chunk.len() {
            let rest = chunk.get(at..).unwrap_or_default();
            let in_preface = self.encoding_bytes < 3 && self.state != ScannerState::Stopped;
            let (read, event) = if in_preface { self.detect_encoding(rest) } else { self.step(rest) };
            at += read;
            if matches!(event, Some(ScanEvent::Duplicate | ScanEvent::WideEncoding | ScanEvent::NotAnObject)) {
                self.state = ScannerState::Stopped;
            }
            if event.is_some() {
                return (at, event);
            }
        }
        (at, None)
    }

    /// Reads one of the first three bytes, which determine the encoding in the way of `json.detect_encoding`.
    fn detect_encoding(&mut self, rest: &[u8]) -> (usize, Option<ScanEvent>) {
        let Some(&byte) = rest.first() else { return (0, None) };
        match (self.encoding_bytes, byte) {
            (0, 0x00 | 0xFE | 0xFF) | (1, 0x00) => return (0, Some(ScanEvent::WideEncoding)),
            (0, 0xEF) => {
                self.has_bom = true;
                self.encoding_bytes = 1;
                return (1, None);
            }
            (1, 0xBB) | (2, 0xBF) if self.has_bom => {
                self.encoding_bytes += 1;
                return (1, None);
            }
            (1 | 2, _) if self.has_bom => return (0, Some(ScanEvent::NotAnObject)),
            _ => {}
        }
        let (read, event) = self.step(rest.get(..1).unwrap_or_default());
        self.encoding_bytes += u8::from(read > 0);
        (read, event)
    }

    fn step(&mut self, rest: &[u8]) -> (usize, Option<ScanEvent>) {
        match self.state {
            ScannerState::Stopped => return (rest.len(), None),
            ScannerState::Key => return self.read_key(rest),
            ScannerState::String => {
                let (read, ended) = self.skip_string(rest);
                return (read, if ended { self.end_value() } else { None });
            }
            ScannerState::NestedString(depth) => {
                let (read, ended) = self.skip_string(rest);
                if ended {
                    self.state = ScannerState::Nested(depth);
                }
                return (read, None);
            }
            ScannerState::Nested(depth) => return self.skip_nested(rest, depth),
            ScannerState::Scalar => {
                let read = rest.iter().position(|byte| !is_scalar(*byte)).unwrap_or(rest.len());
                return (read, if read < rest.len() { self.end_value() } else { None });
            }
            _ => {}
        }
        match rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {
            Some(0) => self.read_punctuation(rest.first().copied().unwrap_or_default()),
            Some(white) => (white, None),
            None => (rest.len(), None),
        }
    }

    /// Reads one byte at the top level that is neither white space nor inside a key or a value.
    fn read_punctuation(&mut self, byte: u8) -> (usize, Option<ScanEvent>) {
        self.state = match (self.state, byte) {
            (ScannerState::Start, b'{') => ScannerState::FirstKey,
            (ScannerState::FirstKey | ScannerState::NextKey, b'"') => {
                self.key_length = 0;
                ScannerState::Key
            }
            (state @ (ScannerState::FirstKey | ScannerState::AfterValue), b'}')
                if self.model == ModelProgress::NotFound =>
            {
                self.model = ModelProgress::Absent;
                return (0, Some(ScanEvent::NoModel { empty: state == ScannerState::FirstKey }));
            }
            (ScannerState::FirstKey | ScannerState::AfterValue, b'}') => ScannerState::Closed,
            (ScannerState::Colon, b':') => ScannerState::Value,
            (ScannerState::Value, _) if self.model == ModelProgress::Key => {
                self.model = ModelProgress::Value;
                return (0, Some(ScanEvent::ModelStarts { string: byte == b'"' }));
            }
            (ScannerState::Value, b'"') => ScannerState::String,
            (ScannerState::Value, b'{' | b'[') => ScannerState::Nested(1),
            // Read again as part of the scalar, so that only one place detects its end.
            (ScannerState::Value, byte) if is_scalar(byte) => {
                self.state = ScannerState::Scalar;
                return (0, None);
            }
            (ScannerState::AfterValue, b',') => ScannerState::NextKey,
            _ => return (0, Some(ScanEvent::NotAnObject)),
        };
        (1, None)
    }

    fn end_value(&mut self) -> Option<ScanEvent> {
        self.state = ScannerState::AfterValue;
        if self.model != ModelProgress::Value {
            return None;
        }
        self.model = ModelProgress::Found;
        Some(ScanEvent::ModelEnds)
    }

    fn read_key(&mut self, rest: &[u8]) -> (usize, Option<ScanEvent>) {
        let (read, ended) = self.skip_string(rest);
        let part = rest.get(..read - usize::from(ended)).unwrap_or_default();
        let end = self.key_length + part.len();
        if let Some(free) = self.key.get_mut(self.key_length..end) {
            free.copy_from_slice(part);
        }
        // Also if the key does not fit: then its length shows that it is too long.
        self.key_length = end;
        if !ended {
            return (read, None);
        }
        self.state = ScannerState::Colon;
        let key = self.key.get(..self.key_length);
        if key.is_some_and(|key| string::decode(key).is_some_and(|key| key == "model")) {
            if self.model != ModelProgress::NotFound {
                return (read, Some(ScanEvent::Duplicate));
            }
            self.model = ModelProgress::Key;
        }
        (read, None)
    }

    /// Skips to the end of the string or of `rest`. Returns how many bytes were skipped and whether the string ended.
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

    fn skip_nested(&mut self, rest: &[u8], mut depth: u64) -> (usize, Option<ScanEvent>) {
        for (at, byte) in rest.iter().enumerate() {
            match byte {
                b'"' => {
                    self.state = ScannerState::NestedString(depth);
                    return (at + 1, None);
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return (at + 1, self.end_value());
            }
        }
        self.state = ScannerState::Nested(depth);
        (rest.len(), None)
    }
}

/// Returns whether the byte can be part of a number or literal. Brackets, quotes and separators cannot.
fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}
