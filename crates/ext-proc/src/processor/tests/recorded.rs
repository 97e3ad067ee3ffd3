//! Messages that a real Envoy 1.40 sent for a chat request in three chunks and its response, byte for byte. Each line
//! of the file is one message; a line with `#` names the configuration of the filter.

use super::*;

const RECORDED: &str = include_str!("envoy-1.40.hex");

fn bytes(line: &str) -> Vec<u8> {
    let digits = line.as_bytes().chunks(2);
    digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn recorded_envoy_messages_are_processed() {
    let mut streams = 0;
    for recorded in RECORDED.split("# ").skip(1) {
        let mut lines = recorded.lines();
        let title = lines.next().unwrap();
        let mut filter = FilterSimulator::new(&active_rules());
        for line in lines {
            assert!(filter.send(proto::ProcessingRequest::decode(&bytes(line)[..]).unwrap()), "{title}");
        }
        let (body, set, removed) = match title {
            "trailers" | "duplex" | "streamed" => (r#"{"messages":[],"model":"alias-v2"}"#, None, true),
            "buffered" => (r#"{"messages":[],"model":"alias-v2"}"#, Some(pair("content-length", "34")), true),
            "duplex sized" => (r#"{"model":"alias-v2"}"#, None, false),
            other => panic!("{other}"),
        };
        assert_eq!((filter.body(), filter.upstream.end_of_stream), (body, true), "{title}");
        assert_eq!(filter.upstream.set, Vec::from_iter(set), "{title}");
        let removed = removed.then(|| "x-gateway-model-name-rewrite".to_owned());
        assert_eq!(filter.upstream.removed, Vec::from_iter(removed), "{title}");
        assert_eq!(filter.upstream.response_set, [pair("x-rollora-target", "alias-v2")], "{title}");
        streams += 1;
    }
    assert_eq!(streams, 5);
}
