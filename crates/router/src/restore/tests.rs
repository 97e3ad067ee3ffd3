use super::*;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENT_STREAM: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// The answer as the client gets it, when it comes in pieces that end at `cuts`.
fn restore(kind: (&'static str, &'static str), answer: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut restorer = Restorer::new(&headers(&[kind]), "v2", "ali\"as").unwrap();
    let (mut out, mut at) = (Vec::new(), 0);
    for end in cuts.iter().copied().chain([answer.len()]) {
        restorer.push(&Bytes::copy_from_slice(&answer[at..end]), &mut out);
        at = end;
    }
    restorer.finish(&mut out);
    assert!(out.iter().all(|slice| !slice.is_empty()), "{out:?}");
    out.concat()
}

fn assert_restored(kind: (&'static str, &'static str), answer: &[u8], expected: &[u8]) {
    let text = String::from_utf8_lossy(answer);
    assert_eq!(restore(kind, answer, &[]), expected, "{text}");
    for first in 0..=answer.len() {
        for second in first..=answer.len() {
            assert_eq!(restore(kind, answer, &[first, second]), expected, "{text} cut at {first} and {second}");
        }
    }
    let every_byte: Vec<usize> = (0..answer.len()).collect();
    assert_eq!(restore(kind, answer, &every_byte), expected, "{text} byte by byte");
}

