//! Where the top-level `model` of a request body stands, and how it is replaced.
//!
//! Invariant: every byte outside of the value is as the client sent it. Nothing is parsed into a tree, so deep
//! nesting costs neither stack nor memory.
//!
//! A body that is there as a whole is [`scan`]ned and [`splice`]d; one that comes in pieces goes through a
//! [`pieces::Splicer`], with the same outcome wherever it is cut.
//!
//! | body | outcome |
//! |---|---|
//! | no object, or broken before a `model` was seen | [`Scan::Opaque`] |
//! | `model` is a string | [`Place::Name`] |
//! | `model` is `null`, a number, an array …, also a broken one | [`Place::Value`]: no name, as upstream reads it |
//! | no `model` | [`Place::Nowhere`] |
//! | broken, or more text, behind the `model` | found, and not [`Found::intact`] |
//! | `model` twice at the top level, in any spelling | [`Scan::Refused`]: servers would take the last one |
//! | UTF-16, UTF-32 | [`Scan::Refused`]; a UTF-8 byte order mark is skipped |
//!
//! `NaN`, lone surrogates and nesting of any depth are read like everything else.

pub(crate) mod scanner;
pub(crate) mod splicer;
mod string;
#[cfg(test)]
mod tests;

use crate::refusal::RequestRefusal;
use bytes::Bytes;
use scanner::{ScanEvent, Scanner};
use std::{borrow::Cow, ops::Range};

/// The longest string that is read as a name, in bytes as written.
pub const MAX_NAME_LENGTH: usize = 8 * 1024;

/// What a scan of a whole body found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScanResult {
    /// Not a JSON object: nothing can be decided by it.
    Opaque,
    /// A JSON object.
    Found(ScannedModel),
    /// A body that different readers would read differently.
    Refused(RequestRefusal),
}

/// What was found in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScannedModel {
    /// Where the model stands.
    pub location: ModelLocation,
    /// Whether the object goes on to its end, with nothing but white space behind it.
    pub complete: bool,
}

/// Where the model stands in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelLocation {
    /// A string, with its quotes.
    Name(Range<usize>),
    /// A value that is no string.
    Value(Range<usize>),
    /// The object has none.
    Absent {
        /// Where its closing brace stands.
        closing_brace: usize,
        /// Whether it has no members at all.
        empty: bool,
    },
}

impl ModelLocation {
    /// The name that stands here in `body`; none where there is none, or where it is no Unicode text.
    pub fn decode_name<'b>(&self, body: &'b [u8]) -> Option<Cow<'b, str>> {
        let Self::Name(quoted) = self else { return None };
        decode_quoted(body.get(quoted.clone())?)
    }
}

/// What a string with its quotes says; none where it is no Unicode text.
pub(crate) fn decode_quoted(quoted: &[u8]) -> Option<Cow<'_, str>> {
    string::decode(quoted.get(1..quoted.len().checked_sub(1)?)?)
}

/// Scans a whole body.
///
/// ```
/// use rollora_router::json::{self, Place, Scan};
///
/// let body = br#"{"messages": [{"model": "no"}], "model": "a\u0062c"}"#;
/// let Scan::Found(found) = json::scan(body) else { panic!("an object") };
/// assert_eq!(found.place, Place::Name(41..51));
/// assert_eq!(found.place.name(body).as_deref(), Some("abc"));
/// assert!(found.intact);
/// ```
pub fn scan(body: &[u8]) -> ScanResult {
    let mut scanner = Scanner::new();
    let mut at = 0;
    let mut begin = None;
    let mut place = None;
    let mut intact = true;
    while at < body.len() {
        let (read, event) = scanner.read(body.get(at..).unwrap_or_default());
        at += read;
        match event {
            Some(ScanEvent::ModelStarts { string }) => begin = Some((at, string)),
            Some(ScanEvent::ModelEnds) => {
                place = begin.take().map(|(begin, string)| {
                    if string { ModelLocation::Name(begin..at) } else { ModelLocation::Value(begin..at) }
                });
            }
            Some(ScanEvent::NoModel { empty }) => place = Some(ModelLocation::Absent { closing_brace: at, empty }),
            Some(ScanEvent::Duplicate) => return ScanResult::Refused(RequestRefusal::DuplicateModel),
            Some(ScanEvent::WideEncoding) => return ScanResult::Refused(RequestRefusal::WideEncoding),
            Some(ScanEvent::NotAnObject) => intact = false,
            None => {}
        }
        let name = match (&place, begin) {
            (Some(ModelLocation::Name(name)), _) => name.len(),
            (None, Some((begin, true))) => at - begin,
            _ => 0,
        };
        if name > MAX_NAME_LENGTH {
            return ScanResult::Refused(RequestRefusal::ModelNameTooLong);
        }
    }
    match (place, begin) {
        (Some(place), _) => {
            ScanResult::Found(ScannedModel { location: place, complete: intact && scanner.is_complete() })
        }
        (None, Some((begin, false))) => {
            ScanResult::Found(ScannedModel { location: ModelLocation::Value(begin..at), complete: false })
        }
        (None, _) => ScanResult::Opaque,
    }
}

/// A name as it is written into bodies, encoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedName {
    /// `,"model":"name"`
    member: Bytes,
}

const MEMBER_PREFIX: &str = ",\"model\":";

impl EncodedName {
    /// Encodes `name`.
    pub fn new(name: &str) -> Self {
        Self { member: Bytes::from(format!("{MEMBER_PREFIX}{}", string::encode(name))) }
    }

    pub(crate) fn value(&self) -> Bytes {
        self.member.slice(MEMBER_PREFIX.len()..)
    }

    /// The member as the last of an object, or as the only one.
    fn member(&self, only: bool) -> Bytes {
        self.member.slice(usize::from(only)..)
    }
}

/// A body with another name in it, in three parts: none is copied from the client's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplicedBody {
    /// The body's bytes before the name, the name, and the body's bytes behind it.
    pub parts: [Bytes; 3],
}

impl SplicedBody {
    /// The whole length, for `content-length`.
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Never: a body with a model in it is not empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The body in one piece; copies it.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from(self.parts.concat())
    }
}

/// Puts `name` into the place that [`scan`] found in `body`.
///
/// ```
/// use bytes::Bytes;
/// use rollora_router::json::{self, EncodedName, Scan};
///
/// let body = Bytes::from_static(br#"{ "model" : "alias", "stream": true }"#);
/// let Scan::Found(found) = json::scan(&body) else { panic!("an object") };
/// let spliced = json::splice(&body, &found.place, &EncodedName::new("alias-v2"));
/// assert_eq!(&spliced.into_bytes()[..], br#"{ "model" : "alias-v2", "stream": true }"#);
/// ```
pub fn splice(body: &Bytes, place: &ModelLocation, name: &EncodedName) -> SplicedBody {
    let (range, text) = match place {
        ModelLocation::Name(range) | ModelLocation::Value(range) => (range.clone(), name.value()),
        ModelLocation::Absent { closing_brace: brace, empty } => (*brace..*brace, name.member(*empty)),
    };
    SplicedBody { parts: [body.slice(..range.start), text, body.slice(range.end..)] }
}
