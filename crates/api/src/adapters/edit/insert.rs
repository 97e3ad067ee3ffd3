//! Insertion of an entry at the end of a list, which may be missing, blank, a block list or a flow list.

use super::{
    EditError,
    remove::{self, EntryText},
    source_text::{self, ListName, MODELS_KEY, SourceText, Splice},
};
use crate::yaml::tree::{Node, NodeKind};

/// Returns the splices that insert `moved` at the end of `list`.
pub(super) fn insert_entry(
    source: &SourceText<'_>,
    config: &Node,
    list: ListName,
    moved: &EntryText,
) -> Result<Vec<Splice>, EditError> {
    let insertion = Insertion { source, indentation: Indentation::detect(source, config, list), entry: moved };
    let refused = |node: &Node| EditError::UnsupportedForm { line: node.line, what: list.key() };
    match config.entry(list.key()) {
        None => insertion.add_missing_key(config, &[list.key(), MODELS_KEY], config.entry(list.other().key())),
        Some((key, section)) if source_text::is_empty_value(section) => {
            insertion.fill_key(config, key, section, &[MODELS_KEY])
        }
        Some((_, section)) => match section.entry(MODELS_KEY) {
            None if matches!(section.kind, NodeKind::Mapping { .. }) => {
                insertion.add_missing_key(section, &[MODELS_KEY], None)
            }
            Some((key, models)) if source_text::is_empty_value(models) => insertion.fill_key(section, key, models, &[]),
            Some((_, models)) => insertion.append_entry(models).ok_or_else(|| refused(models))?,
            None => Err(refused(section)),
        },
    }
}

/// Indentation steps of a file, in columns.
struct Indentation {
    /// Indentation of a key relative to its parent key.
    key: usize,
    /// Indentation of a dash relative to `models`.
    dash: usize,
}

impl Indentation {
    /// Takes the steps from `list`, else from the other list, else uses those of the upstream guide.
    fn detect(source: &SourceText<'_>, config: &Node, list: ListName) -> Self {
        let of = |list: ListName| {
            let (section, value) = config.entry(list.key())?;
            let (models, _) = value.entry(MODELS_KEY)?;
            let section = source.indent_at(section.span.start)?;
            let models = source.indent_at(models.span.start)?;
            let dash = remove::dash_column(source, config, list)?;
            Some(Self { key: models.checked_sub(section)?, dash: dash.checked_sub(models)? })
        };
        of(list).or_else(|| of(list.other())).unwrap_or(Self { key: 2, dash: 0 })
    }
}

struct Insertion<'a> {
    source: &'a SourceText<'a>,
    indentation: Indentation,
    entry: &'a EntryText,
}

