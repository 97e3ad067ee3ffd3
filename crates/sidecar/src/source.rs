//! What the `source` of an entry comes to here: whether it may be used, whether it has to be fetched, and what vLLM is
//! given. Pure: only the text counts, so links in a file system are not followed.

use rollora_adapter_source::{AdapterSource, SourceRef};
use rollora_api::names::AdapterId;
use std::{fmt, str::FromStr, sync::Arc};

/// Whether vLLM would download `source` from a hub: `org/name`, perhaps with a revision, or an `hf://` URL.
///
/// A relative path of exactly two parts looks the same. It is taken for a hub name, which only means more care: such
/// loads go one at a time.
pub fn is_hub_name(source: &str) -> bool {
    SourceRef::parse(source).is_hub()
}

/// Whether a registered `root` is what `source` names. A slash at the end makes no difference.
pub fn same_source(root: &str, source: &str) -> bool {
    root.trim_end_matches('/') == source.trim_end_matches('/')
}

/// What is done about sources on this machine.
#[derive(Debug, Clone, Default)]
pub struct AdapterSourcePolicy {
    /// Brings what a hub has, so that vLLM never downloads. Without it vLLM is given hub names.
    pub adapter_source: Option<Arc<dyn AdapterSource>>,
    /// What may be loaded; without it, everything.
    pub allowed: Option<SourceAllowlist>,
}

/// What one source comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedSource {
    /// What vLLM is given, and lists as the adapter's root.
    pub root: String,
    /// What has to be fetched before.
    pub fetch_source: Option<SourceRef>,
    /// Why it may not be used.
    pub refusal: Option<String>,
}

impl AdapterSourcePolicy {
    /// What `source`, the one of `id`, comes to.
    pub fn resolve(&self, id: &AdapterId, source: &str) -> ResolvedSource {
        let parsed = SourceRef::parse(source);
        let allowed = self.allowed.as_ref().filter(|allowed| !allowed.permits(&parsed));
        let refused = allowed.map(|allowed| {
            format!(
                "`{id}` comes from `{source}`, and this sidecar takes adapters from {allowed} only: list it from there, \
                 or give the sidecar another --allow-source"
            )
        });
        match self.adapter_source.as_ref().filter(|_| parsed.is_hub()) {
            Some(store) => {
                let root = store.local_path(&parsed).to_string_lossy().into_owned();
                ResolvedSource { root, fetch_source: Some(parsed), refusal: refused }
            }
            None => ResolvedSource { root: source.to_owned(), fetch_source: None, refusal: refused },
        }
    }
}

/// Where adapters may come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceAllowlist(Vec<SourcePrefix>);

/// Everything below a folder, everything of an organisation, or one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourcePrefix {
    /// The parts of an absolute path.
    Path(Vec<String>),
    /// An organisation of the hub.
    Organization(String),
    /// `org/name`, at any revision.
    Repository(String),
}

impl SourceAllowlist {
    /// Everything that one of these permits.
    pub fn new(prefixes: Vec<SourcePrefix>) -> Self {
        Self(prefixes)
    }

    fn permits(&self, source: &SourceRef) -> bool {
        match source {
            SourceRef::Path(path) => path_components(path).is_some_and(|parts| {
                self.0.iter().any(|prefix| matches!(prefix, SourcePrefix::Path(folder) if parts.starts_with(folder)))
            }),
            SourceRef::Hub(name) => name.repository.split_once('/').is_some_and(|(organisation, rest)| {
                let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
                plain(rest)
                    && !rest.contains('/')
                    && self.0.iter().any(|prefix| match prefix {
                        SourcePrefix::Path(_) => false,
                        SourcePrefix::Organization(allowed) => allowed == organisation,
                        SourcePrefix::Repository(allowed) => *allowed == name.repository,
                    })
            }),
        }
    }
}

impl fmt::Display for SourceAllowlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, prefix) in self.0.iter().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            match prefix {
                SourcePrefix::Path(parts) => write!(f, "{separator}/{}", parts.join("/"))?,
                SourcePrefix::Organization(name) => write!(f, "{separator}{name}/")?,
                SourcePrefix::Repository(name) => write!(f, "{separator}{name}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for SourcePrefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return path_components(text).map(Self::Path).ok_or_else(|| format!("`{text}` must not contain `..`"));
        }
        let name = text.strip_prefix("hf://").unwrap_or(text);
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '~'])
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        match name.split_once('/') {
            Some((organisation, "")) if plain(organisation) => Ok(Self::Organization(organisation.to_owned())),
            Some((organisation, rest)) if plain(organisation) && plain(rest) => Ok(Self::Repository(name.to_owned())),
            _ => Err(format!(
                "`{text}` is no prefix of sources: write an absolute path like /adapters, an organisation of the hub \
                 with its slash like my-org/, or a repository like my-org/my-adapter"
            )),
        }
    }
}

/// The parts of an absolute path without what changes nothing in it; none where it goes up, or is relative.
fn path_components(path: &str) -> Option<Vec<String>> {
    let parts = path.strip_prefix('/')?.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.map(|part| (part != "..").then(|| part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed_sources(prefixes: &[&str]) -> SourceAllowlist {
        SourceAllowlist::new(prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect())
    }

    #[test]
    fn hub_names_are_told_from_paths() {
        for hub in ["org/name", "org/name@main", "org/name@refs/pr/1", "hf://org/name", "meta-org/some.lora"] {
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

    #[test]
    fn what_is_allowed_goes_by_whole_parts_and_nothing_climbs_out() {
        let allowed = allowed_sources(&["/adapters/", "/mnt//./loras", "my-org/", "hf://other/one"]);
        for source in [
            "/adapters",
            "/adapters/a",
            "//adapters/./a/",
            "/mnt/loras/x/y",
            "my-org/any",
            "my-org/any@v1",
            "hf://my-org/any",
            "other/one",
            "hf://other/one@main",
        ] {
            assert!(allowed.permits(&SourceRef::parse(source)), "{source}");
        }
        for source in [
            "/adapters-of-others/a",
            "/adapters/../etc",
            "/adapters/a/..",
            "/",
            "/mnt",
            "adapters",
            "./adapters/a",
            "my-org2/any",
            "other/one-more",
            "other/two",
            "hf://my-org",
            "hf://my-org/..",
            "hf://my-org/a/b",
            "hf:///adapters/a",
            "../adapters/a",
            "",
            "~/adapters",
        ] {
            assert!(!allowed.permits(&SourceRef::parse(source)), "{source}");
        }
    }

    #[test]
    fn a_prefix_that_means_nothing_is_refused_with_an_example() {
        for text in ["", "adapters", "../x", "org/a/b", "~/x", "org/name@main", "/a/../b", "./", "s3://bucket/a"] {
            let error = text.parse::<SourcePrefix>().unwrap_err();
            assert!(error.contains(text) && (error.contains("like my-org/") || error.contains("`..`")), "{error}");
        }
    }

    #[test]
    fn nothing_is_allowed_by_an_empty_list_and_the_words_say_what_is() {
        assert!(!allowed_sources(&[]).permits(&SourceRef::parse("/adapters/a")));
        let sources =
            AdapterSourcePolicy { allowed: Some(allowed_sources(&["/adapters", "org/"])), adapter_source: None };
        let origin = sources.resolve(&AdapterId::new("v1").unwrap(), "/tmp/v1");
        assert_eq!(origin.root, "/tmp/v1");
        let words = origin.refusal.unwrap();
        assert!(words.contains("`v1` comes from `/tmp/v1`") && words.contains("/adapters, org/ only"), "{words}");
    }
}
