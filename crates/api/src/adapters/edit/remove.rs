//! Removal of an entry from its list.

use super::{
    EditError,
    source_text::{self, ListName, MODELS_KEY, SourceText, Splice},
};
use crate::{
    names::AdapterId,
    yaml::{
        self,
        tree::{Node, NodeKind},
    },
};

/// The text of an entry that is moved or added.
#[derive(Debug)]
pub(super) struct EntryText {
    form: EntryForm,
    /// Line of the entry in the file, from 1.
    line: usize,
}

#[derive(Debug)]
enum EntryForm {
    /// Lines of a block list, and their form in a flow list; `flow` is `None` if comments would be lost.
    Block { lines: Vec<String>, column: usize, flow: Option<String> },
    /// An item of a flow list, with the comment after it.
    Flow { item: String, comment: Option<String> },
}

impl EntryText {
    /// Creates the text of a new entry.
    pub(super) fn new(id: &AdapterId, source: &str) -> Self {
        let (id, source) = (quote_scalar(id.as_str()), quote_scalar(source));
        let lines = vec![format!("- id: {id}"), format!("  source: {source}")];
        let flow = Some(format!("{{id: {id}, source: {source}}}"));
        Self { form: EntryForm::Block { lines, column: 0, flow }, line: 1 }
    }

    /// Returns the entry as lines of a block list whose dashes are in `column`.
    pub(super) fn block_lines(&self, column: usize) -> Vec<String> {
        match &self.form {
            EntryForm::Block { lines, column: was, .. } => {
                lines.iter().map(|line| reindent(line, *was, column)).collect()
            }
            EntryForm::Flow { item, comment } => {
                let comment = comment.as_ref().map(|comment| format!(" {comment}")).unwrap_or_default();
                let item = format!("{:column$}- {item}{comment}", "");
                item.lines().map(str::to_owned).collect()
            }
        }
    }

    /// Returns the entry as an item of a flow list, and the comment that follows it.
    pub(super) fn flow_item(&self) -> Result<(&str, Option<&str>), EditError> {
        match &self.form {
            EntryForm::Block { flow, .. } => match flow {
                Some(flow) => Ok((flow, None)),
                None => Err(self.comments_lost()),
            },
            EntryForm::Flow { item, comment } => Ok((item, comment.as_deref())),
        }
    }

    /// Creates the error for comments that do not fit into a flow list.
    pub(super) fn comments_lost(&self) -> EditError {
        EditError::CommentsLost { line: self.line }
    }
}

/// Removes item `index` of `list`. Returns its text and the splices that remove it.
pub(super) fn remove_entry(
    source: &SourceText<'_>,
    config: &Node,
    list: ListName,
    index: usize,
) -> Result<(EntryText, Vec<Splice>), EditError> {
    let refused = EditError::UnsupportedForm { line: config.line, what: list.key() };
    let Some((key, models)) = config.get(list.key()).and_then(|section| section.entry(MODELS_KEY)) else {
        return Err(refused);
    };
    let NodeKind::Sequence { flow, items } = &models.kind else { return Err(refused) };
    let Some(item) = items.get(index) else { return Err(refused) };
    if *flow {
        return remove_flow_item(source, items, index);
    }
    let (moved, splice) =
        remove_block_item(source, item).ok_or(EditError::UnsupportedForm { line: item.line, what: "this entry" })?;
    let mut splices = vec![splice];
    if items.len() == 1 {
        let colon = after_colon(source, key).ok_or(refused)?;
        splices.push(Splice::insert(colon, " []"));
    }
    Ok((moved, splices))
}

/// Returns the offset right after the colon of `key`, where its value may begin.
pub(super) fn after_colon(source: &SourceText<'_>, key: &Node) -> Option<usize> {
    let rest = source.slice(key.span.end..source.line_start(source.line_count()));
    let colon = rest.trim_start_matches(' ');
    colon.starts_with(':').then(|| key.span.end + rest.len() - colon.len() + 1)
}

fn remove_block_item(source: &SourceText<'_>, item: &Node) -> Option<(EntryText, Splice)> {
    let (dash, column) = dash_position(source, item)?;
    let last = source.extend_over_comments(source.last_line(item.span.end), column);
    let first = dash - comments_above(source, dash, column);
    let lines = (first..=last).map(|line| source.line(line).to_owned()).collect();
    let commented = first < dash || has_comment(source, item, dash, last);
    let flow = if commented { None } else { flow_text(source, item) };
    let form = EntryForm::Block { lines, column, flow };
    Some((EntryText { form, line: item.line }, source.remove_lines(first..last + 1)))
}

/// Returns the line and the column of an item's dash.
pub(super) fn dash_position(source: &SourceText<'_>, item: &Node) -> Option<(usize, usize)> {
    let own = source.line_at(item.span.start);
    for line in (0..=own).rev() {
        let text = source.line(line);
        let trimmed = text.trim_start_matches(' ');
        let column = text.len() - trimmed.len();
        if source.line_start(line) + column < item.span.start && (trimmed == "-" || trimmed.starts_with("- ")) {
            return Some((line, column));
        }
        // Only comments and blank lines may separate a dash from its item.
        if line != own && !trimmed.is_empty() && !trimmed.starts_with('#') {
            return None;
        }
    }
    None
}

