use super::*;

mod properties;

fn id(text: &str) -> AdapterId {
    AdapterId::new(text).unwrap()
}

/// Unlists `v1` and compares the result; a second edit must change nothing.
#[track_caller]
fn check_unlist(before: &str, after: &str) {
    let edited = unlist(before, &id("v1")).unwrap_or_else(|error| panic!("{error}\n{before}"));
    assert_eq!(edited, after, "\n--- edited:\n{edited}\n--- expected:\n{after}");
    let again = unlist(&edited, &id("v1")).unwrap();
    assert_eq!(again, edited, "a second edit changed the text");
}

#[test]
fn entry_of_the_guide_is_unlisted() {
    check_unlist(
        "\
vLLMLoRAConfig:
  name: vllm-qwen3-32b-adapters
  ensureExist:
    models:
    - id: v1
      source: org/v1
    - id: v2
      source: org/v2
",
        "\
vLLMLoRAConfig:
  name: vllm-qwen3-32b-adapters
  ensureExist:
    models:
    - id: v2
      source: org/v2
  ensureNotExist:
    models:
    - id: v1
      source: org/v1
",
    );
}

#[test]
fn comments_of_the_entry_move_with_it() {
    check_unlist(
        "\
# the file
vLLMLoRAConfig: # root
  ensureExist:
    models:
      # of the list

      # the first version,
      # trained in May
      - id: 'v1'   # stable
        # from the hub
        source: \"org/v1\"
        owner: {team: x} # extra
        # deeper: still of v1
      # of v2
      - id: v2
        source: org/v2

      # at the end
  # about the next section
  ensureNotExist:
    models:
        - id: v0 # gone
          source: org/v0
        # behind the list
  port: 8000
# bye",
        "\
# the file
vLLMLoRAConfig: # root
  ensureExist:
    models:
      # of the list

      # of v2
      - id: v2
        source: org/v2

      # at the end
  # about the next section
  ensureNotExist:
    models:
        - id: v0 # gone
          source: org/v0
        # the first version,
        # trained in May
        - id: 'v1'   # stable
          # from the hub
          source: \"org/v1\"
          owner: {team: x} # extra
          # deeper: still of v1
        # behind the list
  port: 8000
# bye",
    );
}

#[test]
fn commented_out_entry_stays() {
    check_unlist(
        "\
vLLMLoRAConfig:
  ensureExist:
    models:
    - id: v2
      source: b
    # - id: v9
    #   source: x
    - id: v1
      source: a
",
        "\
vLLMLoRAConfig:
  ensureExist:
    models:
    - id: v2
      source: b
    # - id: v9
    #   source: x
  ensureNotExist:
    models:
    - id: v1
      source: a
",
    );
}

#[test]
fn unlisting_the_last_entry_leaves_an_empty_list() {
    check_unlist(
        "vLLMLoRAConfig:\n  ensureExist:\n    models: # all\n    - id: v1\n      source: a\n",
        "vLLMLoRAConfig:\n  ensureExist:\n    models: [] # all\n  ensureNotExist:\n    models:\n    - id: v1\n      source: a\n",
    );
}

#[test]
fn null_or_empty_list_is_filled() {
    let exist = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - {id: v1, source: a}\n    - {id: v2, source: b}\n";
    let left = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - {id: v2, source: b}\n";
    for (empty, filled) in [
        ("  ensureNotExist:\n", "  ensureNotExist:\n    models:\n    - {id: v1, source: a}\n"),
        ("  ensureNotExist: ~ # none\n", "  ensureNotExist: # none\n    models:\n    - {id: v1, source: a}\n"),
        ("  ensureNotExist: {}\n", "  ensureNotExist:\n    models:\n    - {id: v1, source: a}\n"),
        ("  ensureNotExist:\n    models:\n", "  ensureNotExist:\n    models:\n    - {id: v1, source: a}\n"),
        ("  ensureNotExist:\n    models: null\n", "  ensureNotExist:\n    models:\n    - {id: v1, source: a}\n"),
        ("  ensureNotExist:\n    models: []\n", "  ensureNotExist:\n    models:\n    - {id: v1, source: a}\n"),
        (
            "  ensureNotExist:\n    models: # none\n",
            "  ensureNotExist:\n    models: # none\n    - {id: v1, source: a}\n",
        ),
        ("  ensureNotExist:\n    models:", "  ensureNotExist:\n    models:\n    - {id: v1, source: a}"),
        (
            "  ensureNotExist:\n    note: x\n",
            "  ensureNotExist:\n    note: x\n    models:\n    - {id: v1, source: a}\n",
        ),
        ("  ensureNotExist: {models: []}\n", "  ensureNotExist: {models: [{id: v1, source: a}]}\n"),
        ("  ensureNotExist: {note: x}\n", "  ensureNotExist: {note: x, models: [{id: v1, source: a}]}\n"),
    ] {
        check_unlist(&format!("{exist}{empty}"), &format!("{left}{filled}"));
    }
}

