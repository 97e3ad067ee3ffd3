//! Edits of the adapters file: move or add one entry and keep every other byte.
//!
//! The byte range of an entry comes from the parsed nodes ([`crate::yaml::tree`]) and is moved as text, so nothing is
//! serialized again. The result is then parsed and compared with the intended content, node by node. If it differs, the
//! edit returns an error instead of a text. A few shapes are rejected on purpose: an entry with an anchor that other
//! entries may refer to, and comments that would have to move into a list written on one line.
//!
//! An entry consists of:
//! - in a block list, its lines from the dash to its last value, with the comments in and after them;
//! - comment lines below it that are indented deeper than its dash;
//! - comment lines directly above it, without a blank line between, that have the indentation of its dash. If one of
//!   them is an entry that is commented out (`# - id: …`), none of them is part of this entry;
//! - in a flow list, the item with its comma, and the comment after it if the item has its own lines.
//!
//! All other text stays where it is. A list that becomes empty is written as `[]`: an absent value would be null, which
//! lora-syncer rejects.

mod insert;
mod remove;
mod source_text;

use super::{AdapterEntry, AdaptersFile, AdaptersFileError, InBothLists, ParsedAdaptersFile};
use crate::{
    names::AdapterId,
    yaml::{
        self,
        tree::{Node, NodeKind},
    },
};
use remove::EntryText;
use source_text::{ListName, SourceText};

/// Why an edit of an adapters file failed. The file is left unchanged then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// The file cannot be parsed.
    #[error("{0}")]
    Unreadable(#[from] AdaptersFileError),
    /// The id is in neither list.
    #[error("`{id}` is not listed, so there is no entry to move")]
    NotListed {
        /// Id of the missing entry.
        id: AdapterId,
    },
    /// The id is in both lists.
    #[error("{0}")]
    InBothLists(InBothLists),
    /// The id to add is already listed: under `ensureExist` with another source, or under `ensureNotExist`.
    #[error(
        "line {line}: `{id}` is already listed under {list}, from `{present_source}`: use a new id, or change that entry by hand"
    )]
    AlreadyListed {
        /// Id of the entry.
        id: AdapterId,
        /// Key of the list: `ensureExist` or `ensureNotExist`.
        list: &'static str,
        /// Line of the entry, from 1.
        line: usize,
        /// Source of the listed entry.
        present_source: String,
    },
    /// The entry has a YAML anchor.
    #[error(
        "line {line}: the entry of `{id}` has an anchor (`&name`) that other entries may refer to: move it by hand"
    )]
    Anchor {
        /// Id of the entry.
        id: AdapterId,
        /// Line of the entry, from 1.
        line: usize,
    },
    /// The file is valid YAML, but uses a form that the edit does not support.
    #[error("line {line}: {what} cannot be edited in the form in which it is written: move the entry by hand")]
    UnsupportedForm {
        /// Line of the unsupported part, from 1.
        line: usize,
        /// Name of the unsupported part.
        what: &'static str,
    },
    /// The entry has comments, which cannot move into a list written on one line.
    #[error("line {line}: the entry's comments do not fit into a list written on one line: move the entry by hand")]
    CommentsLost {
        /// Line of the entry, from 1.
        line: usize,
    },
    /// The user's text is not a literal block of its ConfigMap.
    #[error(
        "line {line}: `{key}` cannot be edited in the form in which it is written: write it as a block (`{key}: |`)"
    )]
    NotABlock {
        /// Key in the ConfigMap's data.
        key: String,
        /// Line of the key, from 1.
        line: usize,
    },
    /// The edited text does not parse to the intended content.
    #[error("{what} cannot be edited safely, because the result would be read differently: move the entry by hand")]
    RoundTripMismatch {
        /// Name of the part that differs.
        what: String,
    },
}

impl EditError {
    /// Maps the line numbers of the error, for a text that is part of a larger file.
    pub(super) fn map_lines(mut self, map: impl Fn(usize) -> usize) -> Self {
        match &mut self {
            Self::AlreadyListed { line, .. }
            | Self::Anchor { line, .. }
            | Self::UnsupportedForm { line, .. }
            | Self::CommentsLost { line } => {
                *line = map(*line);
            }
            Self::Unreadable(error) => *error = error.clone().map_lines(map),
            Self::InBothLists(both) => *both = both.clone().map_lines(map),
            // The line of the key already counts from the start of the whole file.
            Self::NotABlock { .. } | Self::NotListed { .. } | Self::RoundTripMismatch { .. } => {}
        }
        self
    }
}

