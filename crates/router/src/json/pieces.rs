//! The splice of a body that is passed on while it comes.
//!
//! Invariants: what goes out is what [`super::splice`] would have made of the whole body, wherever it is cut; what
//! is held is at most the `model` while its end is missing, up to [`LONGEST_NAME`] and one piece; every byte is
//! looked at once. A refusal can come when much has gone out already: the end of the body has not, and without it
//! no server takes the request for whole.

use super::{
    EncodedName, LONGEST_NAME,
    scanner::{Event, Scanner},
    text,
};
use crate::refusal::Refusal;
use bytes::Bytes;
use std::borrow::Cow;

/// What a body turned out to be, once it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// There was none.
    Empty,
    /// Nothing was found in it.
    Opaque,
    /// A model, or the lack of one, for which there is no rule.
    Left,
    /// It has another model now.
    Rewritten,
}

/// The state of one body.
#[derive(Debug)]
pub(crate) struct Splicer {
    scanner: Scanner,
    phase: Phase,
    /// A body in UTF-16 would be read by the server.
    reads_wide: bool,
    /// What is decided changes no byte.
    leaves_body: bool,
}

#[derive(Debug)]
enum Phase {
    /// Nothing has come.
    Empty,
    /// No `model` yet.
    Seeking,
    /// It is no object, or breaks off before a `model`.
    Opaque,
    /// The name has begun.
    Name(Vec<Bytes>),
    /// A value that was replaced has not ended.
    Dropping,
    /// No rule applies.
    Left,
    /// A rule has been applied.
    Rewritten,
}

impl Splicer {
    pub(crate) fn new(reads_wide: bool, leaves_body: bool) -> Self {
        Self { scanner: Scanner::new(), phase: Phase::Empty, reads_wide, leaves_body }
    }

    /// Whether there may still be something to decide.
    pub(crate) fn awaits_model(&self) -> bool {
        matches!(self.phase, Phase::Empty | Phase::Seeking | Phase::Name(_))
    }

    /// Whether bytes are held that would go on with what comes next.
    pub(crate) fn holds(&self) -> bool {
        matches!(self.phase, Phase::Name(_))
    }

    /// Takes the next piece of the body, and puts what goes on into `out`. `decide` is asked once what the model is
    /// to be; it gets none where there is no name, and gives none where everything stays as it is.
    pub(crate) fn piece(
        &mut self,
        piece: &Bytes,
        out: &mut Vec<Bytes>,
        decide: impl FnOnce(Option<&str>) -> Result<Option<EncodedName>, Refusal>,
    ) -> Result<(), Refusal> {
        if matches!(self.phase, Phase::Empty) && !piece.is_empty() {
            self.phase = Phase::Seeking;
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
            let phase = std::mem::replace(&mut self.phase, Phase::Left);
            let keep = self.leaves_body;
            self.phase = match (event, phase) {
                (Event::Duplicate, _) => return Err(Refusal::DuplicateModel),
                (Event::WideEncoding, _) if self.reads_wide => return Err(Refusal::WideEncoding),
                (Event::NotAnObject, Phase::Dropping | Phase::Rewritten) => return Err(Refusal::BrokenBody),
                (Event::ModelStarts { string: true }, _) => {
                    push(out, piece.slice(sent..at));
                    sent = at;
                    Phase::Name(Vec::new())
                }
                (Event::ModelStarts { string: false }, _) => {
                    push(out, piece.slice(sent..at));
                    sent = at;
                    match decide(None)? {
                        Some(_) if keep => Phase::Rewritten,
                        name => put(out, name.map(|name| name.value()), Phase::Dropping),
                    }
                }
                (Event::ModelEnds, Phase::Name(mut held)) => {
                    held.push(piece.slice(sent..at));
                    sent = at;
                    let name = decide(name(&held)?.as_deref())?;
                    if keep || name.is_none() {
                        out.append(&mut held);
                    }
                    match name {
                        Some(_) if keep => Phase::Rewritten,
                        name => put(out, name.map(|name| name.value()), Phase::Rewritten),
                    }
                }
                (Event::ModelEnds, Phase::Dropping) => {
                    sent = at;
                    Phase::Rewritten
                }
                (Event::WideEncoding | Event::NotAnObject, Phase::Seeking) => Phase::Opaque,
                // Behind the first two the scanner has stopped: from here on everything passes.
                (Event::WideEncoding | Event::NotAnObject | Event::ModelEnds, phase) => phase,
                (Event::NoModel { empty }, _) => {
                    push(out, piece.slice(sent..at));
                    sent = at;
                    match decide(None)? {
                        Some(_) if keep => Phase::Rewritten,
                        name => put(out, name.map(|name| name.member(empty)), Phase::Rewritten),
                    }
                }
            };
        }
        match &mut self.phase {
            Phase::Name(held) => {
                push(held, piece.slice(sent..));
                within_limit(held)?;
            }
            Phase::Dropping => {}
            _ => push(out, piece.slice(sent..)),
        }
        Ok(())
    }

    /// The body has ended; what was held goes into `out`.
    pub(crate) fn end(&mut self, out: &mut Vec<Bytes>) -> Result<Ending, Refusal> {
        match &mut self.phase {
            Phase::Empty => Ok(Ending::Empty),
            Phase::Seeking | Phase::Opaque => Ok(Ending::Opaque),
            Phase::Name(held) => {
                out.append(held);
                Ok(Ending::Opaque)
            }
            Phase::Left => Ok(Ending::Left),
            Phase::Rewritten if self.scanner.is_complete() => Ok(Ending::Rewritten),
            Phase::Dropping | Phase::Rewritten => Err(Refusal::BrokenBody),
        }
    }
}

fn push(out: &mut Vec<Bytes>, bytes: Bytes) {
    if !bytes.is_empty() {
        out.push(bytes);
    }
}

/// Puts what a rule says into the body, and goes on in `then`; without a rule the body is left alone.
fn put(out: &mut Vec<Bytes>, new: Option<Bytes>, then: Phase) -> Phase {
    match new {
        Some(new) => {
            out.push(new);
            then
        }
        None => Phase::Left,
    }
}

fn within_limit(held: &[Bytes]) -> Result<(), Refusal> {
    let length: usize = held.iter().map(Bytes::len).sum();
    if length > LONGEST_NAME { Err(Refusal::LongName) } else { Ok(()) }
}

/// The name in a string that is held with its quotes; none where it is no Unicode text.
fn name(held: &[Bytes]) -> Result<Option<Cow<'_, str>>, Refusal> {
    within_limit(held)?;
    let inside = |quoted: usize| 1..quoted.saturating_sub(1);
    Ok(match held {
        [only] => only.get(inside(only.len())).and_then(text::decode),
        pieces => {
            let quoted = pieces.concat();
            let name = quoted.get(inside(quoted.len())).and_then(text::decode);
            name.map(|name| Cow::Owned(name.into_owned()))
        }
    })
}