#[test]
fn flow_lists_keep_their_form() {
    let root = |exist: &str, not_exist: &str| {
        format!("vLLMLoRAConfig:\n  ensureExist:\n    models: {exist}\n  ensureNotExist:\n    models: {not_exist}\n")
    };
    for ((exist, not_exist), (exist_after, not_exist_after)) in [
        (
            ("[{id: v1, source: a}, {id: v2, source: b}]", "[{id: v0, source: c}]"),
            ("[{id: v2, source: b}]", "[{id: v0, source: c}, {id: v1, source: a}]"),
        ),
        (
            ("[{id: v2, source: b}, {id: v1, source: a}]", "[{id: v0, source: c},]"),
            ("[{id: v2, source: b}]", "[{id: v0, source: c}, {id: v1, source: a},]"),
        ),
        (("[ {id: v1, source: a}, ]", "[]"), ("[  ]", "\n    - {id: v1, source: a}")),
        (
            (
                "[\n      {id: v1, source: a}, # one\n      {id: v2, source: b}  # two\n    ]",
                "[\n      {id: v0,\n       source: c} # zero\n    ]",
            ),
            (
                "[\n      {id: v2, source: b}  # two\n    ]",
                "[\n      {id: v0,\n       source: c}, # zero\n      {id: v1, source: a} # one\n    ]",
            ),
        ),
        (
            ("[{id: v1, source: a}]", "\n    - id: v0\n      source: c"),
            ("[]", "\n    - id: v0\n      source: c\n    - {id: v1, source: a}"),
        ),
        (
            ("\n    - id: v1\n      source: \"a b\"", "[{id: v0, source: c}]"),
            ("[]", "[{id: v0, source: c}, {id: v1, source: \"a b\"}]"),
        ),
    ] {
        let after = root(exist_after, not_exist_after).replace("models: \n", "models:\n");
        check_unlist(&root(exist, not_exist).replace("models: \n", "models:\n"), &after);
    }
}

#[test]
fn json_file_is_edited() {
    check_unlist(
        r#"{"vLLMLoRAConfig": {"ensureExist": {"models": [{"id": "v1", "source": "a"}]}, "port": 1}}"#,
        r#"{"vLLMLoRAConfig": {"ensureExist": {"models": []}, "ensureNotExist": {"models": [{"id": "v1", "source": "a"}]}, "port": 1}}"#,
    );
}

#[test]
fn line_endings_bom_and_missing_final_newline_are_kept() {
    check_unlist(
        "\u{feff}vLLMLoRAConfig:\r\n  ensureExist:\r\n    models:\r\n    - id: v2\r\n      source: b\r\n    - id: v1\r\n      source: a",
        "\u{feff}vLLMLoRAConfig:\r\n  ensureExist:\r\n    models:\r\n    - id: v2\r\n      source: b\r\n  ensureNotExist:\r\n    models:\r\n    - id: v1\r\n      source: a",
    );
}

#[test]
fn other_list_may_come_first_with_other_indentation() {
    check_unlist(
        "vLLMLoRAConfig:\n  ensureNotExist:\n   models:\n   -   id: v0\n       source: c\n  ensureExist:\n    models:\n        -\n          id: v1\n          source: >-\n            a\n            b\n        - id: v2\n          source: b\n",
        "vLLMLoRAConfig:\n  ensureNotExist:\n   models:\n   -   id: v0\n       source: c\n   -\n     id: v1\n     source: >-\n       a\n       b\n  ensureExist:\n    models:\n        - id: v2\n          source: b\n",
    );
}

#[test]
fn relisted_entry_goes_to_the_end_of_the_list() {
    let text = "vLLMLoRAConfig:\n  ensureExist:\n    models: []\n  ensureNotExist:\n    models:\n    - id: v1\n      source: a\n";
    let after = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      source: a\n  ensureNotExist:\n    models: []\n";
    assert_eq!(relist(text, &id("v1")).unwrap(), after);
    let alone = "vLLMLoRAConfig:\n  ensureNotExist:\n    models:\n    - id: v1\n      source: a\n";
    let after = "vLLMLoRAConfig:\n  ensureNotExist:\n    models: []\n  ensureExist:\n    models:\n    - id: v1\n      source: a\n";
    assert_eq!(relist(alone, &id("v1")).unwrap(), after);
}

