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

pub(crate) mod pieces;
pub(crate) mod scanner;
#[cfg(test)]
mod tests;
mod text;

use crate::refusal::Refusal;
use bytes::Bytes;
use scanner::{Event, Scanner};
use std::{borrow::Cow, ops::Range};

/// The longest string that is read as a name, in bytes as written.
pub const LONGEST_NAME: usize = 8 * 1024;

/// What a scan of a whole body found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scan {
    /// Not a JSON object: nothing can be decided by it.
    Opaque,
    /// A JSON object.
    Found(Found),
    /// A body that different readers would read differently.
    Refused(Refusal),
}

/// What was found in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where the model stands.
    pub place: Place,
    /// Whether the object goes on to its end, with nothing but white space behind it.
    pub intact: bool,
}

/// Where the model stands in a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A string, with its quotes.
    Name(Range<usize>),
    /// A value that is no string.
    Value(Range<usize>),
    /// The object has none.
    Nowhere {
        /// Where its closing brace stands.
        brace: usize,
        /// Whether it has no members at all.
        empty: bool,
    },
}

impl Place {
    /// The name that stands here in `body`; none where there is none, or where it is no Unicode text.
    pub fn name<'b>(&self, body: &'b [u8]) -> Option<Cow<'b, str>> {
        let Self::Name(quoted) = self else { return None };
        quoted_name(body.get(quoted.clone())?)
    }
}

/// What a string with its quotes says; none where it is no Unicode text.
pub(crate) fn quoted_name(quoted: &[u8]) -> Option<Cow<'_, str>> {
    text::decode(quoted.get(1..quoted.len().checked_sub(1)?)?)
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
pub fn scan(body: &[u8]) -> Scan {
    let mut scanner = Scanner::new();
    let mut at = 0;
    let mut begin = None;
    let mut place = None;
    let mut intact = true;
    while at < body.len() {
        let (read, event) = scanner.read(body.get(at..).unwrap_or_default());
        at += read;
        match event {
            Some(Event::ModelStarts { string }) => begin = Some((at, string)),
            Some(Event::ModelEnds) => {
                place = begin
                    .take()
                    .map(|(begin, string)| if string { Place::Name(begin..at) } else { Place::Value(begin..at) });
            }
            Some(Event::NoModel { empty }) => place = Some(Place::Nowhere { brace: at, empty }),
            Some(Event::Duplicate) => return Scan::Refused(Refusal::DuplicateModel),
            Some(Event::WideEncoding) => return Scan::Refused(Refusal::WideEncoding),
            Some(Event::NotAnObject) => intact = false,
            None => {}
        }
        let name = match (&place, begin) {
            (Some(Place::Name(name)), _) => name.len(),
            (None, Some((begin, true))) => at - begin,
            _ => 0,
        };
        if name > LONGEST_NAME {
            return Scan::Refused(Refusal::LongName);
        }
    }
    match (place, begin) {
        (Some(place), _) => Scan::Found(Found { place, intact: intact && scanner.is_complete() }),
        (None, Some((begin, false))) => Scan::Found(Found { place: Place::Value(begin..at), intact: false }),
        (None, _) => Scan::Opaque,
    }
}

/// A name as it is written into bodies, encoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedName {
    /// `,"model":"name"`
    member: Bytes,
}

const MEMBER_START: &str = ",\"model\":";

impl EncodedName {
    /// Encodes `name`.
    pub fn new(name: &str) -> Self {
        Self { member: Bytes::from(format!("{MEMBER_START}{}", text::encode(name))) }
    }

    pub(crate) fn value(&self) -> Bytes {
        self.member.slice(MEMBER_START.len()..)
    }

    /// The member as the last of an object, or as the only one.
    fn member(&self, only: bool) -> Bytes {
        self.member.slice(usize::from(only)..)
    }
}

/// A body with another name in it, in three parts: none is copied from the client's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spliced {
    /// The body's bytes before the name, the name, and the body's bytes behind it.
    pub parts: [Bytes; 3],
}

impl Spliced {
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
pub fn splice(body: &Bytes, place: &Place, name: &EncodedName) -> Spliced {
    let (range, text) = match place {
        Place::Name(range) | Place::Value(range) => (range.clone(), name.value()),
        Place::Nowhere { brace, empty } => (*brace..*brace, name.member(*empty)),
    };
    Spliced { parts: [body.slice(..range.start), text, body.slice(range.end..)] }
}
