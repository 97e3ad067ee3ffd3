use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write as _;

const PYTHON: &str = include_str!("tests/python.jsonl");

fn scan_found(body: &[u8]) -> ScannedModel {
    match scan(body) {
        ScanResult::Found(found) => found,
        other => panic!("{other:?} in {:?}", String::from_utf8_lossy(body)),
    }
}

fn splice_name(body: &[u8], name: &str) -> Bytes {
    splice(&Bytes::copy_from_slice(body), &scan_found(body).location, &EncodedName::new(name)).into_bytes()
}

/// Returns every event with its offset, for a body in chunks that end at `cuts`, and whether the body is complete.
fn events(body: &[u8], cuts: &[usize]) -> (Vec<(usize, ScanEvent)>, bool) {
    let mut scanner = Scanner::new();
    let mut events = Vec::new();
    let mut at = 0;
    for end in cuts.iter().copied().chain([body.len()]) {
        while at < end {
            let (read, event) = scanner.read(&body[at..end]);
            at += read;
            match event {
                Some(event) => {
                    events.push((at, event));
                    assert!(events.len() < 5, "{events:?}");
                }
                None => assert_eq!(at, end, "a chunk without an event is read to its end"),
            }
        }
    }
    (events, scanner.is_complete())
}

#[test]
fn bodies_are_read_like_python_reads_them() {
    for line in PYTHON.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let body: Vec<u8> = case["body"]
            .as_str()
            .unwrap()
            .as_bytes()
            .chunks(2)
            .map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap())
            .collect();
        let text = String::from_utf8_lossy(&body).into_owned();
        let scan = scan(&body);
        let (kind, model) = case["python"].as_object().unwrap().iter().next().unwrap();
        match (kind.as_str(), scan) {
            ("wide", scan) => assert_eq!(scan, ScanResult::Refused(RequestRefusal::WideEncoding), "{text}"),
            ("duplicate", scan) => assert_eq!(scan, ScanResult::Refused(RequestRefusal::DuplicateModel), "{text}"),
            ("model", ScanResult::Found(found)) => {
                assert_eq!(found.location.decode_name(&body).as_deref(), model.as_str(), "{text}");
                assert!(found.complete, "{text}");
            }
            ("missing", ScanResult::Found(found)) => {
                assert!(
                    matches!(found, ScannedModel { location: ModelLocation::Absent { .. }, complete: true }),
                    "{text}: {found:?}"
                );
            }
            ("other", ScanResult::Found(found)) => {
                assert_eq!(found.location.decode_name(&body), None, "{text}");
                assert!(found.complete, "{text}");
            }
            // The server refuses such a body, whatever the router does with it.
            ("refused", _) => {}
            (kind, scan) => panic!("Python: {kind}, router: {scan:?}, body: {text}"),
        }
    }
}

#[test]
fn non_object_body_is_opaque() {
    for body in
        ["", "  ", "[]", "null", "\"model\"", "5", "{", "{\"model\":\"a", "{\"model\" 5}", "{'model':'a'}", "\u{feff}"]
    {
        assert_eq!(scan(body.as_bytes()), ScanResult::Opaque, "{body}");
    }
}

