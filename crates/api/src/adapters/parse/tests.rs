use super::*;

const GUIDE: &str = "\
vLLMLoRAConfig:
  name: vllm-qwen3-32b-adapters
  port: 8000
  defaultBaseModel: Qwen/Qwen3-32B
  ensureExist:
    models:
    - id: small-segment-lora-v2
      source: ttt421/nec119-small-segment-lora
  ensureNotExist:
    models:
    - id: small-segment-lora-v1
      source: ttt421/nec119-small-segment-lora
";

fn entry(id: &str, source: &str) -> AdapterEntry {
    AdapterEntry { id: AdapterId::new(id).unwrap(), source: source.to_owned(), base_model: None, required: false }
}

#[test]
fn file_of_the_guide_is_parsed() {
    let source = "ttt421/nec119-small-segment-lora";
    let expected = AdaptersFile {
        name: Some("vllm-qwen3-32b-adapters".to_owned()),
        host: None,
        port: Some(8000),
        default_base_model: Some("Qwen/Qwen3-32B".to_owned()),
        ensure_exist: vec![entry("small-segment-lora-v2", source)],
        ensure_not_exist: vec![entry("small-segment-lora-v1", source)],
    };
    let parsed = AdaptersFile::parse(GUIDE).unwrap();
    assert_eq!(parsed, ParsedAdaptersFile { file: expected, in_both_lists: vec![] });
    assert_eq!(AdaptersFile::parse(&format!("\u{feff}{}", GUIDE.replace('\n', "\r\n"))).unwrap(), parsed);
}

#[test]
fn lists_may_be_empty_and_unknown_keys_are_allowed() {
    for text in [
        "vLLMLoRAConfig: {}",
        "vLLMLoRAConfig:\n  ensureExist:\n  ensureNotExist: ~\n",
        "vLLMLoRAConfig:\n  ensureExist:\n    models:\n  ensureNotExist:\n    models: []\n",
        "vLLMLoRAConfig:\n  ensureExist: {other: 1}\n  more: [1, {a: b}]\nother: true\n",
    ] {
        let file = AdaptersFile::parse(text).unwrap().file;
        assert_eq!((file.ensure_exist.len(), file.ensure_not_exist.len()), (0, 0), "{text}");
    }
}

#[test]
fn plain_scalars_keep_their_text() {
    let text =
        "vLLMLoRAConfig: {ensureExist: {models: [{id: yes, source: 012}, {id: 1.10, source: y, base-model: 7}]}}";
    let entries = AdaptersFile::parse(text).unwrap().file.ensure_exist;
    assert_eq!((entries[0].id.as_str(), entries[0].source.as_str()), ("yes", "012"));
    assert_eq!((entries[1].id.as_str(), entries[1].base_model.as_deref()), ("1.10", Some("7")));
}

#[test]
fn required_base_model_and_aliases_are_resolved() {
    let text = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - &a {id: a, source: &s /a, required: true}\n    - id: b\n      source: *s\n      base-model: x\n      <<: {required: true}\n";
    let entries = AdaptersFile::parse(text).unwrap().file.ensure_exist;
    assert_eq!(entries[1].source, "/a");
    assert_eq!(entries[1].base_model.as_deref(), Some("x"));
    assert!(entries.iter().all(|entry| entry.required));
}

#[test]
fn id_in_both_lists_is_reported_with_both_lines() {
    let text = GUIDE.replace("- id: small-segment-lora-v1", "- id: small-segment-lora-v2");
    let parsed = AdaptersFile::parse(&text).unwrap();
    assert_eq!(parsed.file.in_both_lists().count(), 1);
    let warnings: Vec<_> = parsed.in_both_lists.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "line 11: `small-segment-lora-v2` is under ensureNotExist and, on line 7, under ensureExist too: it is neither \
          loaded nor unloaded until one of the two entries is removed"
        ]
    );
}

#[test]
fn errors_name_line_and_fix() {
    let list = |entries: &str| format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n{entries}");
    let cases = [
        (String::new(), "line 1: `vLLMLoRAConfig` is missing: put the adapters under this key at the top of the file"),
        (
            "ensureExist: {}\n".to_owned(),
            "line 1: `vLLMLoRAConfig` is missing: put the adapters under this key at the top of the file",
        ),
        (list("    - id: a\n"), "line 4: an entry of ensureExist has no `source`: write it"),
        (list("    - source: a\n"), "line 4: an entry of ensureExist has no `id`: write it"),
        (list("    - id: a\n      source:\n"), "line 4: an entry of ensureExist has no `source`: write it"),
        (
            "vLLMLoRAConfig:\n  ensureNotExist: {models: [{id: a}]}\n".to_owned(),
            "line 2: an entry of ensureNotExist has no `source`: write it there too",
        ),
        (
            list("    - id: a\n      source: b\n    - id: b\n      source: b\n    - source: b\n      id: a\n"),
            "line 9: `a` is listed twice under ensureExist, first on line 4: remove one of the two entries",
        ),
        (
            list("    - id: \"a,b\"\n      source: b\n"),
            "line 4: the adapter id `a,b` contains ',': commas and control characters are not allowed",
        ),
        (
            list("    - id: [a]\n      source: b\n"),
            "line 4: vLLMLoRAConfig.ensureExist.models[0].id: a string is expected here",
        ),
        (
            list("    - just-a-name\n"),
            "line 4: vLLMLoRAConfig.ensureExist.models[0]: keys with values (`key: value`) are expected here",
        ),
        (
            "vLLMLoRAConfig:\n  ensureExist:\n  - id: a\n    source: b\n".to_owned(),
            "line 3: vLLMLoRAConfig.ensureExist: keys with values (`key: value`) are expected here",
        ),
        (
            "vLLMLoRAConfig:\n  ensureExist:\n    models: none\n".to_owned(),
            "line 3: vLLMLoRAConfig.ensureExist.models: a list (`- item`) is expected here",
        ),
        (
            "vLLMLoRAConfig:\n  port: http\n".to_owned(),
            "line 2: vLLMLoRAConfig.port: a whole number from 0 to 65535 is expected here",
        ),
        (
            "vLLMLoRAConfig: {}\n---\na: b\n".to_owned(),
            "line 3: a second YAML document begins here: keep one document in the file",
        ),
        (
            list("    - id: a\n      source: b\n      id: c\n"),
            "line 6: vLLMLoRAConfig.ensureExist.models[0].id: the key `id` is written twice: remove one of the two",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(AdaptersFile::parse(&text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn error_of_invalid_yaml_names_line_and_column() {
    for (text, line) in
        [("vLLMLoRAConfig:\n\tname: x\n", 2), ("vLLMLoRAConfig: {\n", 1), ("vLLMLoRAConfig:\n  name: \"x\n", 2)]
    {
        let error = AdaptersFile::parse(text).unwrap_err();
        assert_eq!(error.line(), Some(line), "{text:?}: {error}");
        assert!(error.column().is_some());
    }
}
