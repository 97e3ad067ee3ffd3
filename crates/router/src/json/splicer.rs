//! The splice of a body that is passed on while it comes.
//!
//! Invariants: what goes out is what [`super::splice`] would have made of the whole body, wherever it is cut; what
//! is held is at most the `model` while its end is missing, up to [`LONGEST_NAME`] and one piece; every byte is
//! looked at once. A refusal can come when much has gone out already: the end of the body has not, and without it
//! no server takes the request for whole.

use super::{
    EncodedName, MAX_NAME_LENGTH,
    scanner::{ScanEvent, Scanner},
    string,
};
use crate::refusal::RequestRefusal;
use bytes::Bytes;
use std::borrow::Cow;

/// What a body turned out to be, once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyOutcome {
    /// There was none.
    Empty,
    /// Nothing was found in it.
    Opaque,
    /// A model, or the lack of one, for which there is no rule.
    Unmatched,
    /// It has another model now.
    Rewritten,
}

/// The state of one body.
#[derive(Debug)]
pub(crate) struct Splicer {
    scanner: Scanner,
    state: SplicerState,
    /// A body in UTF-16 would be read by the server.
    server_reads_utf16: bool,
    /// What is decided changes no byte.
    preserves_body: bool,
}

#[derive(Debug)]
enum SplicerState {
    /// Nothing has come.
    Empty,
    /// No `model` yet.
    Scanning,
    /// It is no object, or breaks off before a `model`.
    Opaque,
    /// The name has begun.
    Name(Vec<Bytes>),
    /// A value that was replaced has not ended.
    SkippingValue,
    /// No rule applies.
    Unmatched,
    /// A rule has been applied.
    Rewritten,
}

impl Splicer {
    pub(crate) fn new(server_reads_utf16: bool, preserves_body: bool) -> Self {
        Self { scanner: Scanner::new(), state: SplicerState::Empty, server_reads_utf16, preserves_body }
    }

    /// Whether there may still be something to decide.
    pub(crate) fn awaits_model(&self) -> bool {
        matches!(self.state, SplicerState::Empty | SplicerState::Scanning | SplicerState::Name(_))
    }

    /// Whether bytes are held that would go on with what comes next.
    pub(crate) fn has_buffered(&self) -> bool {
        matches!(self.state, SplicerState::Name(_))
    }

