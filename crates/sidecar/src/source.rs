//! What the `source` of an entry is, as far as its text tells.

/// Whether vLLM would download `source` from a hub: `org/name`, perhaps with a revision, or an `hf://` URL.
///
/// A relative path of exactly two parts looks the same. It is taken for a hub name, which only means more care: such
/// loads go one at a time.
pub fn is_hub_name(source: &str) -> bool {
    if source.starts_with("hf://") {
        return true;
    }
    let mut parts = source.split('/');
    let (Some(organisation), Some(name), None) = (parts.next(), parts.next(), parts.next()) else { return false };
    let plain = |part: &str| !part.is_empty() && !part.starts_with(['.', '~']);
    plain(organisation) && plain(name)
}

/// Whether a registered `root` is what `source` names. A slash at the end makes no difference.
pub fn same_source(root: &str, source: &str) -> bool {
    root.trim_end_matches('/') == source.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_names_are_told_from_paths() {
        for hub in ["org/name", "org/name@main", "hf://org/name", "meta-org/some.lora"] {
            assert!(is_hub_name(hub), "{hub}");
        }
        for path in ["/adapters/a1", "./a1", "../a1", "~/a1", "a1", "tiny/adapters/a1", "adapters/", "/a", ""] {
            assert!(!is_hub_name(path), "{path}");
        }
    }

    #[test]
    fn a_slash_at_the_end_is_no_change_of_source() {
        assert!(same_source("/adapters/a1/", "/adapters/a1"));
        assert!(!same_source("/adapters/a1", "/adapters/a2"));
    }
}
