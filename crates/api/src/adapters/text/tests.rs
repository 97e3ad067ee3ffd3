use super::*;
use crate::{adapters::edit, names::AdapterId};

const WRAPPED: &str = "\
apiVersion: v1
kind: ConfigMap
metadata:
  name: adapters # of the guide
data:
  other: x
  configmap.yaml: |
    vLLMLoRAConfig:
      ensureExist:
        models:
        - id: v1
          source: a

        - id: v2
          source: b
# behind the block
";

fn v1() -> AdapterId {
    AdapterId::new("v1").unwrap()
}

fn unlist_v1(text: &str) -> Result<String, EditError> {
    let text = AdaptersText::new(text, "configmap.yaml").unwrap();
    text.with_inner(&edit::unlist(text.inner(), &v1())?)
}

#[test]
fn plain_file_is_its_own_inner_text() {
    let text = AdaptersText::new("vLLMLoRAConfig: {}\n", "configmap.yaml").unwrap();
    assert_eq!(text.inner(), "vLLMLoRAConfig: {}\n");
    assert_eq!(text.with_inner("vLLMLoRAConfig:\n").unwrap(), "vLLMLoRAConfig:\n");
    assert_eq!(text.file_line(7), 7);
    assert!(AdaptersText::new("a: [", "k").unwrap().parse().is_err());
    assert!(AdaptersText::new("", "k").unwrap().parse().is_err());
}

#[test]
fn config_map_is_edited_only_in_its_block() {
    let expected = WRAPPED
        .replace("        - id: v1\n          source: a\n", "")
        .replace("# behind", "      ensureNotExist:\n        models:\n        - id: v1\n          source: a\n# behind");
    assert_eq!(unlist_v1(WRAPPED).unwrap(), expected);
    let with_bom_and_crlf = |text: &str| format!("\u{feff}{}", text.replace('\n', "\r\n"));
    assert_eq!(unlist_v1(&with_bom_and_crlf(WRAPPED)).unwrap(), with_bom_and_crlf(&expected));
}

#[test]
fn blank_lines_and_end_of_the_block_keep_their_bytes() {
    for (head, tail) in [("|", "\n"), ("|-", ""), ("|-", "\n"), ("|+", "\n"), ("|2", "\n"), ("| # block", "\n\n\n")] {
        let text = format!(
            "kind: ConfigMap\ndata:\n  configmap.yaml: {head}\n \n    vLLMLoRAConfig:\n      \n   \n      ensureExist:\n        models:\n          - {{id: v1, source: a}}\n  \n          - {{id: v2, source: b}}{tail}"
        );
        let expected = text.replace("          - {id: v1, source: a}\n", "").replace(
            &format!("source: b}}{tail}"),
            &format!("source: b}}\n      ensureNotExist:\n        models:\n          - {{id: v1, source: a}}{tail}"),
        );
        assert_eq!(unlist_v1(&text).unwrap(), expected, "{head:?} {tail:?}");
    }
}

#[test]
fn line_numbers_in_errors_count_from_the_whole_file() {
    let twice = WRAPPED.replace("id: v2", "id: v1");
    let error = AdaptersText::new(twice, "configmap.yaml").unwrap().parse().unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 14: `v1` is listed twice under ensureExist, first on line 11: remove one of the two entries"
    );
    let both = WRAPPED.replace("# behind", "      ensureNotExist: {models: [{id: v1, source: a}]}\n# behind");
    let parsed = AdaptersText::new(both, "configmap.yaml").unwrap().parse().unwrap();
    assert_eq!((parsed.in_both_lists[0].exist_line, parsed.in_both_lists[0].not_exist_line), (11, 16));
    let quoted = "kind: ConfigMap\ndata:\n  configmap.yaml: \"vLLMLoRAConfig:\\n  port: x\\n\"\n";
    let error = AdaptersText::new(quoted, "configmap.yaml").unwrap().parse().unwrap_err();
    assert_eq!(error.line(), Some(3));
}

#[test]
fn edit_error_names_the_line_of_the_whole_file() {
    let text = WRAPPED.replace("- id: v1\n", "- &one\n          id: v1\n");
    let text = AdaptersText::new(text, "configmap.yaml").unwrap();
    let error = edit::unlist(text.inner(), &v1()).unwrap_err();
    assert!(text.map_error_lines(error).to_string().starts_with("line 12: "));
}

#[test]
fn value_that_is_not_a_literal_block_is_not_edited() {
    for value in [
        "\"vLLMLoRAConfig: {ensureExist: {models: [{id: v1, source: a}]}}\"",
        ">\n    vLLMLoRAConfig: {ensureExist: {models: [{id: v1, source: a}]}}",
    ] {
        let text = format!("kind: ConfigMap\ndata:\n  configmap.yaml: {value}\n");
        assert_eq!(
            AdaptersText::new(text.as_str(), "configmap.yaml").unwrap().parse().unwrap().file.ensure_exist.len(),
            1
        );
        assert_eq!(
            unlist_v1(&text).unwrap_err().to_string(),
            "line 3: `configmap.yaml` cannot be edited in the form in which it is written: write it as a block (`configmap.yaml: |`)"
        );
    }
}

#[test]
fn error_of_a_missing_key_lists_the_present_keys() {
    let cases = [
        (
            "kind: ConfigMap\ndata:\n  a: x\n  b: y\n",
            "line 2: the ConfigMap's data has no key `k`, it has `a`, `b`: add it, or name the right one in `adaptersRef.key`",
        ),
        (
            "kind: ConfigMap\n",
            "line 1: the ConfigMap's data has no key `k`, it has none: add it, or name the right one in `adaptersRef.key`",
        ),
        (
            "kind: ConfigMap\ndata:\n  k: [x]\n",
            "line 3: `k` is not a string: write `k: |` and the adapters indented under it",
        ),
        (
            "kind: ConfigMap\n---\nkind: Service\n",
            "line 2: a second YAML document begins here: keep one document in the file",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(AdaptersText::new(text, "k").unwrap_err().to_string(), expected);
    }
}
