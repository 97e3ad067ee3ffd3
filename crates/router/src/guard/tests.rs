use super::*;
use proptest::prelude::*;

#[test]
fn administration_paths_are_closed_in_every_spelling() {
    for path in [
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
        assert_eq!(PathGuard::Administration.check(path), Err(RequestRefusal::AdministrationPath), "{path}");
        assert_eq!(PathGuard::Strict.check(path), Err(RequestRefusal::AdministrationPath), "{path}");
        assert_eq!(PathGuard::Off.check(path), Ok(()), "{path}");
    }
}

#[test]
fn inference_paths_are_open_in_plain_spelling() {
    for path in INFERENCE_PATHS.iter().copied().chain([
        "/v1/chat/completions?stream=1",
        "http://host:8000/v1/chat/completions",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/models/small-segment-lora-v1",
    ]) {
        assert_eq!(PathGuard::Strict.check(path), Ok(()), "{path}");
        assert_eq!(PathGuard::Administration.check(path), Ok(()), "{path}");
    }
}

#[test]
fn strict_closes_everything_else() {
    for path in [
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
        assert_eq!(PathGuard::Strict.check(path), Err(RequestRefusal::UnknownPath), "{path}");
        assert_eq!(PathGuard::Administration.check(path), Ok(()), "{path}");
    }
}

#[test]
fn endlessly_decodable_path_is_closed() {
    let path = format!("/v1/%{}load", "25".repeat(21));
    assert_eq!(PathGuard::Administration.check(&path), Err(RequestRefusal::AdministrationPath));
}

/// Encodes one byte of a path with this many levels of percent-encoding.
fn percent_encode(byte: u8, escapes: usize, upper: bool) -> String {
    let byte = if upper { byte.to_ascii_uppercase() } else { byte };
    match escapes {
        0 => char::from(byte).to_string(),
        _ => format!("%{}{byte:02x}", "25".repeat(escapes - 1)),
    }
}

proptest! {
    #[test]
    fn no_spelling_of_administration_path_is_open(
        plain in prop::sample::select(vec!["v1/load_lora_adapter", "v1/unload_lora_adapter", "adapters", "adapters/x"]),
        spelling in prop::collection::vec((0..6_usize, any::<bool>()), 40),
        separators in prop::collection::vec(
            prop::sample::select(vec!["/", "//", "/./", "/x/../", "\\", "%2F", "%5c"]), 4
        ),
        end in prop::sample::select(vec!["", "/", "?", "?a=b", "#", ";v", "%20", "/.", "/x/.."]),
    ) {
        let mut path = String::new();
        let mut spelling = spelling.into_iter();
        for (segment, separator) in plain.split('/').zip(separators) {
            path.push_str(separator);
            for byte in segment.bytes() {
                let (escapes, upper) = spelling.next().unwrap_or_default();
                path.push_str(&percent_encode(byte, escapes, upper));
            }
        }
        path.push_str(end);
        prop_assert_eq!(PathGuard::Administration.check(&path), Err(RequestRefusal::AdministrationPath), "{}", path);
        prop_assert!(PathGuard::Strict.check(&path).is_err());
    }

    #[test]
    fn paths_open_in_strict_are_open_in_administration(path in any::<String>()) {
        let open = PathGuard::Strict.check(&path).is_ok();
        prop_assert!(!open || PathGuard::Administration.check(&path).is_ok());
    }
}