/// Counts the comment lines directly above `line` that are part of the entry whose dash is in `column`.
fn comments_above(source: &SourceText<'_>, line: usize, column: usize) -> usize {
    let above: Vec<usize> = (0..line).rev().take_while(|line| source.comment_indent(*line) == Some(column)).collect();
    let commented_out = |line: &usize| {
        let text = source.line(*line).trim_start_matches([' ', '#']);
        text == "-" || text.starts_with("- ")
    };
    if above.iter().any(commented_out) { 0 } else { above.len() }
}

/// Returns whether the lines `first` to `last` of an item contain a comment: a `#` outside of its scalars.
fn has_comment(source: &SourceText<'_>, item: &Node, first: usize, last: usize) -> bool {
    let (mut at, end) = (source.line_start(first), source.line_start(last + 1));
    let mut found = false;
    item.for_each_scalar(&mut |scalar| {
        found |= source.slice(at..scalar.span.start).contains('#');
        at = at.max(scalar.span.end);
    });
    found || source.slice(at..end).contains('#')
}

/// Converts a block item to an item of a flow list; `None` if it would need several lines.
fn flow_text(source: &SourceText<'_>, item: &Node) -> Option<String> {
    let NodeKind::Mapping { flow, entries } = &item.kind else { return None };
    let text = if *flow {
        source.slice(item.span.clone()).to_owned()
    } else {
        let field = |(key, value): &(Node, Node)| {
            format!("{}: {}", source.slice(key.span.clone()), source.slice(value.span.clone()))
        };
        format!("{{{}}}", entries.iter().map(field).collect::<Vec<_>>().join(", "))
    };
    (!text.contains('\n')).then_some(text)
}

/// Lines of a flow-list item that shares them with no other item.
#[derive(Debug)]
pub(super) struct ItemLines<'t> {
    pub(super) first: usize,
    pub(super) last: usize,
    /// Whether a comma follows the item.
    pub(super) comma: bool,
    /// Comment after the item, with its `#`.
    pub(super) comment: Option<&'t str>,
}

/// Returns the lines of a flow-list item, or `None` if it shares them with other text.
pub(super) fn item_lines<'t>(source: &SourceText<'t>, item: &Node) -> Option<ItemLines<'t>> {
    source.indent_at(item.span.start)?;
    let last = source.line_at(item.span.end.saturating_sub(1));
    let behind = source.slice(item.span.end..source.line_start(last) + source.line(last).len()).trim_start();
    let (comma, behind) = match behind.strip_prefix(',') {
        Some(behind) => (true, behind.trim_start()),
        None => (false, behind),
    };
    let comment = (!behind.is_empty()).then_some(behind);
    let fits = comment.is_none_or(|comment| comment.starts_with('#'));
    fits.then(|| ItemLines { first: source.line_at(item.span.start), last, comma, comment })
}

fn remove_flow_item(
    source: &SourceText<'_>,
    items: &[Node],
    index: usize,
) -> Result<(EntryText, Vec<Splice>), EditError> {
    let item = &items[index];
    let text = source.slice(item.span.clone()).to_owned();
    if let Some(own) = item_lines(source, item) {
        let form = EntryForm::Flow { item: text, comment: own.comment.map(str::to_owned) };
        return Ok((EntryText { form, line: item.line }, vec![source.remove_lines(own.first..own.last + 1)]));
    }
    let previous = index.checked_sub(1).and_then(|index| items.get(index));
    let (range, between) = match (items.get(index + 1), previous) {
        (Some(next), _) => (item.span.start..next.span.start, item.span.end..next.span.start),
        (None, Some(previous)) => (previous.span.end..item.span.end, previous.span.end..item.span.start),
        (None, None) => {
            let rest = source.slice(item.span.end..source.line_start(source.line_count()));
            let comma = rest.trim_start();
            let behind = if comma.starts_with(',') { rest.len() - comma.len() + 1 } else { 0 };
            (item.span.start..item.span.end + behind, item.span.end..item.span.end + behind)
        }
    };
    if source.slice(between).contains('#') {
        return Err(EditError::UnsupportedForm { line: item.line, what: "this entry, with the comments around it," });
    }
    let form = EntryForm::Flow { item: text, comment: None };
    Ok((EntryText { form, line: item.line }, vec![Splice::remove(range)]))
}

/// Reindents a line of an entry whose dash moves from column `from` to column `to`.
fn reindent(line: &str, from: usize, to: usize) -> String {
    if line.trim().is_empty() {
        return line.to_owned();
    }
    let indent = line.len() - line.trim_start_matches(' ').len();
    let kept = line.get(indent.min(from.saturating_sub(to))..).unwrap_or(line);
    format!("{:added$}{kept}", "", added = to.saturating_sub(from))
}

/// Formats a text as a scalar: plain if every YAML parser reads it as a string, else in double quotes.
fn quote_scalar(text: &str) -> String {
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./@+".contains(&byte))
        && !words.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { yaml::quoted(text) }
}

/// Returns the column of the dashes of a block list; `None` if the list is empty or no block list.
pub(super) fn dash_column(source: &SourceText<'_>, config: &Node, list: ListName) -> Option<usize> {
    let models = config.get(list.key())?.get(MODELS_KEY)?;
    let block = matches!(models.kind, NodeKind::Sequence { flow: false, .. });
    let first = source_text::list_items(config, list).first().filter(|_| block)?;
    dash_position(source, first).map(|(_, column)| column)
}
