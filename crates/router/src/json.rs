//! Locates the top-level `model` of a request body and replaces it.
//!
//! Invariant: every byte outside the value stays as the client sent it. Nothing is parsed into a tree, so deep nesting
//! costs neither stack nor memory.
//!
//! A whole body goes through [`scan`] and [`splice`]; a body that arrives in chunks goes through
//! [`crate::exchange::Exchange::request_chunk`], with the same result for every chunking.
//!
//! | body | result |
//! |---|---|
//! | not an object, or broken before a `model` | [`ScanResult::Opaque`] |
//! | `model` is a string | [`ModelLocation::Name`] |
//! | `model` is `null`, a number, an array …, valid or not | [`ModelLocation::Value`]: no name, as in upstream |
//! | no `model` | [`ModelLocation::Absent`] |
//! | broken JSON, or more text, after the `model` | found, but not [`ScannedModel::complete`] |
//! | `model` twice at the top level, in any spelling | [`ScanResult::Refused`]: servers would use the last one |
//! | UTF-16, UTF-32 | [`ScanResult::Refused`]; a UTF-8 byte order mark is skipped |
//!
//! `NaN`, lone surrogates and nesting of any depth are accepted.

pub(crate) mod scanner;
pub(crate) mod splicer;
mod string;
#[cfg(test)]
mod tests;

use crate::refusal::RequestRefusal;
use bytes::Bytes;
use scanner::{ScanEvent, Scanner};
use std::{borrow::Cow, ops::Range};

/// Maximum length of a model name, in bytes of its JSON string including the quotes.
pub const MAX_NAME_LENGTH: usize = 8 * 1024;

/// Result of scanning a whole body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanResult {
    /// Not a JSON object: no rule can be applied to it.
    Opaque,
    /// A JSON object, with or without a `model`.
    Found(ScannedModel),
    /// Different JSON readers would disagree about the body.
    Refused(RequestRefusal),
}

/// The model of a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedModel {
    /// Where the value of `model` is.
    pub location: ModelLocation,
    /// Whether the object is complete and only white space follows it.
    pub complete: bool,
}

/// Location of the value of `model` in a body, as byte ranges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelLocation {
    /// The value is a string; the range includes its quotes.
    Name(Range<usize>),
    /// The value is not a string.
    Value(Range<usize>),
    /// The object has no `model`.
    Absent {
        /// Offset of the closing brace.
        closing_brace: usize,
        /// Whether the object has no members.
        empty: bool,
    },
}

impl ModelLocation {
    /// Returns the name at this location of `body`. `None` if the value is not a string or not Unicode text.
    pub fn decode_name<'b>(&self, body: &'b [u8]) -> Option<Cow<'b, str>> {
        let Self::Name(quoted) = self else { return None };
        decode_quoted(body.get(quoted.clone())?)
    }
}

/// Decodes a JSON string with its quotes. `None` if it is not Unicode text.
pub(crate) fn decode_quoted(quoted: &[u8]) -> Option<Cow<'_, str>> {
    string::decode(quoted.get(1..quoted.len().checked_sub(1)?)?)
}

/// Scans a whole body for its top-level `model`.
///
/// ```
/// use rollora_router::json::{self, ModelLocation, ScanResult};
///
/// let body = br#"{"messages": [{"model": "no"}], "model": "a\u0062c"}"#;
/// let ScanResult::Found(found) = json::scan(body) else { panic!("an object") };
/// assert_eq!(found.location, ModelLocation::Name(41..51));
/// assert_eq!(found.location.decode_name(body).as_deref(), Some("abc"));
/// assert!(found.complete);
/// ```
pub fn scan(body: &[u8]) -> ScanResult {
    let mut scanner = Scanner::new();
    let mut at = 0;
    let mut begin = None;
    let mut location = None;
    let mut complete = true;
    while at < body.len() {
        let (read, event) = scanner.read(body.get(at..).unwrap_or_default());
        at += read;
        match event {
            Some(ScanEvent::ModelStarts { string }) => begin = Some((at, string)),
            Some(ScanEvent::ModelEnds) => {
                location = begin.take().map(|(begin, string)| {
                    if string { ModelLocation::Name(begin..at) } else { ModelLocation::Value(begin..at) }
                });
            }
            Some(ScanEvent::NoModel { empty }) => location = Some(ModelLocation::Absent { closing_brace: at, empty }),
            Some(ScanEvent::Duplicate) => return ScanResult::Refused(RequestRefusal::DuplicateModel),
            Some(ScanEvent::WideEncoding) => return ScanResult::Refused(RequestRefusal::WideEncoding),
            Some(ScanEvent::NotAnObject) => complete = false,
            None => {}
        }
        let name = match (&location, begin) {
            (Some(ModelLocation::Name(name)), _) => name.len(),
            (None, Some((begin, true))) => at - begin,
            _ => 0,
        };
        if name > MAX_NAME_LENGTH {
            return ScanResult::Refused(RequestRefusal::ModelNameTooLong);
        }
    }
    match (location, begin) {
        (Some(location), _) => {
            ScanResult::Found(ScannedModel { location, complete: complete && scanner.is_complete() })
        }
        (None, Some((begin, false))) => {
            ScanResult::Found(ScannedModel { location: ModelLocation::Value(begin..at), complete: false })
        }
        (None, _) => ScanResult::Opaque,
    }
}

/// A model name, encoded once as it is written into bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedName {
    /// The encoded member `,"model":"name"`, with its comma.
    member: Bytes,
}

const MEMBER_PREFIX: &str = ",\"model\":";

impl EncodedName {
    /// Encodes `name` as a JSON string.
    pub fn new(name: &str) -> Self {
        Self { member: Bytes::from(format!("{MEMBER_PREFIX}{}", string::encode(name))) }
    }

    pub(crate) fn value(&self) -> Bytes {
        self.member.slice(MEMBER_PREFIX.len()..)
    }

    /// Returns the member to append to an object. `only` omits the leading comma.
    fn member(&self, only: bool) -> Bytes {
        self.member.slice(usize::from(only)..)
    }
}

/// A body with a replaced name. The parts before and after it are slices of the original body, not copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplicedBody {
    /// The bytes before the name, the name, and the bytes after it.
    pub parts: [Bytes; 3],
}

impl SplicedBody {
    /// Returns the total length in bytes, for `content-length`.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Returns whether the length is 0, which is never the case: a spliced body contains a model.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the body as one buffer; copies it.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.parts.concat())
    }
}

/// Replaces the model at `location`, which [`scan`] found in `body`, by `name`.
///
/// ```
/// use bytes::Bytes;
/// use rollora_router::json::{self, EncodedName, ScanResult};
///
/// let body = Bytes::from_static(br#"{ "model" : "alias", "stream": true }"#);
/// let ScanResult::Found(found) = json::scan(&body) else { panic!("an object") };
/// let spliced = json::splice(&body, &found.location, &EncodedName::new("alias-v2"));
/// assert_eq!(&spliced.into_bytes()[..], br#"{ "model" : "alias-v2", "stream": true }"#);
/// ```
pub fn splice(body: &Bytes, location: &ModelLocation, name: &EncodedName) -> SplicedBody {
    let (range, text) = match location {
        ModelLocation::Name(range) | ModelLocation::Value(range) => (range.clone(), name.value()),
        ModelLocation::Absent { closing_brace: brace, empty } => (*brace..*brace, name.member(*empty)),
    };
    SplicedBody { parts: [body.slice(..range.start), text, body.slice(range.end..)] }
}
