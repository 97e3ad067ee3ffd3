use super::*;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENT_STREAM: (&str, &str) = ("content-type", "text/event-stream; charset=utf-8");

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
}

/// Restores a response in chunks that end at `cuts`. Returns what the client gets.
fn restore(content_type: (&'static str, &'static str), response: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut restorer = Restorer::new(&headers(&[content_type]), "v2", "ali\"as").unwrap();
    let (mut out, mut at) = (Vec::new(), 0);
    for end in cuts.iter().copied().chain([response.len()]) {
        restorer.push(&Bytes::copy_from_slice(&response[at..end]), &mut out);
        at = end;
    }
    restorer.finish(&mut out);
    assert!(out.iter().all(|slice| !slice.is_empty()), "{out:?}");
    out.concat()
}

fn assert_restored(content_type: (&'static str, &'static str), response: &[u8], expected: &[u8]) {
    let text = String::from_utf8_lossy(response);
    assert_eq!(restore(content_type, response, &[]), expected, "{text}");
    for first in 0..=response.len() {
        for second in first..=response.len() {
            assert_eq!(
                restore(content_type, response, &[first, second]),
                expected,
                "{text} split at {first} and {second}"
            );
        }
    }
    let every_byte: Vec<usize> = (0..response.len()).collect();
    assert_eq!(restore(content_type, response, &every_byte), expected, "{text} split into bytes");
}