/// Moves the entry of `id` from `ensureExist` to the end of `ensureNotExist`, which is created if it is missing.
/// Returns the text unchanged if the entry is already there and only there.
pub fn unlist(text: &str, id: &AdapterId) -> Result<String, EditError> {
    move_entry(text, id, ListName::Exist, ListName::NotExist)
}

/// Moves the entry of `id` from `ensureNotExist` back to the end of `ensureExist`.
/// Returns the text unchanged if the entry is already there and only there.
pub fn relist(text: &str, id: &AdapterId) -> Result<String, EditError> {
    move_entry(text, id, ListName::NotExist, ListName::Exist)
}

/// Adds an entry for `id` with `source` at the end of `ensureExist`.
/// Returns the text unchanged if that entry already exists.
pub fn add_entry(text: &str, id: &AdapterId, source: &str) -> Result<String, EditError> {
    let (bom, text) = split_bom(text);
    let document = Document::read(text)?;
    for name in [ListName::NotExist, ListName::Exist] {
        let Some((_, node, entry)) = document.entry(name, id)? else { continue };
        if name == ListName::Exist && entry.source == source {
            return Ok(format!("{bom}{text}"));
        }
        let (list, present_source) = (name.key(), entry.source.clone());
        return Err(EditError::AlreadyListed { id: id.clone(), list, line: node.line, present_source });
    }
    let added = AdapterEntry { id: id.clone(), source: source.to_owned(), base_model: None, required: false };
    let mut intended = document.parsed.file.clone();
    intended.ensure_exist.push(added);
    let splices =
        insert::insert_entry(&document.source, document.config()?, ListName::Exist, &EntryText::new(id, source))?;
    let edited = document.source.apply(splices);
    let (mut exist, not_exist, rest) =
        (document.items(ListName::Exist)?, document.items(ListName::NotExist)?, document.without_entries());
    let after = Document::reparse(&edited, id)?;
    // The new entry has no node to compare with; the comparison of the parsed files covers it.
    if let Some(last) = after.items(ListName::Exist)?.pop() {
        exist.push(last);
    }
    after.verify(&intended, &exist, &not_exist, &rest, id)?;
    Ok(format!("{bom}{edited}"))
}

fn move_entry(text: &str, id: &AdapterId, from: ListName, to: ListName) -> Result<String, EditError> {
    let (bom, text) = split_bom(text);
    let document = Document::read(text)?;
    if let Some(both) = document.parsed.in_both_lists.iter().find(|both| both.id == *id) {
        return Err(EditError::InBothLists(both.clone()));
    }
    let Some((index, node, entry)) = document.entry(from, id)? else {
        return match document.entry(to, id)? {
            Some(_) => Ok(format!("{bom}{text}")),
            None => Err(EditError::NotListed { id: id.clone() }),
        };
    };
    if node.has_anchor() {
        return Err(EditError::Anchor { id: id.clone(), line: node.line });
    }
    let mut intended = document.parsed.file.clone();
    intended.entries_mut(from).remove(index);
    intended.entries_mut(to).push(entry.clone());

    let (moved, mut splices) = remove::remove_entry(&document.source, document.config()?, from, index)?;
    splices.extend(insert::insert_entry(&document.source, document.config()?, to, &moved)?);
    let edited = document.source.apply(splices);

    let mut lists = [document.items(ListName::Exist)?, document.items(ListName::NotExist)?];
    let node = lists[from.index()].remove(index);
    lists[to.index()].push(node);
    let [exist, not_exist] = lists;
    Document::reparse(&edited, id)?.verify(&intended, &exist, &not_exist, &document.without_entries(), id)?;
    Ok(format!("{bom}{edited}"))
}

fn split_bom(text: &str) -> (&str, &str) {
    let rest = yaml::without_bom(text);
    (text.strip_suffix(rest).unwrap_or_default(), rest)
}