impl Insertion<'_> {
    /// Adds a missing key with its content after the entry `after`, or at the end of the mapping.
    fn add_missing_key(
        &self,
        mapping: &Node,
        keys: &[&str],
        after: Option<&(Node, Node)>,
    ) -> Result<Vec<Splice>, EditError> {
        let NodeKind::Mapping { flow, entries } = &mapping.kind else {
            return Err(EditError::UnsupportedForm { line: mapping.line, what: "this part" });
        };
        let refused = EditError::UnsupportedForm { line: mapping.line, what: "this part" };
        let last = after.or(entries.last());
        if *flow {
            let quoted = last.is_some_and(|(key, _)| self.source.slice(key.span.clone()).starts_with('"'));
            let text = self.flow_text(keys, quoted)?;
            return Ok(vec![match last {
                Some((key, value)) => Splice::insert(value.span.end.max(key.span.end), format!(", {text}")),
                None => Splice::insert(mapping.span.start + 1, text),
            }]);
        }
        let (key, value) = last.ok_or(refused.clone())?;
        let column = self.source.indent_at(key.span.start).ok_or(refused)?;
        let end = self.source.last_line(value.span.end.max(key.span.end));
        let end = self.source.extend_over_comments(end, column);
        Ok(vec![self.source.insert_after(end, &self.block_lines(column, keys))])
    }

    /// Gives a value to a key that has none: nested `keys`, with the entry under the last of them.
    fn fill_key(&self, parent: &Node, key: &Node, value: &Node, keys: &[&str]) -> Result<Vec<Splice>, EditError> {
        let refused = EditError::UnsupportedForm { line: key.line, what: "this key" };
        let colon = remove::after_colon(self.source, key).ok_or(refused.clone())?;
        let written = colon..value.span.end.max(colon);
        if self.source.slice(written.clone()).contains('#') {
            return Err(refused);
        }
        if matches!(parent.kind, NodeKind::Mapping { flow: true, .. }) {
            let quoted = self.source.slice(key.span.clone()).starts_with('"');
            let text = self.flow_text(keys, quoted)?;
            let with = if keys.is_empty() { format!(" {text}") } else { format!(" {{{text}}}") };
            return Ok(vec![Splice { range: written, replacement: with }]);
        }
        let column = self.source.indent_at(key.span.start).ok_or(refused)?;
        let lines = if keys.is_empty() {
            self.entry.block_lines(column + self.indentation.dash)
        } else {
            self.block_lines(column + self.indentation.key, keys)
        };
        let mut splices = vec![self.source.insert_after(self.source.line_at(written.end.saturating_sub(1)), &lines)];
        if !written.is_empty() {
            splices.push(Splice::remove(written));
        }
        Ok(splices)
    }

    /// Adds the entry after the last one of a list.
    fn append_entry(&self, models: &Node) -> Option<Result<Vec<Splice>, EditError>> {
        let NodeKind::Sequence { flow, items } = &models.kind else { return None };
        let last = items.last()?;
        if *flow {
            return Some(self.append_flow_item(last));
        }
        let (_, column) = remove::dash_position(self.source, last)?;
        let line = self.source.extend_over_comments(self.source.last_line(last.span.end), column);
        Some(Ok(vec![self.source.insert_after(line, &self.entry.block_lines(column))]))
    }

    fn append_flow_item(&self, last: &Node) -> Result<Vec<Splice>, EditError> {
        let (item, comment) = self.entry.flow_item()?;
        let Some(own) = remove::item_lines(self.source, last) else {
            return match comment {
                None => Ok(vec![Splice::insert(last.span.end, format!(", {item}"))]),
                Some(_) => Err(self.entry.comments_lost()),
            };
        };
        let column = self.source.indent_at(last.span.start).unwrap_or_default();
        let comma = if own.comma { "," } else { "" };
        let comment = comment.map(|comment| format!(" {comment}")).unwrap_or_default();
        let lines = format!("{:column$}{item}{comma}{comment}", "");
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        let mut splices = vec![self.source.insert_after(own.last, &lines)];
        if !own.comma {
            splices.push(Splice::insert(last.span.end, ","));
        }
        Ok(splices)
    }

    /// Returns the lines of nested `keys`, the first in `column`, with a list of the entry under the last.
    fn block_lines(&self, mut column: usize, keys: &[&str]) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            column += if index == 0 { 0 } else { self.indentation.key };
            lines.push(format!("{:column$}{key}:", ""));
        }
        lines.extend(self.entry.block_lines(column + self.indentation.dash));
        lines
    }

    /// Returns nested `keys` with a list of the entry on one line: `a: {b: [entry]}`.
    fn flow_text(&self, keys: &[&str], quoted: bool) -> Result<String, EditError> {
        let (item, comment) = self.entry.flow_item()?;
        if comment.is_some() {
            return Err(self.entry.comments_lost());
        }
        let quote = if quoted { "\"" } else { "" };
        let wrap = |text: String, (depth, key): (usize, &&str)| {
            let pair = format!("{quote}{key}{quote}: {text}");
            if depth == 0 { pair } else { format!("{{{pair}}}") }
        };
        Ok(keys.iter().enumerate().rev().fold(format!("[{item}]"), wrap))
    }
}