#[test]
fn name_in_object_is_restored_for_every_chunking() {
    for (response, expected) in [
        (r#"{"id":"x","model":"v2","n":1}"#, r#"{"id":"x","model":"ali\"as","n":1}"#),
        ("{ \"model\"\t:\n \"v2\" }\n", "{ \"model\"\t:\n \"ali\\\"as\" }\n"),
        (r#"{"mod\u0065l":"\u00762"}"#, r#"{"mod\u0065l":"ali\"as"}"#),
        ("\u{feff}{\"model\":\"v2\"}", "\u{feff}{\"model\":\"ali\\\"as\"}"),
        (r#"{"model":"v2"} behind"#, r#"{"model":"ali\"as"} behind"#),
    ] {
        assert_restored(JSON, response.as_bytes(), expected.as_bytes());
    }
}

#[test]
fn other_objects_stay_unchanged() {
    for response in [
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
        assert_restored(JSON, response.as_bytes(), response.as_bytes());
    }
    assert_restored(JSON, b"{\"model\":\"\xff\",\"x\":1}", b"{\"model\":\"\xff\",\"x\":1}");
    let wide: Vec<u8> = r#"{"model":"v2"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_restored(JSON, &wide, &wide);
}

#[test]
fn name_in_every_event_is_restored_for_every_chunking() {
    for (response, expected) in [
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
        // One event with several data lines.
        ("data: {\"model\":\ndata: \"v2\"}\n\n", "data: {\"model\":\ndata: \"ali\\\"as\"}\n\n"),
        ("data: {\ndata\ndata: \"model\":\"v2\"}\n\n", "data: {\ndata\ndata: \"model\":\"ali\\\"as\"}\n\n"),
        ("data: {\"model\":\r\ndata: \"v2\"}\r\n\r\n", "data: {\"model\":\r\ndata: \"ali\\\"as\"}\r\n\r\n"),
        // The first event is broken, the next one is not.
        (
            "data: {\"model\":\"v2\n\ndata:{\"model\":\"v2\"}\n\n",
            "data: {\"model\":\"v2\n\ndata:{\"model\":\"ali\\\"as\"}\n\n",
        ),
        ("\u{feff}data:{\"model\":\"v2\"}", "\u{feff}data:{\"model\":\"ali\\\"as\"}"),
        ("\n\r\n\rdata:{\"model\":\"v2\"}\n", "\n\r\n\rdata:{\"model\":\"ali\\\"as\"}\n"),
    ] {
        assert_restored(EVENT_STREAM, response.as_bytes(), expected.as_bytes());
    }
}

#[test]
fn other_event_streams_stay_unchanged() {
    for response in [
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
        assert_restored(EVENT_STREAM, response.as_bytes(), response.as_bytes());
    }
}

#[test]
fn only_an_incomplete_name_is_buffered() {
    let mut restorer = Restorer::new(&headers(&[EVENT_STREAM]), "v2", "alias").unwrap();
    for (chunk, forwarded) in [
        ("data: {\"id\":1,\"mo", "data: {\"id\":1,\"mo"),
        ("del\":", "del\":"),
        ("\"v", ""),
        ("2", ""),
        ("\",\"x\":\"v2", "\"alias\",\"x\":\"v2"),
        ("\"}\n", "\"}\n"),
    ] {
        let mut out = Vec::new();
        restorer.push(&Bytes::from(chunk), &mut out);
        assert_eq!(out.concat(), forwarded.as_bytes(), "{chunk}");
    }
}

#[test]
fn overlong_name_is_not_buffered() {
    let mut restorer = Restorer::new(&headers(&[JSON]), "v2", "alias").unwrap();
    let mut out = Vec::new();
    restorer.push(&Bytes::from_static(b"{\"model\":\""), &mut out);
    let long = Bytes::from(vec![b'x'; MAX_NAME_LENGTH]);
    restorer.push(&long, &mut out);
    assert_eq!(out.iter().map(Bytes::len).sum::<usize>(), 10 + MAX_NAME_LENGTH);
}

#[test]
fn only_uncompressed_json_and_events_are_restored() {
    let is_read = |pairs: &[_]| Restorer::new(&headers(pairs), "v2", "alias").is_some();
    for content_type in
        [JSON, EVENT_STREAM, ("content-type", "Application/problem+json"), ("content-type", "TEXT/EVENT-STREAM")]
    {
        assert!(is_read(&[content_type]), "{content_type:?}");
        assert!(is_read(&[content_type, ("content-encoding", "identity")]), "{content_type:?}");
        assert!(!is_read(&[content_type, ("content-encoding", "gzip")]), "{content_type:?}");
    }
    assert!(!is_read(&[]));
    assert!(!is_read(&[("content-type", "text/plain")]));
    assert!(!is_read(&[("content-type", "application/octet-stream")]));
    assert!(Restorer::new(&headers(&[JSON]), "v2", "v2").is_none());
}

proptest! {
    /// Compares with a parser that has the whole stream.
    #[test]
    fn every_event_has_the_requested_name(
        lines in prop::collection::vec((prop::sample::select(vec![
            r#"data: {"model":"v2"}"#, r#"data:{"a":[1,{"model":"v2"}],"model" : "v2","b":"}"}"#, "data: [DONE]",
            ": ping", "event: x", r#"data: {"model":"v1"}"#, r#"data:  {"model":"v\u0032"}"#,
        ]), prop::sample::select(vec!["\n\n", "\r\n\r\n", "\r\r"])), 0..6),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let response: String = lines.iter().flat_map(|(line, end)| [*line, *end]).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(response.len() + 1)).collect();
        cuts.sort_unstable();
        let restored = String::from_utf8(restore(EVENT_STREAM, response.as_bytes(), &cuts)).unwrap();
        let models = |text: &str| -> Vec<Option<String>> {
            let events = text.split(['\n', '\r']).filter_map(|line| line.strip_prefix("data:"));
            events.map(|event| {
                let value: serde_json::Value = serde_json::from_str(event).ok()?;
                Some(value.get("model")?.as_str()?.to_owned())
            }).collect()
        };
        let expected: Vec<_> = models(&response)
            .into_iter()
            .map(|model| model.map(|model| if model == "v2" { "ali\"as".to_owned() } else { model }))
            .collect();
        prop_assert_eq!(models(&restored), expected);
    }
}
