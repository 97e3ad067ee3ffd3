//! Positions in the text of an adapters file: lines, columns, and the two lists.

use crate::yaml::tree::{Node, NodeKind};
use std::ops::Range;

pub(super) const ROOT_KEY: &str = "vLLMLoRAConfig";
/// Key of the items in either list.
pub(super) const MODELS_KEY: &str = "models";

/// One of the two lists of an adapters file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ListName {
    Exist,
    NotExist,
}

impl ListName {
    /// Returns the key of the list in the file.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Exist => "ensureExist",
            Self::NotExist => "ensureNotExist",
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Self::Exist => 0,
            Self::NotExist => 1,
        }
    }

    pub(super) fn other(self) -> Self {
        match self {
            Self::Exist => Self::NotExist,
            Self::NotExist => Self::Exist,
        }
    }
}

/// Returns the items of a list; empty if it is absent, blank, or an alias.
pub(super) fn list_items(config: &Node, list: ListName) -> &[Node] {
    match config.get(list.key()).and_then(|section| section.get(MODELS_KEY)).map(|models| &models.kind) {
        Some(NodeKind::Sequence { items, .. }) => items,
        _ => &[],
    }
}

/// Returns whether a value is empty: null, `[]` or `{}`.
pub(super) fn is_empty_value(value: &Node) -> bool {
    match &value.kind {
        NodeKind::Scalar { .. } => value.is_null(),
        NodeKind::Sequence { items, .. } => items.is_empty(),
        NodeKind::Mapping { entries, .. } => entries.is_empty(),
        NodeKind::Alias(_) => false,
    }
}

/// Replacement of a byte range of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Splice {
    pub(super) range: Range<usize>,
    pub(super) replacement: String,
}

impl Splice {
    pub(super) fn remove(range: Range<usize>) -> Self {
        Self { range, replacement: String::new() }
    }

    pub(super) fn insert(at: usize, text: impl Into<String>) -> Self {
        Self { range: at..at, replacement: text.into() }
    }
}

/// A text and the offsets of its lines. Lines count from 0 here.
#[derive(Debug)]
pub(super) struct SourceText<'t> {
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> SourceText<'t> {
    /// Indexes the lines of `text`.
    pub(super) fn new(text: &'t str) -> Self {
        let mut line_starts = vec![0];
        line_starts.extend(text.match_indices('\n').map(|(at, _)| at + 1).filter(|at| *at < text.len()));
        Self { text, line_starts }
    }

    /// Applies all splices, which must not overlap, and returns the new text.
    pub(super) fn apply(&self, mut splices: Vec<Splice>) -> String {
        splices.sort_by_key(|splice| (splice.range.start, splice.range.end));
        let (mut edited, mut at) = (String::with_capacity(self.text.len() + 128), 0);
        for Splice { range, replacement } in splices {
            edited.push_str(self.slice(at..range.start));
            edited.push_str(&replacement);
            at = at.max(range.end);
        }
        edited.push_str(self.slice(at..self.text.len()));
        edited
    }

    /// Returns the text of `range`; empty if the range is not inside the text.
    pub(super) fn slice(&self, range: Range<usize>) -> &'t str {
        self.text.get(range).unwrap_or_default()
    }

    pub(super) fn line_count(&self) -> usize {
        self.line_starts.len()
    }

    /// Returns the line that contains the byte `offset`.
    pub(super) fn line_at(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset).saturating_sub(1)
    }

    /// Returns the last line of the node that ends at `end`, which may be after the end of that line.
    pub(super) fn last_line(&self, end: usize) -> usize {
        self.line_at(self.slice(0..end).trim_end().len().saturating_sub(1))
    }

    /// Returns the offset of a line's start, or the length of the text if there is no such line.
    pub(super) fn line_start(&self, line: usize) -> usize {
        self.line_starts.get(line).copied().unwrap_or(self.text.len())
    }

    /// Returns a line without its line ending.
    pub(super) fn line(&self, line: usize) -> &'t str {
        self.slice(self.line_start(line)..self.line_start(line + 1)).trim_end_matches(['\n', '\r'])
    }

    /// Returns the column of `offset` if only spaces precede it on its line.
    pub(super) fn indent_at(&self, offset: usize) -> Option<usize> {
        let start = self.line_start(self.line_at(offset));
        self.slice(start..offset).bytes().all(|byte| byte == b' ').then_some(offset - start)
    }

    /// Returns the indentation of a line that is a comment; `None` for other lines.
    pub(super) fn comment_indent(&self, line: usize) -> Option<usize> {
        let text = self.line(line);
        let comment = text.trim_start();
        (line < self.line_count() && comment.starts_with('#')).then(|| text.len() - comment.len())
    }

    /// Returns the last of the comment lines that directly follow `line` and are indented deeper than `column`, or
    /// `line` itself if there are none.
    pub(super) fn extend_over_comments(&self, mut line: usize, column: usize) -> usize {
        while self.comment_indent(line + 1).is_some_and(|indent| indent > column) {
            line += 1;
        }
        line
    }

    /// Returns the line ending that the text uses.
    pub(super) fn line_ending(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }

    /// Removes whole lines. A text without a final newline stays without one.
    pub(super) fn remove_lines(&self, lines: Range<usize>) -> Splice {
        let (mut start, end) = (self.line_start(lines.start), self.line_start(lines.end));
        if end == self.text.len() && !self.text.ends_with('\n') {
            start = self.line_start(lines.start.saturating_sub(1)) + self.line(lines.start.saturating_sub(1)).len();
        }
        Splice::remove(start..end)
    }

    /// Inserts whole lines after `line`. A text without a final newline stays without one.
    pub(super) fn insert_after(&self, line: usize, lines: &[String]) -> Splice {
        let (at, ending) = (self.line_start(line + 1), self.line_ending());
        if at == self.text.len() && !self.text.ends_with('\n') {
            return Splice::insert(at, lines.iter().fold(String::new(), |text, line| text + ending + line));
        }
        Splice::insert(at, lines.iter().fold(String::new(), |text, line| text + line + ending))
    }
}