#[test]
fn new_entry_is_appended_and_quoted_if_needed() {
    let text = "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      source: a\n  port: 1\n";
    for (name, source, entry) in [
        ("v2", "org/name@rev", "    - id: v2\n      source: org/name@rev\n"),
        ("no", "hf://org/name", "    - id: \"no\"\n      source: \"hf://org/name\"\n"),
        ("2026-01-01", "a # b", "    - id: \"2026-01-01\"\n      source: \"a # b\"\n"),
    ] {
        let after = text.replace("  port: 1", &format!("{entry}  port: 1"));
        let edited = add_entry(text, &id(name), source).unwrap();
        assert_eq!(edited, after);
        assert_eq!(add_entry(&edited, &id(name), source).unwrap(), edited);
    }
    for (empty, after) in [
        ("vLLMLoRAConfig: {}\n", "vLLMLoRAConfig: {ensureExist: {models: [{id: v2, source: b}]}}\n"),
        (
            "vLLMLoRAConfig:\n  port: 1\n",
            "vLLMLoRAConfig:\n  port: 1\n  ensureExist:\n    models:\n    - id: v2\n      source: b\n",
        ),
        (
            "vLLMLoRAConfig:\n  ensureExist:\n",
            "vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v2\n      source: b\n",
        ),
    ] {
        assert_eq!(add_entry(empty, &id("v2"), "b").unwrap(), after);
    }
}

#[test]
fn unsafe_edits_are_rejected_with_line_and_reason() {
    let exist = |entries: &str| format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n{entries}");
    let cases = [
        ("vLLMLoRAConfig: [".to_owned(), "line 1: this is not YAML: unclosed bracket '['"),
        (exist("    - {id: v2, source: a}\n"), "`v1` is not listed, so there is no entry to move"),
        (
            exist("    - {id: v1, source: a}\n  ensureNotExist: {models: [{id: v1, source: a}]}\n"),
            "line 5: `v1` is under ensureNotExist and, on line 4, under ensureExist too: it is neither loaded nor unloaded until one of the two entries is removed",
        ),
        (
            exist("    - &one {id: v1, source: a}\n"),
            "line 4: the entry of `v1` has an anchor (`&name`) that other entries may refer to: move it by hand",
        ),
        (
            exist("    - {id: v1, source: &s a}\n    - {id: v2, source: *s}\n"),
            "line 4: the entry of `v1` has an anchor (`&name`) that other entries may refer to: move it by hand",
        ),
        (
            exist("    - {id: v2, source: &s a}\n    - id: v1 # why\n      source: b\n  ensureNotExist: {models: []}\n"),
            "line 5: the entry's comments do not fit into a list written on one line: move the entry by hand",
        ),
        (
            exist("").replace(":\n    models:", ": {models: [{id: v2, source: b}, # all\n      {id: v1, source: a} ]}"),
            "line 3: this entry, with the comments around it, cannot be edited in the form in which it is written: move the entry by hand",
        ),
        (
            exist("    - {id: v1, source: a}\n  x: *y\n"),
            "line 5: this is not YAML: while parsing node, found unknown anchor",
        ),
        (
            "vLLMLoRAConfig:\n  ensureNotExist:\n    models: []\n  defaults: &d {source: a}\n  ensureExist:\n    models:\n    - id: v1\n      <<: *d\n".to_owned(),
            "the entry of `v1` cannot be edited safely, because the result would be read differently: move the entry by hand",
        ),
        (
            "lists: &l {models: [{id: v1, source: a}]}\nvLLMLoRAConfig:\n  ensureExist: *l\n".to_owned(),
            "line 1: ensureExist cannot be edited in the form in which it is written: move the entry by hand",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(unlist(&text, &id("v1")).unwrap_err().to_string(), expected, "{text}");
    }
    let listed = exist("    - {id: v1, source: a}\n  ensureNotExist: {models: [{id: v0, source: b}]}\n");
    assert_eq!(
        add_entry(&listed, &id("v1"), "c").unwrap_err().to_string(),
        "line 4: `v1` is already listed under ensureExist, from `a`: use a new id, or change that entry by hand"
    );
    assert!(add_entry(&listed, &id("v0"), "b").unwrap_err().to_string().contains("ensureNotExist"));
}

#[test]
fn aliases_of_an_entry_move_with_it() {
    check_unlist(
        "defaults: &d {source: a}\nvLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: v1\n      <<: *d\n    - {id: v2, <<: *d}\n",
        "defaults: &d {source: a}\nvLLMLoRAConfig:\n  ensureExist:\n    models:\n    - {id: v2, <<: *d}\n  ensureNotExist:\n    models:\n    - id: v1\n      <<: *d\n",
    );
}
