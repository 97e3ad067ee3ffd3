use super::*;
use proptest::prelude::*;

#[test]
fn administration_is_closed_in_every_spelling() {
    for target in [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/adapters",
        "/adapters/a2",
        "/v1/load%5Flora_adapter",
        "/v1/load%5flora_adapter",
        "/v1/load%255Flora_adapter",
        "/v1/load%25255Flora%2525255fadapter",
        "//v1//load_lora_adapter",
        "/v1/./load_lora_adapter",
        "/v1/x/../load_lora_adapter",
        "/v1/%2e%2e/v1/load_lora_adapter",
        "/v1%2Fload_lora_adapter",
        "/v1\\load_lora_adapter",
        "/v1/load_lora_adapter/",
        "/v1/load_lora_adapter;x=1",
        "/v1/load_lora_adapter?x",
        "/v1/load_lora_adapter#x",
        "/v1/load_lora_adapter%3Fx",
        "/v1/load_lora_adapter%20",
        "/V1/Load_LoRA_Adapter",
        "/prefix/v1/load_lora_adapter",
        "http://host/v1/load_lora_adapter",
        "/v1/chat/completions/../../load_lora_adapter",
        "/%61dapters/a",
        "/sleep",
        "/collective_rpc",
    ] {
        assert_eq!(PathGuard::Administration.check(target), Err(RequestRefusal::AdministrationPath), "{target}");
        assert_eq!(PathGuard::Strict.check(target), Err(RequestRefusal::AdministrationPath), "{target}");
        assert_eq!(PathGuard::Off.check(target), Ok(()), "{target}");
    }
}

#[test]
fn inference_is_open_in_its_plain_spelling() {
    for target in INFERENCE_PATHS.iter().copied().chain([
        "/v1/chat/completions?stream=1",
        "http://host:8000/v1/chat/completions",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/models/small-segment-lora-v1",
    ]) {
        assert_eq!(PathGuard::Strict.check(target), Ok(()), "{target}");
        assert_eq!(PathGuard::Administration.check(target), Ok(()), "{target}");
    }
}

#[test]
fn strict_closes_everything_else() {
    for target in [
        "",
        "/",
        "*",
        "host:443",
        "http://host",
        "/metrics",
        "/docs",
        "/invocations",
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1/chat/./completions",
        "/v1/chat%2Fcompletions",
        "/V1/chat/completions",
        "/v1/models/",
        "/v1/models/..",
        "/v1/responses/a/b/c",
        "/v1/responses/a%2fb",
    ] {
        assert_eq!(PathGuard::Strict.check(target), Err(RequestRefusal::UnknownPath), "{target}");
        assert_eq!(PathGuard::Administration.check(target), Ok(()), "{target}");
    }
}

#[test]
fn a_path_that_decodes_without_end_is_closed() {
    let target = format!("/v1/%{}load", "25".repeat(21));
    assert_eq!(PathGuard::Administration.check(&target), Err(RequestRefusal::AdministrationPath));
}

/// Writes one byte of a path as clients might, escaped so many times.
fn percent_encode(byte: u8, escapes: usize, upper: bool) -> String {
    let byte = if upper { byte.to_ascii_uppercase() } else { byte };
    match escapes {
        0 => char::from(byte).to_string(),
        _ => format!("%{}{byte:02x}", "25".repeat(escapes - 1)),
    }
}

proptest! {
    #[test]
    fn no_spelling_of_administration_is_open(
        path in prop::sample::select(vec!["v1/load_lora_adapter", "v1/unload_lora_adapter", "adapters", "adapters/x"]),
        spelling in prop::collection::vec((0..6_usize, any::<bool>()), 40),
        separators in prop::collection::vec(
            prop::sample::select(vec!["/", "//", "/./", "/x/../", "\\", "%2F", "%5c"]), 4
        ),
        end in prop::sample::select(vec!["", "/", "?", "?a=b", "#", ";v", "%20", "/.", "/x/.."]),
    ) {
        let mut target = String::new();
        let mut spelling = spelling.into_iter();
        for (segment, separator) in path.split('/').zip(separators) {
            target.push_str(separator);
            for byte in segment.bytes() {
                let (escapes, upper) = spelling.next().unwrap_or_default();
                target.push_str(&percent_encode(byte, escapes, upper));
            }
        }
        target.push_str(end);
        prop_assert_eq!(PathGuard::Administration.check(&target), Err(RequestRefusal::AdministrationPath), "{}", target);
        prop_assert!(PathGuard::Strict.check(&target).is_err());
    }

    #[test]
    fn anything_gets_an_answer(target in any::<String>()) {
        let open = PathGuard::Strict.check(&target).is_ok();
        prop_assert!(!open || PathGuard::Administration.check(&target).is_ok());
    }
}
