//! Restores the requested model name in responses, where the model server wrote the name of the target.
//!
//! Invariants: the output is the same for every chunking; every byte outside the value stays as the server sent it;
//! only an incomplete name is buffered, up to [`MAX_NAME_LENGTH`] and one chunk, so streams are not delayed. A response
//! that cannot be parsed is forwarded unchanged: nothing is refused here.
//!
//! Only the top-level `model` is replaced, of a JSON object or of the object in each server-sent event, and only if it
//! equals the name of the target. A name deeper in the object, or in a text (such as an error message about the
//! target), stays.

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

/// State of the restoration of one response.
///
/// ```
/// use bytes::Bytes;
/// use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
/// use rollora_router::restore::Restorer;
///
/// let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))]);
/// let mut restorer = Restorer::new(&headers, "alias-v2", "alias").expect("an event stream, and two names");
/// let mut out = Vec::new();
/// // The chunk ends within the name: only that part is buffered.
/// restorer.push(&Bytes::from_static(b"data: {\"id\": 1, \"model\": \"ali"), &mut out);
/// assert_eq!(out.concat(), b"data: {\"id\": 1, \"model\": ");
/// restorer.push(&Bytes::from_static(b"as-v2\"}\n\ndata: [DONE]\n\n"), &mut out);
/// restorer.finish(&mut out);
/// assert_eq!(out.concat(), b"data: {\"id\": 1, \"model\": \"alias\"}\n\ndata: [DONE]\n\n");
/// ```
#[derive(Debug)]
pub struct Restorer {
    names: ModelNames,
    object: ObjectRestorer,
    /// The line parser; only for event streams.
    sse: Option<SseParser>,
}

/// The name to replace and its replacement.
#[derive(Debug)]
struct ModelNames {
    served: Box<str>,
    requested: EncodedName,
}

impl Restorer {
    /// Creates a restorer for a response with these `headers`, of the model `served`, to a client that requested
    /// `requested`. `None` if the response must stay unchanged: it is compressed, it is neither JSON nor an event
    /// stream, or the names are equal.
    pub fn new(headers: &(impl HeaderLookup + ?Sized), served: &str, requested: &str) -> Option<Self> {
        let format = headers::response_format(headers)?;
        let names = ModelNames { served: served.into(), requested: EncodedName::new(requested) };
        let sse = (format == headers::ResponseFormat::EventStream).then(SseParser::new);
        (served != requested).then(|| Self { names, object: ObjectRestorer::new(), sse })
    }

    /// Takes the next chunk of the response and appends the bytes to forward to `out`.
    pub fn push(&mut self, chunk: &Bytes, out: &mut Vec<Bytes>) {
        let mut cursor = ChunkCursor { chunk, position: 0, out };
        match &mut self.sse {
            Some(sse) => sse.push(&mut self.object, &self.names, &mut cursor),
            None => self.object.read(0..chunk.len(), &self.names, &mut cursor),
        }
        self.object.end_chunk(&mut cursor);
    }

    /// Ends the response and appends the bytes that were still buffered to `out`.
    pub fn finish(&mut self, out: &mut Vec<Bytes>) {
        self.object.flush(out);
    }
}

/// A chunk, and how much of it was processed.
#[derive(Debug)]
struct ChunkCursor<'a> {
    chunk: &'a Bytes,
    /// Bytes before this were forwarded, buffered or dropped.
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

/// State of one JSON object.
#[derive(Debug)]
struct ObjectRestorer {
    scanner: Scanner,
    /// Parts of the name, while it is incomplete.
    buffered: Option<Vec<Bytes>>,
}

impl ObjectRestorer {
    fn new() -> Self {
        Self { scanner: Scanner::new(), buffered: None }
    }

    /// Reads the next bytes of the object, given as a range of the chunk.
    fn read(&mut self, bytes: Range<usize>, names: &ModelNames, cursor: &mut ChunkCursor<'_>) {
        let mut at = bytes.start;
        while let Some(rest) = cursor.chunk.get(at..bytes.end).filter(|rest| !rest.is_empty()) {
            let (read, event) = self.scanner.read(rest);
            at += read;
            match event {
                Some(ScanEvent::ModelStarts { string: true }) => {
                    cursor.forward_to(at);
                    self.buffered = Some(Vec::new());
                }
                Some(ScanEvent::ModelEnds) => {
                    let Some(mut buffered) = self.buffered.take() else { continue };
                    buffered.push(cursor.take(at));
                    if buffered_name_is(&buffered, &names.served) {
                        cursor.out.push(names.requested.value());
                    } else {
                        cursor.out.extend(buffered.into_iter().filter(|bytes| !bytes.is_empty()));
                    }
                }
                // If the object is broken, the scanner has stopped, and the rest is forwarded.
                _ => {}
            }
        }
    }

    /// Ends a line of an event. The object can continue on the next line, but a name cannot: it contains no line break.
    fn end_line(&mut self, out: &mut Vec<Bytes>) {
        self.flush(out);
        self.scanner.read(b"\n");
    }

    fn end_chunk(&mut self, cursor: &mut ChunkCursor<'_>) {
        let end = cursor.chunk.len();
        let Some(buffered) = &mut self.buffered else { return cursor.forward_to(end) };
        buffered.push(cursor.take(end));
        if buffered.iter().map(Bytes::len).sum::<usize>() > MAX_NAME_LENGTH {
            self.flush(cursor.out);
        }
    }

    fn flush(&mut self, out: &mut Vec<Bytes>) {
        out.extend(self.buffered.take().into_iter().flatten().filter(|bytes| !bytes.is_empty()));
    }
}

fn buffered_name_is(buffered: &[Bytes], name: &str) -> bool {
    match buffered {
        [only] => json::decode_quoted(only).is_some_and(|decoded| decoded == name),
        parts => json::decode_quoted(&parts.concat()).is_some_and(|decoded| decoded == name),
    }
}
