//! The client's name put back into an answer, where the model server wrote the name of the version.
//!
//! Invariants: what goes out is the same wherever the answer is cut; every byte outside of the value is as the server
//! sent it; nothing waits but a name whose end is missing, up to [`LONGEST_NAME`] and one piece. So a stream stays a
//! stream. An answer that cannot be read passes as it is: nothing is refused here.
//!
//! Replaced is the top-level `model` of a JSON object, or of the object in each event of an event stream, and only
//! where it is the name that was decided. A name that stands deeper, or in a text (an error that speaks of the
//! version), stays.

mod sse;
#[cfg(test)]
mod tests;

use crate::{
    headers::{self, HeaderLookup},
    json::{
        self, EncodedName, MAX_NAME_LENGTH,
        scanner::{ScanEvent, Scanner},
    },
};
use bytes::Bytes;
use sse::SseParser;
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
    names: ModelNames,
    object: ObjectRestorer,
    /// The lines around the objects, in an event stream.
    sse: Option<SseParser>,
}

/// Which name becomes which.
#[derive(Debug)]
struct ModelNames {
    served: Box<str>,
    requested: EncodedName,
}

impl Restorer {
    /// For an answer under these `headers`, of the model `served`, to a client that asked for `client`. None where
    /// the answer is to be left alone: it is compressed, or neither JSON nor an event stream, or the names are equal.
    pub fn new(headers: &(impl HeaderLookup + ?Sized), served: &str, client: &str) -> Option<Self> {
        let kind = headers::response_format(headers)?;
        let names = ModelNames { served: served.into(), requested: EncodedName::new(client) };
        let events = (kind == headers::ResponseFormat::EventStream).then(SseParser::new);
        (served != client).then(|| Self { names, object: ObjectRestorer::new(), sse: events })
    }

    /// Takes the next piece of the answer, and puts what goes on into `out`.
    pub fn push(&mut self, piece: &Bytes, out: &mut Vec<Bytes>) {
        let mut cut = ChunkCursor { chunk: piece, position: 0, out };
        match &mut self.sse {
            Some(events) => events.push(&mut self.object, &self.names, &mut cut),
            None => self.object.read(0..piece.len(), &self.names, &mut cut),
        }
        self.object.end_chunk(&mut cut);
    }

    /// The answer has ended; what waited is put into `out`.
    pub fn finish(&mut self, out: &mut Vec<Bytes>) {
        self.object.flush(out);
    }
}

/// A piece on its way.
#[derive(Debug)]
struct ChunkCursor<'a> {
    chunk: &'a Bytes,
    /// What stands before this has gone on, is held, or is gone.
    position: usize,
    out: &'a mut Vec<Bytes>,
}

impl ChunkCursor<'_> {
    fn take(&mut self, end: usize) -> Bytes {
        let bytes = self.chunk.slice(self.position..end);
        self.position = end;
        bytes
    }

    fn forward_to(&mut self, end: usize) {
        let bytes = self.take(end);
        if !bytes.is_empty() {
            self.out.push(bytes);
        }
    }
}

/// One JSON object.
#[derive(Debug)]
struct ObjectRestorer {
    scanner: Scanner,
    /// The name, while its end is missing.
    buffered: Option<Vec<Bytes>>,
}

impl ObjectRestorer {
    fn new() -> Self {
        Self { scanner: Scanner::new(), buffered: None }
    }

    /// The next bytes of the object are these of the piece.
    fn read(&mut self, bytes: Range<usize>, names: &ModelNames, cut: &mut ChunkCursor<'_>) {
        let mut at = bytes.start;
        while let Some(rest) = cut.chunk.get(at..bytes.end).filter(|rest| !rest.is_empty()) {
            let (read, event) = self.scanner.read(rest);
            at += read;
            match event {
                Some(ScanEvent::ModelStarts { string: true }) => {
                    cut.forward_to(at);
                    self.buffered = Some(Vec::new());
                }
                Some(ScanEvent::ModelEnds) => {
                    let Some(mut held) = self.buffered.take() else { continue };
                    held.push(cut.take(at));
                    if buffered_name_is(&held, &names.served) {
                        cut.out.push(names.requested.value());
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
    fn end_line(&mut self, out: &mut Vec<Bytes>) {
        self.flush(out);
        self.scanner.read(b"\n");
    }

    fn end_chunk(&mut self, cut: &mut ChunkCursor<'_>) {
        let end = cut.chunk.len();
        let Some(held) = &mut self.buffered else { return cut.forward_to(end) };
        held.push(cut.take(end));
        if held.iter().map(Bytes::len).sum::<usize>() > MAX_NAME_LENGTH {
            self.flush(cut.out);
        }
    }

    fn flush(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.buffered.take().into_iter().flatten().filter(|bytes| !bytes.is_empty()));
    }
}

fn buffered_name_is(held: &[Bytes], name: &str) -> bool {
    match held {
        [only] => json::decode_quoted(only).is_some_and(|held| held == name),
        pieces => json::decode_quoted(&pieces.concat()).is_some_and(|held| held == name),
    }
}
