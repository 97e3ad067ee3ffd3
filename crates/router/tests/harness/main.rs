//! Runs the fuzz harnesses on random input. Inputs that the fuzzer finds become named tests here.

mod targets;

use proptest::prelude::*;

/// Generates input with many meaningful tokens.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let token = prop::sample::select(vec![
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
    let text = prop::collection::vec(token, 0..24).prop_map(|tokens| tokens.concat().into_bytes());
    let anything = prop::collection::vec(prop_oneof![0..30_u8, any::<u8>()], 0..64);
    (any::<[u8; 4]>(), prop_oneof![text, anything]).prop_map(|(cuts, bytes)| [&cuts[..], &bytes].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn splice_holds_for_random_input(bytes in any_bytes()) {
        targets::splice(&bytes);
    }

    #[test]
    fn restore_holds_for_random_input(bytes in any_bytes()) {
        targets::restore(&bytes);
    }

    #[test]
    fn exchange_holds_for_random_events(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        targets::exchange(&bytes);
    }
}
