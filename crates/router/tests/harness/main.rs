//! The fuzzer's harnesses with bytes by chance, and what the fuzzer found.

mod targets;

use proptest::prelude::*;

/// Bytes with much in them that means something.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop::sample::select(vec![
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
        "\"m\"",
        "\"m-v1\"",
        "\"other\"",
        " ",
        "1",
        "null",
        "\u{feff}",
        "\0",
        "é",
        "data:",
        "data",
        "\n",
        "\r",
        "\r\n\r\n",
        "{\"model\":\"m\"}",
        "{\"model\":\"m-v1\"}\n\n",
        ",\"model\":",
    ]);
    let text = prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes());
    let anything = prop::collection::vec(prop_oneof![0..30_u8, any::<u8>()], 0..64);
    (any::<[u8; 4]>(), prop_oneof![text, anything]).prop_map(|(cuts, bytes)| [&cuts[..], &bytes].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_body_and_no_cut_breaks_the_splice(bytes in any_bytes()) {
        targets::splice(&bytes);
    }

    #[test]
    fn no_answer_and_no_cut_breaks_the_restoring(bytes in any_bytes()) {
        targets::restore(&bytes);
    }

    #[test]
    fn no_order_of_events_breaks_an_exchange(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        targets::exchange(&bytes);
    }
}
