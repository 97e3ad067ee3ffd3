//! Taking an entry out of its list.

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

/// An entry on its way, as text.
#[derive(Debug)]
pub(super) struct EntryText {
    form: EntryForm,
    /// Its line in the file, from 1.
    line: usize,
}

#[derive(Debug)]
enum EntryForm {
    /// Lines of a block list, and what they would be in a flow list; none where comments would be lost.
    Block { lines: Vec<String>, column: usize, flow: Option<String> },
    /// An item of a flow list, with the comment behind it.
    Flow { item: String, comment: Option<String> },
}

impl EntryText {
    /// A new entry.
    pub(super) fn new(id: &AdapterId, source: &str) -> Self {
        let (id, source) = (quote_scalar(id.as_str()), quote_scalar(source));
        let lines = vec![format!("- id: {id}"), format!("  source: {source}")];
        let flow = Some(format!("{{id: {id}, source: {source}}}"));
        Self { form: EntryForm::Block { lines, column: 0, flow }, line: 1 }
    }

    /// The entry as lines of a block list whose dashes stand in `column`.
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

    /// The entry as an item of a flow list, and the comment that goes behind it.
    pub(super) fn flow_item(&self) -> Result<(&str, Option<&str>), EditError> {
        match &self.form {
            EntryForm::Block { flow, .. } => match flow {
                Some(flow) => Ok((flow, None)),
                None => Err(self.comments_lost()),
            },
            EntryForm::Flow { item, comment } => Ok((item, comment.as_deref())),
        }
    }

    /// Says that comments have no place there.
    pub(super) fn comments_lost(&self) -> EditError {
        EditError::CommentsLost { line: self.line }
    }
}

/// Takes item `index` of `list` out: the entry, and what that does to the text.
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

/// Where the value of `key` may begin: right after its colon.
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

/// The line and the column of the dash of an item.
pub(super) fn dash_position(source: &SourceText<'_>, item: &Node) -> Option<(usize, usize)> {
    let own = source.line_at(item.span.start);
    for line in (0..=own).rev() {
        let text = source.line(line);
        let trimmed = text.trim_start_matches(' ');
        let column = text.len() - trimmed.len();
        if source.line_start(line) + column < item.span.start && (trimmed == "-" || trimmed.starts_with("- ")) {
            return Some((line, column));
        }
        // Between a dash and its item there may be only comments and blank lines.
        if line != own && !trimmed.is_empty() && !trimmed.starts_with('#') {
            return None;
        }
    }
    None
}

/// How many comment lines directly above `line` belong to the entry whose dash stands in `column`.
fn comments_above(source: &SourceText<'_>, line: usize, column: usize) -> usize {
    let above: Vec<usize> = (0..line).rev().take_while(|line| source.comment_indent(*line) == Some(column)).collect();
    let commented_out = |line: &usize| {
        let text = source.line(*line).trim_start_matches([' ', '#']);
        text == "-" || text.starts_with("- ")
    };
    if above.iter().any(commented_out) { 0 } else { above.len() }
}

/// Whether a comment stands on the lines `first` to `last` of an item: a `#` outside of its scalars.
fn has_comment(source: &SourceText<'_>, item: &Node, first: usize, last: usize) -> bool {
    let (mut at, end) = (source.line_start(first), source.line_start(last + 1));
    let mut found = false;
    item.for_each_scalar(&mut |scalar| {
        found |= source.slice(at..scalar.span.start).contains('#');
        at = at.max(scalar.span.end);
    });
    found || source.slice(at..end).contains('#')
}

/// A block item as an item of a flow list.
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

/// How an item of a flow list stands on lines of its own.
#[derive(Debug)]
pub(super) struct ItemLines<'t> {
    /// Its first line.
    pub(super) first: usize,
    /// Its last line.
    pub(super) last: usize,
    /// Whether a comma follows.
    pub(super) comma: bool,
    /// The comment behind it.
    pub(super) comment: Option<&'t str>,
}

/// Finds out whether an item of a flow list has its lines for itself.
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

/// A line of an entry whose dash moves from one column to another.
fn reindent(line: &str, from: usize, to: usize) -> String {
    if line.trim().is_empty() {
        return line.to_owned();
    }
    let indent = line.len() - line.trim_start_matches(' ').len();
    let kept = line.get(indent.min(from.saturating_sub(to))..).unwrap_or(line);
    format!("{:added$}{kept}", "", added = to.saturating_sub(from))
}

/// A text as a scalar: bare where every reader of YAML takes it for a text, in double quotes otherwise.
fn quote_scalar(text: &str) -> String {
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let plain = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./@+".contains(&byte))
        && !words.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { yaml::quoted(text) }
}

/// The column of the dashes of a block list; none where it has none.
pub(super) fn dash_column(source: &SourceText<'_>, config: &Node, list: ListName) -> Option<usize> {
    let models = config.get(list.key())?.get(MODELS_KEY)?;
    let block = matches!(models.kind, NodeKind::Sequence { flow: false, .. });
    let first = source_text::list_items(config, list).first().filter(|_| block)?;
    dash_position(source, first).map(|(_, column)| column)
}