impl AdaptersFile {
    fn entries_mut(&mut self, list: ListName) -> &mut Vec<AdapterEntry> {
        match list {
            ListName::Exist => &mut self.ensure_exist,
            ListName::NotExist => &mut self.ensure_not_exist,
        }
    }
}

/// A file parsed twice: into typed content, and into nodes with byte ranges.
struct Document<'t> {
    source: SourceText<'t>,
    parsed: ParsedAdaptersFile,
    root: Node,
}

impl<'t> Document<'t> {
    fn read(text: &'t str) -> Result<Self, EditError> {
        let parsed = AdaptersFile::parse(text)?;
        let root = Node::parse(text).ok().flatten().ok_or(EditError::UnsupportedForm { line: 1, what: "the file" })?;
        Ok(Self { source: SourceText::new(text), parsed, root })
    }

    fn reparse(text: &'t str, id: &AdapterId) -> Result<Self, EditError> {
        Self::read(text).map_err(|_| round_trip_mismatch(id))
    }

    fn config(&self) -> Result<&Node, EditError> {
        let config =
            self.root.get(source_text::ROOT_KEY).filter(|config| matches!(config.kind, NodeKind::Mapping { .. }));
        config.ok_or(EditError::UnsupportedForm { line: 1, what: source_text::ROOT_KEY })
    }

    fn items(&self, list: ListName) -> Result<Vec<&Node>, EditError> {
        Ok(source_text::list_items(self.config()?, list).iter().collect())
    }

    /// Finds the entry of `id`: its index, its node, and its content.
    fn entry(&self, list: ListName, id: &AdapterId) -> Result<Option<(usize, &Node, &AdapterEntry)>, EditError> {
        let entries = match list {
            ListName::Exist => &self.parsed.file.ensure_exist,
            ListName::NotExist => &self.parsed.file.ensure_not_exist,
        };
        let Some(index) = entries.iter().position(|entry| entry.id == *id) else { return Ok(None) };
        let items = source_text::list_items(self.config()?, list);
        // Items that come from an alias (`models: *others`) have no byte range of their own.
        match items
            .get(index)
            .filter(|item| items.len() == entries.len() && matches!(item.kind, NodeKind::Mapping { .. }))
        {
            Some(node) => Ok(Some((index, node, &entries[index]))),
            None => Err(EditError::UnsupportedForm { line: self.root.line, what: list.key() }),
        }
    }

    /// Returns the root without the entries of the two lists. Lists without other content are removed, because they are
    /// equivalent to absent ones.
    fn without_entries(&self) -> Node {
        let mut root = self.root.clone();
        if let Some(NodeKind::Mapping { entries, .. }) =
            root.get_mut(source_text::ROOT_KEY).map(|config| &mut config.kind)
        {
            for list in [ListName::Exist, ListName::NotExist] {
                let section = entries.iter_mut().find(|(key, _)| key.text() == Some(list.key()));
                if let Some(NodeKind::Mapping { entries, .. }) = section.map(|(_, section)| &mut section.kind) {
                    entries.retain(|(key, _)| key.text() != Some(source_text::MODELS_KEY));
                }
            }
            let list_key =
                |key: &Node| key.text() == Some(ListName::Exist.key()) || key.text() == Some(ListName::NotExist.key());
            entries.retain(|(key, section)| !(list_key(key) && source_text::is_empty_value(section)));
        }
        root
    }

    /// Fails if the text has any other content than the intended one.
    fn verify(
        &self,
        file: &AdaptersFile,
        exist: &[&Node],
        not_exist: &[&Node],
        rest: &Node,
        id: &AdapterId,
    ) -> Result<(), EditError> {
        let same = |items: Vec<&Node>, intended: &[&Node]| {
            items.len() == intended.len() && items.iter().zip(intended).all(|(a, b)| a.is_equivalent(b))
        };
        let as_intended = self.parsed.file == *file
            && same(self.items(ListName::Exist)?, exist)
            && same(self.items(ListName::NotExist)?, not_exist)
            && self.without_entries().is_equivalent(rest);
        if as_intended { Ok(()) } else { Err(round_trip_mismatch(id)) }
    }
}

fn round_trip_mismatch(id: &AdapterId) -> EditError {
    EditError::RoundTripMismatch { what: format!("the entry of `{id}`") }
}

#[cfg(test)]
mod tests;
