//! Properties of edits over files of all shapes.
#![expect(clippy::struct_excessive_bools, reason = "a shape consists of many small, independent choices")]

use super::*;
use crate::adapters::AdaptersText;
use proptest::prelude::*;

/// Quotes of a scalar in the rendered file.
#[derive(Debug, Clone, Copy)]
enum Quotes {
    None,
    Single,
    Double,
}

/// Form of an entry of a block list. Each comment gets a unique text when the file is rendered.
#[derive(Debug, Clone)]
struct EntryShape {
    flow: bool,
    quotes: Quotes,
    dash_gap: usize,
    dash_alone: bool,
    source_first: bool,
    extra: usize,
    comments_above: usize,
    comment_behind: bool,
    comment_within: bool,
    comment_below: bool,
    blank_before: bool,
    anchor: bool,
}

#[derive(Debug, Clone)]
enum ListShape {
    Missing,
    /// The section has this value, which is empty.
    Blank(&'static str),
    /// `models` in the section has this value, which is empty.
    BlankModels(&'static str),
    Block(Vec<EntryShape>),
    Flow {
        count: usize,
        lines: bool,
        trailing_comma: bool,
        comments: bool,
    },
}

#[derive(Debug, Clone)]
struct FileShape {
    exist: ListShape,
    not_exist: ListShape,
    not_exist_first: bool,
    key_step: usize,
    dash_step: usize,
    keys_between: bool,
    crlf: bool,
    final_newline: bool,
    bom: bool,
}

fn any_entry() -> impl Strategy<Value = EntryShape> {
    let quotes = prop_oneof![Just(Quotes::None), Just(Quotes::Single), Just(Quotes::Double)];
    let flags = any::<[bool; 7]>();
    (quotes, 1..4_usize, 0..5_usize, 0..3_usize, flags, prop::bool::weighted(0.1), prop::bool::weighted(0.2)).prop_map(
        |(quotes, dash_gap, extra, comments_above, flags, anchor, flow)| {
            let [dash_alone, source_first, comment_behind, comment_within, comment_below, blank_before, bare] = flags;
            EntryShape {
                flow,
                quotes,
                dash_gap,
                dash_alone: dash_alone && bare,
                source_first,
                extra,
                comments_above: if bare { 0 } else { comments_above },
                comment_behind: comment_behind && !bare,
                comment_within: comment_within && !bare,
                comment_below: comment_below && !bare,
                blank_before,
                anchor,
            }
        },
    )
}

fn filled_list() -> impl Strategy<Value = ListShape> {
    let flow = (1..4_usize, any::<[bool; 3]>()).prop_map(|(count, [lines, trailing_comma, comments])| {
        ListShape::Flow { count, lines, trailing_comma, comments }
    });
    prop_oneof![3 => prop::collection::vec(any_entry(), 1..5).prop_map(ListShape::Block), 1 => flow]
}

fn any_list() -> impl Strategy<Value = ListShape> {
    let blank = prop_oneof![Just(""), Just(" ~"), Just(" {}"), Just(" # nothing yet"), Just(" null # nothing")];
    let blank_models = prop_oneof![Just(""), Just(" []"), Just(" null"), Just(" [ ] # nothing")];
    prop_oneof![
        2 => Just(ListShape::Missing),
        1 => blank.prop_map(ListShape::Blank),
        1 => blank_models.prop_map(ListShape::BlankModels),
        3 => filled_list(),
    ]
}

fn any_file() -> impl Strategy<Value = FileShape> {
    (filled_list(), any_list(), 1..5_usize, 0..5_usize, any::<[bool; 5]>()).prop_map(
        |(exist, not_exist, key_step, dash_step, flags)| {
            let [not_exist_first, keys_between, crlf, final_newline, bom] = flags;
            FileShape { exist, not_exist, not_exist_first, key_step, dash_step, keys_between, crlf, final_newline, bom }
        },
    )
}

/// A file as lines of text, with the range of lines of each entry of `ensureExist`.
#[derive(Default)]
struct RenderedFile {
    lines: Vec<String>,
    owned: Vec<std::ops::Range<usize>>,
    comments: usize,
}

impl RenderedFile {
    fn comment(&mut self) -> String {
        self.comments += 1;
        format!("# comment {}.", self.comments)
    }

    fn render(file: &FileShape) -> Self {
        let mut rendered = Self::default();
        let comment = rendered.comment();
        rendered.lines.extend([comment, "vLLMLoRAConfig:".to_owned()]);
        let step = file.key_step;
        let mut lists = [("ensureExist", &file.exist, "v"), ("ensureNotExist", &file.not_exist, "w")];
        if file.not_exist_first {
            lists.reverse();
        }
        for (key, list, prefix) in lists {
            rendered.push_list(file, key, list, prefix);
            if file.keys_between {
                let comment = rendered.comment();
                rendered.lines.push(format!("{:step$}other{}: [1, {{a: b}}] {comment}", "", rendered.comments));
            }
        }
        rendered
    }

    fn push_list(&mut self, file: &FileShape, key: &str, list: &ListShape, prefix: &str) {
        let (section, models) = (file.key_step, file.key_step * 2);
        let head = |value: &str| format!("{:section$}{key}:{value}", "");
        match list {
            ListShape::Missing => {}
            ListShape::Blank(value) => self.lines.push(head(value)),
            ListShape::BlankModels(value) => self.lines.extend([head(""), format!("{:models$}models:{value}", "")]),
            ListShape::Block(entries) => {
                self.lines.extend([head(""), format!("{:models$}models:", "")]);
                for (index, entry) in entries.iter().enumerate() {
                    self.push_entry(models + file.dash_step, &format!("{prefix}{index}"), entry, prefix == "v");
                }
            }
            ListShape::Flow { count, lines, trailing_comma, comments } => {
                self.lines.push(head(""));
                let item = |index: usize| {
                    let comma = if index + 1 < *count || *trailing_comma { "," } else { "" };
                    format!("{{id: {prefix}{index}, source: /{prefix}{index}}}{comma}")
                };
                if !lines {
                    let items: Vec<String> = (0..*count).map(item).collect();
                    self.lines.push(format!("{:models$}models: [{}]", "", items.join(" ")));
                    return;
                }
                self.lines.push(format!("{:models$}models: [", ""));
                for index in 0..*count {
                    let comment = if *comments { format!(" {}", self.comment()) } else { String::new() };
                    self.lines.push(format!("{:models$}  {}{comment}", "", item(index)));
                }
                self.lines.push(format!("{:models$}]", ""));
            }
        }
    }

    fn push_entry(&mut self, column: usize, name: &str, entry: &EntryShape, owned: bool) {
        let inner = column + 1 + entry.dash_gap;
        if entry.blank_before {
            self.lines.push(String::new());
        }
        let first = self.lines.len();
        for _ in 0..entry.comments_above {
            let comment = self.comment();
            self.lines.push(format!("{:column$}{comment}", ""));
        }
        let quoted = |text: String| match entry.quotes {
            Quotes::None => text,
            Quotes::Single => format!("'{text}'"),
            Quotes::Double => format!("\"{text}\""),
        };
        let anchor = if entry.anchor { format!("&{name} ") } else { String::new() };
        let mut fields =
            vec![format!("id: {}", quoted(name.to_owned())), format!("source: {anchor}{}", quoted(format!("/{name}")))];
        if entry.source_first {
            fields.reverse();
        }
        if entry.flow {
            fields = vec![format!("{{{}}}", fields.join(", "))];
        } else {
            let pad = " ".repeat(inner);
            fields.extend(match entry.extra {
                1 => vec!["note: |".to_owned(), format!("{pad}  text # no comment"), format!("{pad}   deeper")],
                2 => vec!["tags:".to_owned(), format!("{pad}- a"), format!("{pad}- {{b: c}}")],
                3 => vec!["required: true".to_owned(), "base-model: \"a # b\"".to_owned()],
                _ => vec![],
            });
        }
        if entry.comment_behind {
            let comment = self.comment();
            fields[0] = format!("{} {comment}", fields[0]);
        }
        if entry.dash_alone {
            self.lines.push(format!("{:column$}-", ""));
        }
        for (index, field) in fields.iter().enumerate() {
            self.lines.push(match (index, entry.dash_alone) {
                (0, false) => format!("{:column$}-{:gap$}{field}", "", "", gap = entry.dash_gap),
                _ if field.starts_with(' ') => field.clone(),
                _ => format!("{:inner$}{field}", ""),
            });
            if index == 0 && entry.comment_within && !entry.flow {
                let comment = self.comment();
                self.lines.push(format!("{:inner$}{comment}", ""));
            }
        }
        if entry.comment_below {
            let comment = self.comment();
            self.lines.push(format!("{:inner$}{comment}", ""));
        }
        if owned {
            self.owned.push(first..self.lines.len());
        }
    }

    fn text(&self, file: &FileShape) -> String {
        let ending = if file.crlf { "\r\n" } else { "\n" };
        let bom = if file.bom { "\u{feff}" } else { "" };
        let last = if file.final_newline { ending } else { "" };
        format!("{bom}{}{last}", self.lines.join(ending))
    }
}

/// Numbers of the comments, in the order of the text.
fn comments(text: &str) -> Vec<&str> {
    text.split("# comment ").skip(1).filter_map(|rest| rest.split('.').next()).collect()
}

/// Lines without the keys of the two lists, which an edit may create or fill.
fn without_list_keys<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let is_key = |line: &str| {
        let key = line.trim().split(':').next().unwrap_or_default();
        ["ensureExist", "ensureNotExist", "models"].contains(&key)
    };
    lines.filter(|line| !is_key(line)).collect()
}

fn after_unlist(before: &AdaptersFile, id: &AdapterId) -> AdaptersFile {
    let mut file = before.clone();
    let index = file.ensure_exist.iter().position(|entry| entry.id == *id).unwrap();
    let entry = file.ensure_exist.remove(index);
    file.ensure_not_exist.push(entry);
    file
}

proptest! {
    #[test]
    fn unlisting_moves_one_entry_and_changes_nothing_else(file in any_file(), choice in any::<prop::sample::Index>()) {
        let rendered = RenderedFile::render(&file);
        let text = rendered.text(&file);
        let before = AdaptersFile::parse(&text).unwrap().file;
        let index = choice.index(before.ensure_exist.len());
        let id = before.ensure_exist[index].id.clone();
        let edited = match unlist(&text, &id) {
            Ok(edited) => edited,
            Err(EditError::Anchor { .. }) => {
                let ListShape::Block(entries) = &file.exist else { panic!("only block entries have anchors\n{text}") };
                prop_assert!(entries[index].anchor);
                return Ok(());
            }
            Err(EditError::CommentsLost { .. }) => {
                let one_line = matches!(&file.not_exist, ListShape::Flow { .. });
                prop_assert!(one_line, "\n{}", text);
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(format!("{error}\n{text}"))),
        };
        prop_assert_eq!(&AdaptersFile::parse(&edited).unwrap().file, &after_unlist(&before, &id), "\n{}\n{}", text, edited);

        // No comment is lost or duplicated; all other comments and lines keep their order.
        let (mut old, mut new) = (comments(&text), comments(&edited));
        old.sort_unstable();
        new.sort_unstable();
        prop_assert_eq!(old, new);
        prop_assert!(!text.ends_with('\n') || edited.ends_with('\n'));
        prop_assert_eq!(text.starts_with('\u{feff}'), edited.starts_with('\u{feff}'));
        prop_assert_eq!(file.crlf, edited.matches('\n').count() == edited.matches("\r\n").count());
        if let (Some(owned), ListShape::Missing | ListShape::Blank(_) | ListShape::BlankModels(_) | ListShape::Block(_)) =
            (rendered.owned.get(index), &file.not_exist)
        {
            let rest = |index: usize| !owned.contains(&index);
            let lines = rendered.lines.iter().enumerate().filter(|(index, _)| rest(*index));
            let kept = without_list_keys(lines.map(|(_, line)| line.as_str()));
            let moved: Vec<&str> = rendered.lines[owned.clone()].iter().map(|line| line.trim()).collect();
            let mut after = without_list_keys(edited.trim_start_matches('\u{feff}').lines());
            // The moved lines are contiguous; without them the other lines are unchanged.
            let at = (0..=after.len() - moved.len())
                .find(|at| after[*at..at + moved.len()].iter().map(|line| line.trim()).eq(moved.iter().copied()));
            let at = at.ok_or_else(|| TestCaseError::fail(format!("{moved:?}\n{text}\n{edited}")))?;
            after.drain(at..at + moved.len());
            // A blank line at the end counts as one newline more or less, depending on the end of the text.
            let lines = |lines: &[&str]| lines.join("\n").trim_end().to_owned();
            prop_assert_eq!(lines(&after), lines(&kept), "\n{}\n{}", text, edited);
        }
    }

    #[test]
    fn unlisted_entry_can_be_relisted(file in any_file(), choice in any::<prop::sample::Index>()) {
        let text = RenderedFile::render(&file).text(&file);
        let before = AdaptersFile::parse(&text).unwrap().file;
        let entry = before.ensure_exist[choice.index(before.ensure_exist.len())].clone();
        if let Ok(back) = unlist(&text, &entry.id).and_then(|edited| relist(&edited, &entry.id)) {
            let after = AdaptersFile::parse(&back).unwrap().file;
            prop_assert_eq!(after.ensure_exist.last(), Some(&entry));
            prop_assert_eq!(after.ensure_exist.len(), before.ensure_exist.len());
            prop_assert_eq!(after.ensure_not_exist, before.ensure_not_exist);
        }
    }

    #[test]
    fn added_entry_is_parsed_back(file in any_file(), name in "[^,\\p{Cc}]{1,12}", source in "\\PC{1,20}") {
        let text = RenderedFile::render(&file).text(&file);
        let before = AdaptersFile::parse(&text).unwrap().file;
        let edited = add_entry(&text, &id(&name), &source).unwrap();
        let after = AdaptersFile::parse(&edited).unwrap().file;
        prop_assert_eq!(after.ensure_exist.len(), before.ensure_exist.len() + 1);
        let last = after.ensure_exist.last().unwrap();
        prop_assert_eq!((last.id.as_str(), last.source.as_str()), (name.as_str(), source.as_str()));
    }

    #[test]
    fn wrapped_file_is_edited_like_the_plain_one(
        file in any_file(),
        choice in any::<prop::sample::Index>(),
        indent in 1..5_usize,
        header in prop_oneof![Just("|"), Just("|-"), Just("|+"), Just("|N")],
    ) {
        // A block value has no BOM and no line endings of its own, and `|N` fixes the indentation.
        let file = FileShape { bom: false, crlf: false, final_newline: header != "|-", ..file };
        let header = header.replace('N', &indent.to_string());
        let inner = RenderedFile::render(&file).text(&file);
        let wrap = |inner: &str, ending: &str| {
            let mut blank = 0;
            let line = |line: &str| {
                // Blank lines of a block may have any number of spaces up to its indentation.
                blank += usize::from(line.is_empty());
                if line.is_empty() { " ".repeat(blank % (indent + 1)) } else { format!("{:1$}{line}", "", indent + 1) }
            };
            let lines: Vec<String> = inner.lines().map(line).collect();
            let text = format!("kind: ConfigMap\ndata:\n a: x\n k: {header}\n{}\n b: y # end\n", lines.join("\n"));
            text.replace('\n', ending)
        };
        for ending in ["\n", "\r\n"] {
            let outer = wrap(&inner, ending);
            let wrapped = AdaptersText::new(outer.as_str(), "k").unwrap();
            prop_assert_eq!(wrapped.inner(), inner.as_str(), "\n{}", outer);
            let ids: Vec<AdapterId> = wrapped.parse().unwrap().file.ensure_exist.into_iter().map(|e| e.id).collect();
            if let Ok(edited) = unlist(&inner, choice.get(&ids)) {
                prop_assert_eq!(wrapped.with_inner(&edited).unwrap(), wrap(&edited, ending));
            }
        }
    }

    #[test]
    fn edits_never_panic(text in "\\PC{0,40}", lines in prop::collection::vec("[ a-z:\\-\\[\\]{}#|>&*!'\"]{0,12}", 0..8)) {
        for text in [text, lines.join("\n"), format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n{}", lines.join("\n"))] {
            let wrapped = AdaptersText::new(format!("kind: ConfigMap\ndata:\n  k: |\n{text}"), "k");
            let _parsed = wrapped.map(|text| text.parse());
            let _edited = (unlist(&text, &id("v1")), relist(&text, &id("v1")), add_entry(&text, &id("v1"), "x"));
        }
    }
}
