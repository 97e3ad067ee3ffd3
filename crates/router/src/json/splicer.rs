//! Replaces `model` in a body that is forwarded while it arrives.
//!
//! Invariants: the output equals that of [`super::splice`] on the whole body, for every chunking; at most an incomplete
//! name is buffered, up to [`MAX_NAME_LENGTH`] and one chunk; every byte is scanned once. A refusal can come after much
//! of the body was forwarded: its end was not, so no server accepts the request as complete.

use super::{
    EncodedName, MAX_NAME_LENGTH,
    scanner::{ScanEvent, Scanner},
    string,
};
use crate::refusal::RequestRefusal;
use bytes::Bytes;
use std::borrow::Cow;

/// Result of a body that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyOutcome {
    /// The body had no bytes.
    Empty,
    /// The body is not a JSON object, or ends before its `model` is known.
    Opaque,
    /// No rule matches its model, or the lack of one.
    Unmatched,
    /// A rule was applied to the body.
    Rewritten,
}

/// State of the splice of one body.
#[derive(Debug)]
pub(crate) struct Splicer {
    scanner: Scanner,
    state: SplicerState,
    /// Whether the server would read a body in UTF-16.
    server_reads_utf16: bool,
    /// Forward every byte unchanged, whatever rule applies.
    preserves_body: bool,
}

#[derive(Debug)]
enum SplicerState {
    /// No byte has arrived.
    Empty,
    /// `model` was not found yet.
    Scanning,
    /// Not an object, or broken before a `model`.
    Opaque,
    /// Inside the name, of which these parts are buffered.
    Name(Vec<Bytes>),
    /// Inside a value that was replaced.
    SkippingValue,
    /// The model is known and no rule applies.
    Unmatched,
    /// A rule was applied and its target written.
    Rewritten,
}

impl Splicer {
    pub(crate) fn new(server_reads_utf16: bool, preserves_body: bool) -> Self {
        Self { scanner: Scanner::new(), state: SplicerState::Empty, server_reads_utf16, preserves_body }
    }

    /// Returns whether the model is still undecided and a later chunk may contain it.
    pub(crate) fn awaits_model(&self) -> bool {
        matches!(self.state, SplicerState::Empty | SplicerState::Scanning | SplicerState::Name(_))
    }

    /// Returns whether bytes are buffered until the next chunk.
    pub(crate) fn has_buffered(&self) -> bool {
        matches!(self.state, SplicerState::Name(_))
    }