#[test]
fn the_name_in_an_object_is_restored_wherever_it_is_cut() {
    for (answer, expected) in [
        (r#"{"id":"x","model":"v2","n":1}"#, r#"{"id":"x","model":"ali\"as","n":1}"#),
        ("{ \"model\"\t:\n \"v2\" }\n", "{ \"model\"\t:\n \"ali\\\"as\" }\n"),
        (r#"{"mod\u0065l":"\u00762"}"#, r#"{"mod\u0065l":"ali\"as"}"#),
        ("\u{feff}{\"model\":\"v2\"}", "\u{feff}{\"model\":\"ali\\\"as\"}"),
        (r#"{"model":"v2"} behind"#, r#"{"model":"ali\"as"} behind"#),
    ] {
        assert_restored(JSON, answer.as_bytes(), expected.as_bytes());
    }
}

#[test]
fn everything_else_in_an_object_stays() {
    for answer in [
        "",
        "{}",
        "[]",
        "not json",
        r#"{"model":"v1"}"#,
        r#"{"model":"v22"}"#,
        r#"{"model":"v"}"#,
        r#"{"model":""}"#,
        r#"{"model":null}"#,
        r#"{"model":["v2"]}"#,
        r#"{"model":{"model":"v2"}}"#,
        r#"{"choices":[{"model":"v2"}],"text":"{\"model\":\"v2\"}"}"#,
        r#"{"error":{"message":"The model `v2` does not exist."}}"#,
        r#"{"model":"v2"#,
        r#"{"model":"v2\"#,
        r#"["model":"v2"]"#,
        "{'model':'v2'}",
        "{\"model\":\"\u{fffd}\"}",
    ] {
        assert_restored(JSON, answer.as_bytes(), answer.as_bytes());
    }
    assert_restored(JSON, b"{\"model\":\"\xff\",\"x\":1}", b"{\"model\":\"\xff\",\"x\":1}");
    let wide: Vec<u8> = r#"{"model":"v2"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_restored(JSON, &wide, &wide);
}

#[test]
fn the_name_in_every_event_is_restored_wherever_it_is_cut() {
    for (answer, expected) in [
        (
            "data: {\"model\":\"v2\"}\n\ndata: {\"model\": \"v2\"}\n\ndata: [DONE]\n\n",
            "data: {\"model\":\"ali\\\"as\"}\n\ndata: {\"model\": \"ali\\\"as\"}\n\ndata: [DONE]\n\n",
        ),
        ("data:{\"model\":\"v2\"}\r\n\r\n", "data:{\"model\":\"ali\\\"as\"}\r\n\r\n"),
        (
            "data:{\"model\":\"v2\"}\r\rdata:{\"model\":\"v2\"}\r\r",
            "data:{\"model\":\"ali\\\"as\"}\r\rdata:{\"model\":\"ali\\\"as\"}\r\r",
        ),
        (
            "event: x\nid: 1\n: c\ndata: {\"model\" : \"v2\"}\n\n",
            "event: x\nid: 1\n: c\ndata: {\"model\" : \"ali\\\"as\"}\n\n",
        ),
        // One event in several lines.
        ("data: {\"model\":\ndata: \"v2\"}\n\n", "data: {\"model\":\ndata: \"ali\\\"as\"}\n\n"),
        ("data: {\ndata\ndata: \"model\":\"v2\"}\n\n", "data: {\ndata\ndata: \"model\":\"ali\\\"as\"}\n\n"),
        ("data: {\"model\":\r\ndata: \"v2\"}\r\n\r\n", "data: {\"model\":\r\ndata: \"ali\\\"as\"}\r\n\r\n"),
        // What comes first is broken, and the next event is not.
        (
            "data: {\"model\":\"v2\n\ndata:{\"model\":\"v2\"}\n\n",
            "data: {\"model\":\"v2\n\ndata:{\"model\":\"ali\\\"as\"}\n\n",
        ),
        ("\u{feff}data:{\"model\":\"v2\"}", "\u{feff}data:{\"model\":\"ali\\\"as\"}"),
        ("\n\r\n\rdata:{\"model\":\"v2\"}\n", "\n\r\n\rdata:{\"model\":\"ali\\\"as\"}\n"),
    ] {
        assert_restored(EVENT_STREAM, answer.as_bytes(), expected.as_bytes());
    }
}

#[test]
fn everything_else_in_a_stream_stays() {
    for answer in [
        "",
        "\n\n",
        "{\"model\":\"v2\"}\n\n",
        ": {\"model\":\"v2\"}\n\n",
        "event: {\"model\":\"v2\"}\n\n",
        "datax: {\"model\":\"v2\"}\n\n",
        "dat: {\"model\":\"v2\"}\n\n",
        "Data: {\"model\":\"v2\"}\n\n",
        " data: {\"model\":\"v2\"}\n\n",
        "data {\"model\":\"v2\"}\n\n",
        "\u{feff}\u{feff}data:{\"model\":\"v2\"}\n\n",
        "data: {\"model\":\"v\ndata: 2\"}\n\n",
        "data: {\"choices\":[{\"model\":\"v2\"}]}\n\n",
        "data: {\"model\":\"v2",
    ] {
        assert_restored(EVENT_STREAM, answer.as_bytes(), answer.as_bytes());
    }
}

#[test]
fn nothing_but_a_cut_name_waits() {
    let mut restorer = Restorer::new(&headers(&[EVENT_STREAM]), "v2", "alias").unwrap();
    for (piece, passed) in [
        ("data: {\"id\":1,\"mo", "data: {\"id\":1,\"mo"),
        ("del\":", "del\":"),
        ("\"v", ""),
        ("2", ""),
        ("\",\"x\":\"v2", "\"alias\",\"x\":\"v2"),
        ("\"}\n", "\"}\n"),
    ] {
        let mut out = Vec::new();
        restorer.push(&Bytes::from(piece), &mut out);
        assert_eq!(out.concat(), passed.as_bytes(), "{piece}");
    }
}

#[test]
fn a_name_longer_than_any_does_not_wait() {
    let mut restorer = Restorer::new(&headers(&[JSON]), "v2", "alias").unwrap();
    let mut out = Vec::new();
    restorer.push(&Bytes::from_static(b"{\"model\":\""), &mut out);
    let long = Bytes::from(vec![b'x'; MAX_NAME_LENGTH]);
    restorer.push(&long, &mut out);
    assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), 10 + MAX_NAME_LENGTH);
}

#[test]
fn only_plain_json_and_event_streams_are_read() {
    let is_read = |pairs: &[_]| Restorer::new(&headers(pairs), "v2", "alias").is_some();
    for kind in
        [JSON, EVENT_STREAM, ("content-type", "Application/problem+json"), ("content-type", "TEXT/EVENT-STREAM")]
    {
        assert!(is_read(&[kind]), "{kind:?}");
        assert!(is_read(&[kind, ("content-encoding", "identity")]), "{kind:?}");
        assert!(!is_read(&[kind, ("content-encoding", "gzip")]), "{kind:?}");
    }
    assert!(!is_read(&[]));
    assert!(!is_read(&[("content-type", "text/plain")]));
    assert!(!is_read(&[("content-type", "application/octet-stream")]));
    assert!(Restorer::new(&headers(&[JSON]), "v2", "v2").is_none());
}

proptest! {
    /// Against a reader that has the whole stream before it.
    #[test]
    fn every_event_says_the_clients_name(
        lines in prop::collection::vec((prop::sample::select(vec![
            r#"data: {"model":"v2"}"#, r#"data:{"a":[1,{"model":"v2"}],"model" : "v2","b":"}"}"#, "data: [DONE]",
            ": ping", "event: x", r#"data: {"model":"v1"}"#, r#"data:  {"model":"v\u0032"}"#,
        ]), prop::sample::select(vec!["\n\n", "\r\n\r\n", "\r\r"])), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let answer: String = lines.iter().flat_map(|(line, end)| [*line, *end]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(answer.len() + 1)).collect();
        cuts.sort_unstable();
        let restored = String::from_utf8(restore(EVENT_STREAM, answer.as_bytes(), &cuts)).unwrap();
        let models = |text: &str| -> Vec<Option<String>> {
            let events = text.split(['\n', '\r']).filter_map(|line| line.strip_prefix("data:"));
            events.map(|event| {
                let value: serde_json::Value = serde_json::from_str(event).ok()?;
                Some(value.get("model")?.as_str()?.to_owned())
            }).collect()
        };
        let wanted: Vec<_> = models(&answer)
            .into_iter()
            .map(|model| model.map(|model| if model == "v2" { "ali\"as".to_owned() } else { model }))
            .collect();
        prop_assert_eq!(models(&restored), wanted);
    }
}
