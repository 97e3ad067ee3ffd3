//! Replaces paths in error messages by `<path>`, as vLLM does.
//!
//! Two kinds of paths are replaced: those that begin with a well-known top folder (`/tmp/…`, `/opt/…`), and those with
//! at least two segments of which the last has an extension. `/models/a1` and `org/name` stay readable,
//! `/models/a-1.2` does not.

const TOP_FOLDERS: [&str; 9] = ["home", "usr", "opt", "var", "tmp", "root", "lib", "mnt", "srv"];

/// Returns the message as vLLM would send it.
pub(super) fn without_paths(message: &str) -> String {
    let below_top = replace_paths(message, below_top_folder);
    replace_paths(&below_top, file_with_extension).trim().to_owned()
}

/// Replaces each path; `length` returns the length of the path at the start of a text that begins with a slash.
fn replace_paths(text: &str, length: fn(&str) -> Option<usize>) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from_slash)) = rest.find('/').and_then(|slash| rest.split_at_checked(slash)) {
        shown.push_str(before);
        let (path, after) = from_slash.split_at(length(from_slash).unwrap_or(1));
        shown.push_str(if path == "/" { path } else { "<path>" });
        rest = after;
    }
    shown + rest
}

fn below_top_folder(text: &str) -> Option<usize> {
    let (top, rest) = path_segment(text, false)?;
    if !TOP_FOLDERS.contains(&top) {
        return None;
    }
    let mut rest = path_segment(rest, true)?.1;
    while let Some((_, after)) = path_segment(rest, true) {
        rest = after;
    }
    Some(text.len() - rest.len())
}

fn file_with_extension(text: &str) -> Option<usize> {
    let (_, mut rest) = path_segment(text, false)?;
    let mut parts = 1;
    while let Some((_, after)) = path_segment(rest, false) {
        (parts, rest) = (parts + 1, after);
    }
    let extension = rest.strip_prefix('.')?;
    let end = extension.find(|c: char| !is_word(c)).unwrap_or(extension.len());
    (parts > 1 && end > 0).then(|| text.len() - extension.len() + end)
}

/// Splits off a slash and a name.
fn path_segment(text: &str, dots: bool) -> Option<(&str, &str)> {
    let name = text.strip_prefix('/')?;
    let end = name.find(|c: char| !(is_word(c) || c == '-' || dots && c == '.')).unwrap_or(name.len());
    (end > 0).then(|| name.split_at(end))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_replaced_as_vllm_does() {
        for (message, shown) in [
            ("No adapter found for /nonexistent/path", "No adapter found for /nonexistent/path"),
            ("No adapter found for org/name/more/parts", "No adapter found for org/name/more/parts"),
            ("No adapter found for /tmp/x/bad/empty", "No adapter found for <path>"),
            ("No adapter found for /tmp", "No adapter found for /tmp"),
            ("No adapter found for /models/a-1.2", "No adapter found for <path>"),
            (
                "Not a directory: '/models/a1/m.safetensors/adapter_config.json'",
                "Not a directory: '<path>/adapter_config.json'",
            ),
            ("Not a directory: '/opt/a1/m.safetensors/adapter_config.json'", "Not a directory: '<path>'"),
            ("/v1.5 and a/b", "/v1.5 and a/b"),
        ] {
            assert_eq!(without_paths(message), shown);
        }
    }
}