    /// Takes the next chunk of the body and appends the bytes to forward to `out`. Calls `decide` at most once, with
    /// the name or with `None` if there is none; `decide` returns the new name, or `None` if the body stays unchanged.
    pub(crate) fn push(
        &mut self,
        chunk: &Bytes,
        out: &mut Vec<Bytes>,
        decide: impl FnOnce(Option<&str>) -> Result<Option<EncodedName>, RequestRefusal>,
    ) -> Result<(), RequestRefusal> {
        if matches!(self.state, SplicerState::Empty) && !chunk.is_empty() {
            self.state = SplicerState::Scanning;
        }
        let mut decide = Some(decide);
        // A body has one model, so `decide` is called once.
        let mut decide = |name: Option<&str>| decide.take().map_or(Ok(None), |decide| decide(name));
        // Bytes before `sent` were forwarded, buffered or dropped.
        let (mut at, mut sent) = (0, 0);
        while at < chunk.len() {
            let (read, event) = self.scanner.read(chunk.get(at..).unwrap_or_default());
            at += read;
            let Some(event) = event else { continue };
            let phase = std::mem::replace(&mut self.state, SplicerState::Unmatched);
            let preserve = self.preserves_body;
            self.state = match (event, phase) {
                (ScanEvent::Duplicate, _) => return Err(RequestRefusal::DuplicateModel),
                (ScanEvent::WideEncoding, _) if self.server_reads_utf16 => return Err(RequestRefusal::WideEncoding),
                (ScanEvent::NotAnObject, SplicerState::SkippingValue | SplicerState::Rewritten) => {
                    return Err(RequestRefusal::MalformedBody);
                }
                (ScanEvent::ModelStarts { string: true }, _) => {
                    push_nonempty(out, chunk.slice(sent..at));
                    sent = at;
                    SplicerState::Name(Vec::new())
                }
                (ScanEvent::ModelStarts { string: false }, _) => {
                    push_nonempty(out, chunk.slice(sent..at));
                    sent = at;
                    match decide(None)? {
                        Some(_) if preserve => SplicerState::Rewritten,
                        name => replace_value(out, name.map(|name| name.value()), SplicerState::SkippingValue),
                    }
                }
                (ScanEvent::ModelEnds, SplicerState::Name(mut buffered)) => {
                    buffered.push(chunk.slice(sent..at));
                    sent = at;
                    let name = decide(decode_name(&buffered)?.as_deref())?;
                    if preserve || name.is_none() {
                        out.append(&mut buffered);
                    }
                    match name {
                        Some(_) if preserve => SplicerState::Rewritten,
                        name => replace_value(out, name.map(|name| name.value()), SplicerState::Rewritten),
                    }
                }
                (ScanEvent::ModelEnds, SplicerState::SkippingValue) => {
                    sent = at;
                    SplicerState::Rewritten
                }
                (ScanEvent::WideEncoding | ScanEvent::NotAnObject, SplicerState::Scanning) => SplicerState::Opaque,
                // After the first two events the scanner has stopped: all further bytes are forwarded.
                (ScanEvent::WideEncoding | ScanEvent::NotAnObject | ScanEvent::ModelEnds, phase) => phase,
                (ScanEvent::NoModel { empty }, _) => {
                    push_nonempty(out, chunk.slice(sent..at));
                    sent = at;
                    match decide(None)? {
                        Some(_) if preserve => SplicerState::Rewritten,
                        name => replace_value(out, name.map(|name| name.member(empty)), SplicerState::Rewritten),
                    }
                }
            };
        }
        match &mut self.state {
            SplicerState::Name(buffered) => {
                push_nonempty(buffered, chunk.slice(sent..));
                check_name_length(buffered)?;
            }
            SplicerState::SkippingValue => {}
            _ => push_nonempty(out, chunk.slice(sent..)),
        }
        Ok(())
    }

    /// Ends the body and appends the bytes that were still buffered to `out`.
    pub(crate) fn finish(&mut self, out: &mut Vec<Bytes>) -> Result<BodyOutcome, RequestRefusal> {
        match &mut self.state {
            SplicerState::Empty => Ok(BodyOutcome::Empty),
            SplicerState::Scanning | SplicerState::Opaque => Ok(BodyOutcome::Opaque),
            SplicerState::Name(buffered) => {
                out.append(buffered);
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

/// Writes the new value, if a rule gave one, and returns the next state.
fn replace_value(out: &mut Vec<Bytes>, new: Option<Bytes>, then: SplicerState) -> SplicerState {
    match new {
        Some(new) => {
            out.push(new);
            then
        }
        None => SplicerState::Unmatched,
    }
}

fn check_name_length(buffered: &[Bytes]) -> Result<(), RequestRefusal> {
    let length: usize = buffered.iter().map(Bytes::len).sum();
    if length > MAX_NAME_LENGTH { Err(RequestRefusal::ModelNameTooLong) } else { Ok(()) }
}

/// Decodes a buffered string with its quotes. `None` if it is not Unicode text.
fn decode_name(buffered: &[Bytes]) -> Result<Option<Cow<'_, str>>, RequestRefusal> {
    check_name_length(buffered)?;
    let inside = |quoted: usize| 1..quoted.saturating_sub(1);
    Ok(match buffered {
        [only] => only.get(inside(only.len())).and_then(string::decode),
        parts => {
            let quoted = parts.concat();
            let name = quoted.get(inside(quoted.len())).and_then(string::decode);
            name.map(|name| Cow::Owned(name.into_owned()))
        }
    })
}
