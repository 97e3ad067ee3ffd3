//! YAML as a tree of nodes with byte ranges.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StructureStyle};
use std::ops::Range;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) kind: NodeKind,
    /// Byte range. A block collection ends with its last child, so that it does not include a comment after it.
    pub(crate) span: Range<usize>,
    /// Line of the node's start, from 1.
    pub(crate) line: usize,
    /// Whether the node has an anchor (`&name`).
    anchor: bool,
    /// Explicit tag of the node.
    tag: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum NodeKind {
    /// A scalar, which may be empty.
    Scalar {
        /// The text after unescaping.
        value: String,
        style: ScalarStyle,
    },
    Sequence {
        /// Whether the list is written as `[…]`.
        flow: bool,
        items: Vec<Node>,
    },
    Mapping {
        /// Whether the mapping is written as `{…}`.
        flow: bool,
        /// Keys and values in their order.
        entries: Vec<(Node, Node)>,
    },
    /// Alias of the anchor with this number.
    Alias(usize),
}

impl Node {
    /// Parses the only document of `text`, which must not begin with a byte order mark. Returns `None` if it is empty.
    /// Offsets are byte offsets in `text`.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, TreeError> {
        let mut builder = TreeBuilder { open: Vec::new(), root: None };
        for event in Parser::new_from_str(text) {
            let (event, span) = event?;
            builder.handle_event(event, &span)?;
        }
        Ok(builder.root)
    }

    /// Returns the value of `key` in a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, value)| value)
    }

    /// Returns the key node and the value of `key` in a mapping.
    pub(crate) fn entry(&self, key: &str) -> Option<&(Node, Node)> {
        let NodeKind::Mapping { entries, .. } = &self.kind else { return None };
        entries.iter().find(|(name, _)| name.text() == Some(key))
    }

    /// Returns the value of `key` in a mapping, mutably.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Node> {
        let NodeKind::Mapping { entries, .. } = &mut self.kind else { return None };
        entries.iter_mut().find(|(name, _)| name.text() == Some(key)).map(|(_, value)| value)
    }

    /// Returns whether the node is null: written as null, or empty.
    pub(crate) fn is_null(&self) -> bool {
        let NodeKind::Scalar { value, style: ScalarStyle::Plain } = &self.kind else { return false };
        matches!(value.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }

    /// Returns whether the node or one of its descendants has an anchor.
    pub(crate) fn has_anchor(&self) -> bool {
        self.anchor || self.children().any(Self::has_anchor)
    }

    /// Calls `each` with every scalar and alias of the subtree, in their order.
    pub(crate) fn for_each_scalar(&self, each: &mut impl FnMut(&Node)) {
        match self.kind {
            NodeKind::Scalar { .. } | NodeKind::Alias(_) => each(self),
            _ => self.children().for_each(|child| child.for_each_scalar(each)),
        }
    }

    /// Returns the items of a list, or the keys and values of a mapping.
    fn children(&self) -> impl Iterator<Item = &Node> {
        let (items, entries): (&[Node], &[(Node, Node)]) = match &self.kind {
            NodeKind::Sequence { items, .. } => (items, &[]),
            NodeKind::Mapping { entries, .. } => (&[], entries),
            NodeKind::Scalar { .. } | NodeKind::Alias(_) => (&[], &[]),
        };
        items.iter().chain(entries.iter().flat_map(|(key, value)| [key, value]))
    }

    /// Returns the text of a scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            NodeKind::Scalar { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Returns whether both nodes have the same content, whatever their position and style. Aliases are compared by the
    /// order of the anchors.
    pub(crate) fn is_equivalent(&self, other: &Self) -> bool {
        let same_kind = match (&self.kind, &other.kind) {
            (NodeKind::Scalar { value: a, style: b }, NodeKind::Scalar { value: c, style: d }) => {
                a == c && (*b == ScalarStyle::Plain) == (*d == ScalarStyle::Plain)
            }
            (NodeKind::Sequence { items: a, .. }, NodeKind::Sequence { items: b, .. }) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is_equivalent(b))
            }
            (NodeKind::Mapping { entries: a, .. }, NodeKind::Mapping { entries: b, .. }) => {
                a.len() == b.len() && a.iter().zip(b).all(|((k, v), (l, w))| k.is_equivalent(l) && v.is_equivalent(w))
            }
            (NodeKind::Alias(a), NodeKind::Alias(b)) => a == b,
            _ => false,
        };
        same_kind && self.tag == other.tag && self.anchor == other.anchor
    }

    /// Returns the path of the innermost field that contains `offset`, for example `spec.steps[0].setWeight`. The start
    /// of a mapping counts as the mapping, not as its first key, and the start of a list of mappings as the list.
    pub(crate) fn path_at(&self, offset: usize) -> String {
        let (mut node, mut path) = (self, String::new());
        loop {
            let inner = match &node.kind {
                NodeKind::Mapping { entries, .. } if offset > node.span.start => entries
                    .iter()
                    .find(|(key, value)| (key.span.start..=value.span.end.max(key.span.end)).contains(&offset))
                    .map(|(key, value)| (join_path(&path, key.text().unwrap_or("?")), value)),
                NodeKind::Sequence { items, .. } if offset > node.span.start || !node.begins_with_mapping() => items
                    .iter()
                    .position(|item| (item.span.start..=item.span.end).contains(&offset))
                    .map(|index| (format!("{path}[{index}]"), &items[index])),
                _ => None,
            };
            match inner {
                Some(found) => (path, node) = found,
                None => return path,
            }
        }
    }

    /// Returns the path and the line of the mapping that has a key at `offset`.
    pub(crate) fn mapping_with_key_at(&self, offset: usize) -> Option<(String, usize)> {
        match &self.kind {
            NodeKind::Mapping { entries, .. } if entries.iter().any(|(key, _)| key.span.start == offset) => {
                Some((String::new(), self.line))
            }
            NodeKind::Mapping { entries, .. } => entries.iter().find_map(|(key, value)| {
                let (path, line) = value.mapping_with_key_at(offset)?;
                Some((prepend_path(key.text().unwrap_or("?"), &path), line))
            }),
            NodeKind::Sequence { items, .. } => items.iter().enumerate().find_map(|(index, item)| {
                let (path, line) = item.mapping_with_key_at(offset)?;
                Some((prepend_path(&format!("[{index}]"), &path), line))
            }),
            NodeKind::Scalar { .. } | NodeKind::Alias(_) => None,
        }
    }

    /// Returns the line of the node at `path`, or of its innermost ancestor that exists.
    pub(crate) fn line_of(&self, path: &str) -> usize {
        let (mut node, mut line) = (self, self.line);
        for part in path.split(['.', '[']) {
            let index = part.strip_suffix(']').and_then(|index| index.parse::<usize>().ok());
            let next = match (&node.kind, index) {
                (NodeKind::Sequence { items, .. }, Some(index)) => items.get(index).map(|item| (item.line, item)),
                _ => node.entry(part).map(|(key, value)| (key.line, value)),
            };
            match next {
                Some(found) => (line, node) = found,
                None => break,
            }
        }
        line
    }
}

