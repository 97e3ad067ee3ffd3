//! The client's name put back into an answer, where the model server wrote the name of the version.
//!
//! Invariants: what goes out is the same wherever the answer is cut; every byte outside of the value is as the server
//! sent it; nothing waits but a name whose end is missing, up to [`LONGEST_NAME`] and one piece. So a stream stays a
//! stream. An answer that cannot be read passes as it is: nothing is refused here.
//!
//! Replaced is the top-level `model` of a JSON object, or of the object in each event of an event stream, and only
//! where it is the name that was decided. A name that stands deeper, or in a text (an error that speaks of the
//! version), stays.

mod events;
#[cfg(test)]
mod tests;

use crate::{
    headers::{self, Headers},
    json::{
        self, EncodedName, LONGEST_NAME,
        scanner::{Event, Scanner},
    },
};
use bytes::Bytes;
use events::Events;
use std::ops::Range;

/// The state of one answer.
///
/// ```
/// use bytes::Bytes;
/// use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
/// use rollora_router::restore::Restorer;
///
/// let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))]);
/// let mut restorer = Restorer::new(&headers, "alias-v2", "alias").expect("an event stream, and two names");
/// let mut out = Vec::new();
/// // Cut in the middle of the name, which waits for its end. Nothing else does.
/// restorer.piece(&Bytes::from_static(b"data: {\"id\": 1, \"model\": \"ali"), &mut out);
/// assert_eq!(out.concat(), b"data: {\"id\": 1, \"model\": ");
/// restorer.piece(&Bytes::from_static(b"as-v2\"}\n\ndata: [DONE]\n\n"), &mut out);
/// restorer.end(&mut out);
/// assert_eq!(out.concat(), b"data: {\"id\": 1, \"model\": \"alias\"}\n\ndata: [DONE]\n\n");
/// ```
#[derive(Debug)]
pub struct Restorer {
    names: Names,
    object: Object,
    /// The lines around the objects, in an event stream.
    events: Option<Events>,
}

/// Which name becomes which.
#[derive(Debug)]
struct Names {
    served: Box<str>,
    client: EncodedName,
}

impl Restorer {
    /// For an answer under these `headers`, of the model `served`, to a client that asked for `client`. None where
    /// the answer is to be left alone: it is compressed, or neither JSON nor an event stream, or the names are equal.
    pub fn new(headers: &(impl Headers + ?Sized), served: &str, client: &str) -> Option<Self> {
        let kind = headers::answer_kind(headers)?;
        let names = Names { served: served.into(), client: EncodedName::new(client) };
        let events = (kind == headers::AnswerKind::Events).then(Events::new);
        (served != client).then(|| Self { names, object: Object::new(), events })
    }

    /// Takes the next piece of the answer, and puts what goes on into `out`.
    pub fn piece(&mut self, piece: &Bytes, out: &mut Vec<Bytes>) {
        let mut cut = Cut { piece, sent: 0, out };
        match &mut self.events {
            Some(events) => events.piece(&mut self.object, &self.names, &mut cut),
            None => self.object.read(0..piece.len(), &self.names, &mut cut),
        }
        self.object.piece_ends(&mut cut);
    }

    /// The answer has ended; what waited is put into `out`.
    pub fn end(&mut self, out: &mut Vec<Bytes>) {
        self.object.let_go(out);
    }
}

/// A piece on its way.
#[derive(Debug)]
struct Cut<'a> {
    piece: &'a Bytes,
    /// What stands before this has gone on, is held, or is gone.
    sent: usize,
    out: &'a mut Vec<Bytes>,
}

impl Cut<'_> {
    fn take(&mut self, end: usize) -> Bytes {
        let bytes = self.piece.slice(self.sent..end);
        self.sent = end;
        bytes
    }

    fn pass(&mut self, end: usize) {
        let bytes = self.take(end);
        if !bytes.is_empty() {
            self.out.push(bytes);
        }
    }
}

/// One JSON object.
#[derive(Debug)]
struct Object {
    scanner: Scanner,
    /// The name, while its end is missing.
    held: Option<Vec<Bytes>>,
}

impl Object {
    fn new() -> Self {
        Self { scanner: Scanner::new(), held: None }
    }

    /// The next bytes of the object are these of the piece.
    fn read(&mut self, bytes: Range<usize>, names: &Names, cut: &mut Cut<'_>) {
        let mut at = bytes.start;
        while let Some(rest) = cut.piece.get(at..bytes.end).filter(|rest| !rest.is_empty()) {
            let (read, event) = self.scanner.read(rest);
            at += read;
            match event {
                Some(Event::ModelStarts { string: true }) => {
                    cut.pass(at);
                    self.held = Some(Vec::new());
                }
                Some(Event::ModelEnds) => {
                    let Some(mut held) = self.held.take() else { continue };
                    held.push(cut.take(at));
                    if held_name_is(&held, &names.served) {
                        cut.out.push(names.client.value());
                    } else {
                        cut.out.extend(held.into_iter().filter(|bytes| !bytes.is_empty()));
                    }
                }
                // Where it cannot be read on, the scanner has stopped, and the rest passes.
                _ => {}
            }
        }
    }

    /// A line ends, and the object may go on in the next. A name does not: it holds no line break.
    fn line_ends(&mut self, out: &mut Vec<Bytes>) {
        self.let_go(out);
        self.scanner.read(b"\n");
    }

    fn piece_ends(&mut self, cut: &mut Cut<'_>) {
        let end = cut.piece.len();
        let Some(held) = &mut self.held else { return cut.pass(end) };
        held.push(cut.take(end));
        if held.iter().map(Bytes::len).sum::<usize>() > LONGEST_NAME {
            self.let_go(cut.out);
        }
    }

    fn let_go(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.held.take().into_iter().flatten().filter(|bytes| !bytes.is_empty()));
    }
}

fn held_name_is(held: &[Bytes], name: &str) -> bool {
    match held {
        [only] => json::quoted_name(only).is_some_and(|held| held == name),
        pieces => json::quoted_name(&pieces.concat()).is_some_and(|held| held == name),
    }
}
