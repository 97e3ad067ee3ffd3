//! Where things stand in the text: lines, columns, the two lists.

use crate::yaml::tree::{Node, NodeKind};
use std::ops::Range;

/// The root key.
pub(super) const ROOT_KEY: &str = "vLLMLoRAConfig";
/// The key of the items in either list.
pub(super) const MODELS_KEY: &str = "models";

/// Which of the two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListName {
    /// `ensureExist`.
    Exist,
    /// `ensureNotExist`.
    NotExist,
}

impl ListName {
    /// The list's key.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Exist => "ensureExist",
            Self::NotExist => "ensureNotExist",
        }
    }

    /// 0 or 1.
    pub(super) fn index(self) -> usize {
        match self {
            Self::Exist => 0,
            Self::NotExist => 1,
        }
    }

    /// The other list.
    pub(super) fn other(self) -> Self {
        match self {
            Self::Exist => Self::NotExist,
            Self::NotExist => Self::Exist,
        }
    }
}

/// The items of a list; none where it is absent, blank, or a reference.
pub(super) fn list_items(config: &Node, list: ListName) -> &[Node] {
    match config.get(list.key()).and_then(|section| section.get(MODELS_KEY)).map(|models| &models.kind) {
        Some(NodeKind::Sequence { items, .. }) => items,
        _ => &[],
    }
}

/// Whether a value says nothing: null, `[]` or `{}`.
pub(super) fn is_empty_value(value: &Node) -> bool {
    match &value.kind {
        NodeKind::Scalar { .. } => value.is_null(),
        NodeKind::Sequence { items, .. } => items.is_empty(),
        NodeKind::Mapping { entries, .. } => entries.is_empty(),
        NodeKind::Alias(_) => false,
    }
}

/// Bytes to replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Splice {
    /// Which.
    pub(super) range: Range<usize>,
    /// By what.
    pub(super) replacement: String,
}

impl Splice {
    /// Takes bytes out.
    pub(super) fn remove(range: Range<usize>) -> Self {
        Self { range, replacement: String::new() }
    }

    /// Puts bytes in.
    pub(super) fn insert(at: usize, with: impl Into<String>) -> Self {
        Self { range: at..at, replacement: with.into() }
    }
}

/// A text and where its lines begin. Lines are counted from 0 here.
#[derive(Debug)]
pub(super) struct SourceText<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> SourceText<'t> {
    /// Finds the lines of `text`.
    pub(super) fn new(text: &'t str) -> Self {
        let mut line_starts = vec![0];
        line_starts.extend(text.match_indices('\n').map(|(at, _)| at + 1).filter(|at| *at < text.len()));
        Self { text, line_starts }
    }

    /// The text with all splices, which do not overlap, applied.
    pub(super) fn apply(&self, mut splices: Vec<Splice>) -> String {
        splices.sort_by_key(|splice| (splice.range.start, splice.range.end));
        let (mut edited, mut at) = (String::with_capacity(self.text.len() + 128), 0);
        for Splice { range, replacement: with } in splices {
            edited.push_str(self.slice(at..range.start));
            edited.push_str(&with);
            at = at.max(range.end);
        }
        edited.push_str(self.slice(at..self.text.len()));
        edited
    }

    /// The bytes of `range`; nothing where there are none.
    pub(super) fn slice(&self, range: Range<usize>) -> &'t str {
        self.text.get(range).unwrap_or_default()
    }

    /// How many lines there are.
    pub(super) fn line_count(&self) -> usize {
        self.line_starts.len()
    }

    /// The line that `offset` is on.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    /// The last line of the node that ends at `end`, which may be after the end of that line.
    pub(super) fn last_line(&self, end: usize) -> usize {
        self.line_at(self.slice(0..end).trim_end().len().saturating_sub(1))
    }

    /// Where a line begins; the end of the text where there is no such line.
    pub(super) fn line_start(&self, line: usize) -> usize {
        self.line_starts.get(line).copied().unwrap_or(self.text.len())
    }

    /// A line without its ending.
    pub(super) fn line(&self, line: usize) -> &'t str {
        self.slice(self.line_start(line)..self.line_start(line + 1)).trim_end_matches(['\n', '\r'])
    }

    /// The column of `offset`, if only white space stands before it on its line.
    pub(super) fn indent_at(&self, offset: usize) -> Option<usize> {
        let start = self.line_start(self.line_at(offset));
        self.slice(start..offset).bytes().all(|byte| byte == b' ').then_some(offset - start)
    }

    /// How far a line is indented, if it is a comment.
    pub(super) fn comment_indent(&self, line: usize) -> Option<usize> {
        let text = self.line(line);
        let comment = text.trim_start();
        (line < self.line_count() && comment.starts_with('#')).then(|| text.len() - comment.len())
    }

    /// `line`, or the last of the comment lines that follow it directly and are indented deeper than `column`.
    pub(super) fn extend_over_comments(&self, mut line: usize, column: usize) -> usize {
        while self.comment_indent(line + 1).is_some_and(|indent| indent > column) {
            line += 1;
        }
        line
    }

    /// How lines end here.
    pub(super) fn line_ending(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }

    /// Takes whole lines out. A text without a final newline stays without one.
    pub(super) fn remove_lines(&self, lines: Range<usize>) -> Splice {
        let (mut start, end) = (self.line_start(lines.start), self.line_start(lines.end));
        if end == self.text.len() && !self.text.ends_with('\n') {
            start = self.line_start(lines.start.saturating_sub(1)) + self.line(lines.start.saturating_sub(1)).len();
        }
        Splice::remove(start..end)
    }

    /// Puts whole lines in after `line`. A text without a final newline stays without one.
    pub(super) fn insert_after(&self, line: usize, lines: &[String]) -> Splice {
        let (at, ending) = (self.line_start(line + 1), self.line_ending());
        if at == self.text.len() && !self.text.ends_with('\n') {
            return Splice::insert(at, lines.iter().fold(String::new(), |text, line| text + ending + line));
        }
        Splice::insert(at, lines.iter().fold(String::new(), |text, line| text + line + ending))
    }
}