    /// Takes the next piece of the body, and puts what goes on into `out`. `decide` is asked once what the model is
    /// to be; it gets none where there is no name, and gives none where everything stays as it is.
    pub(crate) fn push(
        &mut self,
        piece: &Bytes,
        out: &mut Vec<Bytes>,
        decide: impl FnOnce(Option<&str>) -> Result<Option<EncodedName>, RequestRefusal>,
    ) -> Result<(), RequestRefusal> {
        if matches!(self.state, SplicerState::Empty) && !piece.is_empty() {
            self.state = SplicerState::Scanning;
        }
        let mut decide = Some(decide);
        // There is one model to decide about.
        let mut decide = |name: Option<&str>| decide.take().map_or(Ok(None), |decide| decide(name));
        // What stands before `sent` has gone on, or is gone.
        let (mut at, mut sent) = (0, 0);
        while at < piece.len() {
            let (read, event) = self.scanner.read(piece.get(at..).unwrap_or_default());
            at += read;
            let Some(event) = event else { continue };
            let phase = std::mem::replace(&mut self.state, SplicerState::Unmatched);
            let keep = self.preserves_body;
            self.state = match (event, phase) {
                (ScanEvent::Duplicate, _) => return Err(RequestRefusal::DuplicateModel),
                (ScanEvent::WideEncoding, _) if self.server_reads_utf16 => return Err(RequestRefusal::WideEncoding),
                (ScanEvent::NotAnObject, SplicerState::SkippingValue | SplicerState::Rewritten) => {
                    return Err(RequestRefusal::MalformedBody);
                }
                (ScanEvent::ModelStarts { string: true }, _) => {
                    push_nonempty(out, piece.slice(sent..at));
                    sent = at;
                    SplicerState::Name(Vec::new())
                }
                (ScanEvent::ModelStarts { string: false }, _) => {
                    push_nonempty(out, piece.slice(sent..at));
                    sent = at;
                    match decide(None)? {
                        Some(_) if keep => SplicerState::Rewritten,
                        name => replace_value(out, name.map(|name| name.value()), SplicerState::SkippingValue),
                    }
                }
                (ScanEvent::ModelEnds, SplicerState::Name(mut held)) => {
                    held.push(piece.slice(sent..at));
                    sent = at;
                    let name = decide(decode_name(&held)?.as_deref())?;
                    if keep || name.is_none() {
                        out.append(&mut held);
                    }
                    match name {
                        Some(_) if keep => SplicerState::Rewritten,
                        name => replace_value(out, name.map(|name| name.value()), SplicerState::Rewritten),
                    }
                }
                (ScanEvent::ModelEnds, SplicerState::SkippingValue) => {
                    sent = at;
                    SplicerState::Rewritten
                }
                (ScanEvent::WideEncoding | ScanEvent::NotAnObject, SplicerState::Scanning) => SplicerState::Opaque,
                // Behind the first two the scanner has stopped: from here on everything passes.
                (ScanEvent::WideEncoding | ScanEvent::NotAnObject | ScanEvent::ModelEnds, phase) => phase,
                (ScanEvent::NoModel { empty }, _) => {
                    push_nonempty(out, piece.slice(sent..at));
                    sent = at;
                    match decide(None)? {
                        Some(_) if keep => SplicerState::Rewritten,
                        name => replace_value(out, name.map(|name| name.member(empty)), SplicerState::Rewritten),
                    }
                }
            };
        }
        match &mut self.state {
            SplicerState::Name(held) => {
                push_nonempty(held, piece.slice(sent..));
                check_name_length(held)?;
            }
            SplicerState::SkippingValue => {}
            _ => push_nonempty(out, piece.slice(sent..)),
        }
        Ok(())
    }

    /// The body has ended; what was held goes into `out`.
    pub(crate) fn finish(&mut self, out: &mut Vec<Bytes>) -> Result<BodyOutcome, RequestRefusal> {
        match &mut self.state {
            SplicerState::Empty => Ok(BodyOutcome::Empty),
            SplicerState::Scanning | SplicerState::Opaque => Ok(BodyOutcome::Opaque),
            SplicerState::Name(held) => {
                out.append(held);
                Ok(BodyOutcome::Opaque)
            }
            SplicerState::Unmatched => Ok(BodyOutcome::Unmatched),
            SplicerState::Rewritten if self.scanner.is_complete() => Ok(BodyOutcome::Rewritten),
            SplicerState::SkippingValue | SplicerState::Rewritten => Err(RequestRefusal::MalformedBody),
        }
    }
}

fn push_nonempty(out: &mut Vec<Bytes>, bytes: Bytes) {
    if !bytes.is_empty() {
        out.push(bytes);
    }
}

/// Puts what a rule says into the body, and goes on in `then`; without a rule the body is left alone.
fn replace_value(out: &mut Vec<Bytes>, new: Option<Bytes>, then: SplicerState) -> SplicerState {
    match new {
        Some(new) => {
            out.push(new);
            then
        }
        None => SplicerState::Unmatched,
    }
}

fn check_name_length(held: &[Bytes]) -> Result<(), RequestRefusal> {
    let length: usize = held.iter().map(Bytes::len).sum();
    if length > MAX_NAME_LENGTH { Err(RequestRefusal::ModelNameTooLong) } else { Ok(()) }
}

/// The name in a string that is held with its quotes; none where it is no Unicode text.
fn decode_name(held: &[Bytes]) -> Result<Option<Cow<'_, str>>, RequestRefusal> {
    check_name_length(held)?;
    let inside = |quoted: usize| 1..quoted.saturating_sub(1);
    Ok(match held {
        [only] => only.get(inside(only.len())).and_then(string::decode),
        pieces => {
            let quoted = pieces.concat();
            let name = quoted.get(inside(quoted.len())).and_then(string::decode);
            name.map(|name| Cow::Owned(name.into_owned()))
        }
    })
}