#[test]
fn invalid_text_after_the_model_is_detected() {
    for body in
        [r#"{"model":"a","#, r#"{"model":"a"} x"#, r#"{"model":"a"}{}"#, r#"{"model":"a",}"#, r#"{"model":"a" "b":1}"#]
    {
        let found = scan_found(body.as_bytes());
        assert_eq!(
            (found.location.decode_name(body.as_bytes()).as_deref(), found.complete),
            (Some("a"), false),
            "{body}"
        );
    }
}

#[test]
fn bytes_outside_the_value_stay() {
    for (body, spliced) in [
        (r#"{"model":"a"}"#, r#"{"model":"v\"2"}"#),
        (
            r#" { "x" : 1e400 , "model" : "\u0061" , "y":"\u00e4ä" } "#,
            r#" { "x" : 1e400 , "model" : "v\"2" , "y":"\u00e4ä" } "#,
        ),
        (r#"{"model":null,"n":12345678901234567890}"#, r#"{"model":"v\"2","n":12345678901234567890}"#),
        (r#"{"model":[{"model":"x"}],"n":1}"#, r#"{"model":"v\"2","n":1}"#),
        (r"{}", r#"{"model":"v\"2"}"#),
        (r"{ }", r#"{ "model":"v\"2"}"#),
        (r#"{"n":1 } "#, r#"{"n":1 ,"model":"v\"2"} "#),
        ("\u{feff}{\"model\":\"a\"}", "\u{feff}{\"model\":\"v\\\"2\"}"),
    ] {
        assert_eq!(splice_name(body.as_bytes(), "v\"2"), spliced.as_bytes(), "{body}");
    }
}

#[test]
fn deep_nesting_uses_no_stack() {
    let depth = 1_000_000;
    let body = format!(r#"{{"x":{}{},"model":"a"}}"#, "[".repeat(depth), "]".repeat(depth));
    assert_eq!(scan_found(body.as_bytes()).location.decode_name(body.as_bytes()).as_deref(), Some("a"));
}

#[test]
fn overlong_name_is_refused() {
    let body = |length: usize| format!(r#"{{"model":"{}"}}"#, "x".repeat(length));
    assert!(matches!(scan(body(MAX_NAME_LENGTH - 2).as_bytes()), ScanResult::Found(_)));
    assert_eq!(scan(body(MAX_NAME_LENGTH - 1).as_bytes()), ScanResult::Refused(RequestRefusal::ModelNameTooLong));
}

/// Generates a JSON value.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((any_key(), inner), 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![Just("model".to_owned()), Just("models".to_owned()), Just("mode\\l".to_owned()), any::<String>()]
}

/// Writes `value` with white space and escapes as clients might; `choices`, an endless iterator, selects them.
fn write(value: &Value, choices: &mut impl Iterator<Item = u8>, out: &mut String) {
    let mut space =
        |out: &mut String| out.push_str(["", "", " ", "\n", "\t \r"][usize::from(choices.next().unwrap()) % 5]);
    space(out);
    match value {
        Value::Object(members) => {
            out.push('{');
            for (index, (key, value)) in members.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                write(&Value::from(key.as_str()), choices, out);
                out.push(':');
                write(value, choices, out);
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (index, value) in items.iter().enumerate() {
                out.push_str(if index == 0 { "" } else { "," });
                write(value, choices, out);
            }
            out.push(']');
        }
        Value::String(text) => {
            out.push('"');
            for character in text.chars() {
                if choices.next().unwrap().is_multiple_of(4) {
                    let mut units = [0; 2];
                    for unit in character.encode_utf16(&mut units) {
                        write!(out, "\\u{unit:04X}").unwrap();
                    }
                } else {
                    let quoted = Value::from(character.to_string()).to_string();
                    out.push_str(quoted.strip_prefix('"').unwrap().strip_suffix('"').unwrap());
                }
            }
            out.push('"');
        }
        other => out.push_str(&other.to_string()),
    }
    out.push_str(["", " ", "\n"][usize::from(choices.next().unwrap()) % 3]);
}

fn to_text(value: &Value, choices: &[u8]) -> String {
    let mut text = String::new();
    write(value, &mut choices.iter().copied().cycle(), &mut text);
    text
}

fn any_object() -> impl Strategy<Value = (Value, String)> {
    let members = prop::collection::vec((any_key(), any_json()), 0..6);
    let choices = prop::collection::vec(any::<u8>(), 1..40);
    (members, choices).prop_map(|(members, choices)| {
        let value = Value::Object(members.into_iter().collect());
        let text = to_text(&value, &choices);
        (value, text)
    })
}

/// Generates bytes that look like JSON at first.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let part = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"model\"",
        "\"mod\\u0065l\"",
        "\"a\"",
        " ",
        "1",
        "null",
        "\u{feff}",
        "\0",
        "é",
    ]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat().into_bytes()),
        (any_object(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|((_, text), index, byte)| {
            let mut body = text.into_bytes();
            let at = index.index(body.len());
            body[at] = byte;
            body
        }),
    ]
}

proptest! {
    #[test]
    fn splice_changes_only_the_model((value, text) in any_object(), name in any::<String>()) {
        let location = scan_found(text.as_bytes()).location;
        let expected = match value.get("model") {
            Some(Value::String(model)) => {
                prop_assert_eq!(location.decode_name(text.as_bytes()), Some(Cow::from(model)));
                true
            }
            Some(_) => { prop_assert!(matches!(location, ModelLocation::Value(_))); true }
            None => false,
        };
        prop_assert_eq!(!matches!(location, ModelLocation::Absent { .. }), expected);
        let spliced = splice_name(text.as_bytes(), &name);
        let mut expected_value = value;
        expected_value["model"] = json!(name);
        prop_assert_eq!(serde_json::from_slice::<Value>(&spliced).unwrap(), expected_value);
    }

    #[test]
    fn events_do_not_depend_on_chunking(
        body in any_body(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.sort_unstable();
        prop_assert_eq!(events(&body, &cuts), events(&body, &[]));
        let every_byte: Vec<usize> = (0..body.len()).collect();
        prop_assert_eq!(events(&body, &every_byte), events(&body, &[]));
    }

    #[test]
    fn spliced_name_is_found_again(body in any_body(), name in "[^\\x00]{0,12}") {
        if let ScanResult::Found(ScannedModel { complete: true, .. }) = scan(&body) {
            let spliced = splice_name(&body, &name);
            let again = scan_found(&spliced);
            prop_assert!(again.complete);
            prop_assert_eq!(again.location.decode_name(&spliced), Some(Cow::from(name)));
        }
    }

    /// serde accepts less than Python, but an object that it accepts must be found with the same name.
    #[test]
    fn bodies_are_read_like_serde_reads_them(body in any_body()) {
        if let Ok(Value::Object(object)) = serde_json::from_slice(&body) {
            match scan(&body) {
                ScanResult::Found(found) => {
                    prop_assert!(found.complete);
                    let name = object.get("model").and_then(Value::as_str).map(Cow::from);
                    prop_assert_eq!(found.location.decode_name(&body), name);
                }
                // serde keeps the last of two members with one key.
                ScanResult::Refused(RequestRefusal::DuplicateModel) => prop_assert!(object.contains_key("model")),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn strings_are_decoded_like_serde(
        inside in r#"([^"\\\x00-\x1f]|\\["\\/bfnrtux0]|\\u[0-9a-fA-F]{4}|\\ud83d\\ude0[0-9]){0,8}"#,
    ) {
        let serde = serde_json::from_str::<String>(&format!("\"{inside}\"")).ok();
        prop_assert_eq!(string::decode(inside.as_bytes()).map(Cow::into_owned), serde);
    }
}