fn prepend_path(name: &str, path: &str) -> String {
    let dot = if path.is_empty() || path.starts_with('[') { "" } else { "." };
    format!("{name}{dot}{path}")
}

pub(crate) fn join_path(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Why a text cannot be parsed into a tree.
#[derive(Debug)]
pub(crate) enum TreeError {
    /// The text is not YAML.
    Scan(ScanError),
    /// A second document begins on this line, from 1.
    SecondDocument(usize),
}

impl From<ScanError> for TreeError {
    fn from(error: ScanError) -> Self {
        Self::Scan(error)
    }
}

/// Builds the tree from the events of the parser.
struct TreeBuilder {
    /// Collections that have not ended, outermost first.
    open: Vec<OpenCollection>,
    root: Option<Node>,
}

struct OpenCollection {
    node: Node,
    /// The key whose value comes next.
    key: Option<Node>,
}

impl TreeBuilder {
    fn handle_event(&mut self, event: Event<'_>, span: &Span) -> Result<(), TreeError> {
        let start = span.start.byte_offset().unwrap_or_default();
        let end = span.end.byte_offset().unwrap_or(start);
        let node = |kind, anchor: usize, tag: Option<String>| Node {
            kind,
            span: start..end,
            line: span.start.line(),
            anchor: anchor != 0,
            tag,
        };
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                return Err(TreeError::SecondDocument(span.start.line()));
            }
            Event::Scalar(value, style, anchor, tag) => {
                let kind = NodeKind::Scalar { value: value.into_owned(), style };
                self.add(node(kind, anchor, tag.map(|tag| tag.to_string())));
            }
            Event::Alias(anchor) => self.add(node(NodeKind::Alias(anchor), 0, None)),
            Event::SequenceStart(style, anchor, tag) => {
                let kind = NodeKind::Sequence { flow: style == StructureStyle::Flow, items: Vec::new() };
                self.open.push(OpenCollection { node: node(kind, anchor, tag.map(|tag| tag.to_string())), key: None });
            }
            Event::MappingStart(style, anchor, tag) => {
                let kind = NodeKind::Mapping { flow: style == StructureStyle::Flow, entries: Vec::new() };
                self.open.push(OpenCollection { node: node(kind, anchor, tag.map(|tag| tag.to_string())), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(OpenCollection { mut node, .. }) = self.open.pop() {
                    if node.is_flow() {
                        node.span.end = end;
                    }
                    self.add(node);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add(&mut self, node: Node) {
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        parent.node.span.end = parent.node.span.end.max(node.span.end);
        match (&mut parent.node.kind, parent.key.take()) {
            (NodeKind::Sequence { items, .. }, _) => items.push(node),
            (NodeKind::Mapping { entries, .. }, Some(key)) => entries.push((key, node)),
            (_, None) => parent.key = Some(node),
            (NodeKind::Scalar { .. } | NodeKind::Alias(_), Some(_)) => {}
        }
    }
}

impl Node {
    fn begins_with_mapping(&self) -> bool {
        let NodeKind::Sequence { items, .. } = &self.kind else { return false };
        items.first().is_some_and(|item| matches!(item.kind, NodeKind::Mapping { .. }))
    }

    fn is_flow(&self) -> bool {
        matches!(self.kind, NodeKind::Sequence { flow: true, .. } | NodeKind::Mapping { flow: true, .. })
    }
}
