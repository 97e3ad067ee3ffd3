//! Putting an entry at the end of a list, which may be missing, blank, a block or a flow list.

use super::{
    EditError,
    layout::{self, ListName, MODELS, Source, Splice},
    take::{self, Moved},
};
use crate::yaml::tree::{Kind, Node};

/// What putting `moved` at the end of `list` does to the text.
pub(super) fn put(source: &Source<'_>, config: &Node, list: ListName, moved: &Moved) -> Result<Vec<Splice>, EditError> {
    let place = Place { source, style: Style::of(source, config, list), moved };
    let refused = |node: &Node| EditError::Shape { line: node.line, what: list.key() };
    match config.entry(list.key()) {
        None => place.add_key(config, &[list.key(), MODELS], config.entry(list.other().key())),
        Some((key, section)) if layout::is_blank(section) => place.fill(config, key, section, &[MODELS]),
        Some((_, section)) => match section.entry(MODELS) {
            None if matches!(section.kind, Kind::Mapping { .. }) => place.add_key(section, &[MODELS], None),
            Some((key, models)) if layout::is_blank(models) => place.fill(section, key, models, &[]),
            Some((_, models)) => place.append(models).ok_or_else(|| refused(models))?,
            None => Err(refused(section)),
        },
    }
}

/// How far things are indented in this file.
struct Style {
    /// A key against the key that it is under.
    key: usize,
    /// A dash against `models`.
    dash: usize,
}

impl Style {
    /// As in `list`, or in the other one, or in the guide.
    fn of(source: &Source<'_>, config: &Node, list: ListName) -> Self {
        let of = |list: ListName| {
            let (section, value) = config.entry(list.key())?;
            let (models, _) = value.entry(MODELS)?;
            let section = source.indent_at(section.span.start)?;
            let models = source.indent_at(models.span.start)?;
            let dash = take::dash_column(source, config, list)?;
            Some(Self { key: models.checked_sub(section)?, dash: dash.checked_sub(models)? })
        };
        of(list).or_else(|| of(list.other())).unwrap_or(Self { key: 2, dash: 0 })
    }
}

struct Place<'a> {
    source: &'a Source<'a>,
    style: Style,
    moved: &'a Moved,
}

impl Place<'_> {
    /// Adds a key that is missing, with everything under it, after the entry `after` or else at the end.
    fn add_key(&self, mapping: &Node, keys: &[&str], after: Option<&(Node, Node)>) -> Result<Vec<Splice>, EditError> {
        let Kind::Mapping { flow, entries } = &mapping.kind else {
            return Err(EditError::Shape { line: mapping.line, what: "this part" });
        };
        let refused = EditError::Shape { line: mapping.line, what: "this part" };
        let last = after.or(entries.last());
        if *flow {
            let quoted = last.is_some_and(|(key, _)| self.source.slice(key.span.clone()).starts_with('"'));
            let text = self.flow(keys, quoted)?;
            return Ok(vec![match last {
                Some((key, value)) => Splice::insert(value.span.end.max(key.span.end), format!(", {text}")),
                None => Splice::insert(mapping.span.start + 1, text),
            }]);
        }
        let (key, value) = last.ok_or(refused.clone())?;
        let column = self.source.indent_at(key.span.start).ok_or(refused)?;
        let end = self.source.last_line(value.span.end.max(key.span.end));
        let end = self.source.with_comments_below(end, column);
        Ok(vec![self.source.insert_after(end, &self.block(column, keys))])
    }

    /// Gives a value to a key that has none: `keys` under each other, and the entry under the last of them.
    fn fill(&self, parent: &Node, key: &Node, value: &Node, keys: &[&str]) -> Result<Vec<Splice>, EditError> {
        let refused = EditError::Shape { line: key.line, what: "this key" };
        let colon = take::after_colon(self.source, key).ok_or(refused.clone())?;
        let written = colon..value.span.end.max(colon);
        if self.source.slice(written.clone()).contains('#') {
            return Err(refused);
        }
        if matches!(parent.kind, Kind::Mapping { flow: true, .. }) {
            let quoted = self.source.slice(key.span.clone()).starts_with('"');
            let text = self.flow(keys, quoted)?;
            let with = if keys.is_empty() { format!(" {text}") } else { format!(" {{{text}}}") };
            return Ok(vec![Splice { range: written, with }]);
        }
        let column = self.source.indent_at(key.span.start).ok_or(refused)?;
        let lines = if keys.is_empty() {
            self.moved.block(column + self.style.dash)
        } else {
            self.block(column + self.style.key, keys)
        };
        let mut splices = vec![self.source.insert_after(self.source.line_at(written.end.saturating_sub(1)), &lines)];
        if !written.is_empty() {
            splices.push(Splice::remove(written));
        }
        Ok(splices)
    }

    /// Adds the entry behind the last one of a list.
    fn append(&self, models: &Node) -> Option<Result<Vec<Splice>, EditError>> {
        let Kind::Sequence { flow, items } = &models.kind else { return None };
        let last = items.last()?;
        if *flow {
            return Some(self.append_flow(last));
        }
        let (_, column) = take::dash_of(self.source, last)?;
        let line = self.source.with_comments_below(self.source.last_line(last.span.end), column);
        Some(Ok(vec![self.source.insert_after(line, &self.moved.block(column))]))
    }

    fn append_flow(&self, last: &Node) -> Result<Vec<Splice>, EditError> {
        let (item, comment) = self.moved.flow()?;
        let Some(own) = take::own_lines(self.source, last) else {
            return match comment {
                None => Ok(vec![Splice::insert(last.span.end, format!(", {item}"))]),
                Some(_) => Err(self.moved.comment_lost()),
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

    /// `keys` under each other, the first in `column`, and a list with the entry under the last.
    fn block(&self, mut column: usize, keys: &[&str]) -> Vec<String> {
        let mut lines = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            column += if index == 0 { 0 } else { self.style.key };
            lines.push(format!("{:column$}{key}:", ""));
        }
        lines.extend(self.moved.block(column + self.style.dash));
        lines
    }

    /// The same in one line: `a: {b: [entry]}`.
    fn flow(&self, keys: &[&str], quoted: bool) -> Result<String, EditError> {
        let (item, comment) = self.moved.flow()?;
        if comment.is_some() {
            return Err(self.moved.comment_lost());
        }
        let quote = if quoted { "\"" } else { "" };
        let wrap = |text: String, (depth, key): (usize, &&str)| {
            let pair = format!("{quote}{key}{quote}: {text}");
            if depth == 0 { pair } else { format!("{{{pair}}}") }
        };
        Ok(keys.iter().enumerate().rev().fold(format!("[{item}]"), wrap))
    }
}
