//! Resolves the `source` of an adapter entry on this machine: whether it is allowed, whether it must be fetched, and
//! what vLLM gets. Pure: only the text counts, so links in the file system are not followed.

use rollora_adapter_source::{AdapterSource, SourceRef};
use rollora_api::names::AdapterId;
use std::{fmt, str::FromStr, sync::Arc};

/// Returns whether vLLM would download `source` from a hub: `org/name`, optionally with a revision, or an `hf://` URL.
///
/// A relative path of exactly two components cannot be distinguished and counts as a hub name. That only means that
/// such loads go one at a time.
pub fn is_hub_name(source: &str) -> bool {
    SourceRef::parse(source).is_hub()
}

/// Returns whether a registered `root` is what `source` names. A trailing slash makes no difference.
pub fn same_source(root: &str, source: &str) -> bool {
    root.trim_end_matches('/') == source.trim_end_matches('/')
}

/// Which sources this machine allows, and which it fetches.
#[derive(Debug, Clone, Default)]
pub struct AdapterSourcePolicy {
    /// Fetches adapters from a hub, so that vLLM never downloads. If `None`, vLLM gets hub names.
    pub adapter_source: Option<Arc<dyn AdapterSource>>,
    /// The sources that may be loaded; if `None`, all.
    pub allowed: Option<SourceAllowlist>,
}

/// What one `source` resolves to on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedSource {
    /// The path or name that vLLM gets, and lists as the root of the adapter.
    pub root: String,
    /// The hub source to fetch before a load; `None` if no fetch is needed.
    pub fetch_source: Option<SourceRef>,
    /// Why the source must not be used; `None` if it is allowed.
    pub refusal: Option<String>,
}

impl AdapterSourcePolicy {
    /// Resolves `source`, which the file names for `id`.
    pub fn resolve(&self, id: &AdapterId, source: &str) -> ResolvedSource {
        let parsed = SourceRef::parse(source);
        let allowed = self.allowed.as_ref().filter(|allowed| !allowed.permits(&parsed));
        let refusal = allowed.map(|allowed| {
            format!(
                "adapter `{id}` has source `{source}`, and this sidecar loads from {allowed} only: change the source, \
                 or permit it with --allow-source"
            )
        });
        match self.adapter_source.as_ref().filter(|_| parsed.is_hub()) {
            Some(adapter_source) => {
                let root = adapter_source.local_path(&parsed).to_string_lossy().into_owned();
                ResolvedSource { root, fetch_source: Some(parsed), refusal }
            }
            None => ResolvedSource { root: source.to_owned(), fetch_source: None, refusal },
        }
    }
}

/// The list of source prefixes that adapters may be loaded from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceAllowlist(Vec<SourcePrefix>);

/// One prefix of allowed sources: a folder, a hub organization, or one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourcePrefix {
    /// The components of an absolute path; everything below it is allowed.
    Path(Vec<String>),
    /// All repositories of a hub organization.
    Organization(String),
    /// One repository `org/name`, at any revision.
    Repository(String),
}

impl SourceAllowlist {
    /// Allows every source that matches one of `prefixes`.
    pub fn new(prefixes: Vec<SourcePrefix>) -> Self {
        Self(prefixes)
    }

    fn permits(&self, source: &SourceRef) -> bool {
        match source {
            SourceRef::Path(path) => path_components(path).is_some_and(|components| {
                self.0
                    .iter()
                    .any(|prefix| matches!(prefix, SourcePrefix::Path(folder) if components.starts_with(folder)))
            }),
            SourceRef::Hub(name) => name.repository.split_once('/').is_some_and(|(organization, rest)| {
                let is_valid = |part: &str| !part.is_empty() && part != "." && part != "..";
                is_valid(rest)
                    && !rest.contains('/')
                    && self.0.iter().any(|prefix| match prefix {
                        SourcePrefix::Path(_) => false,
                        SourcePrefix::Organization(allowed) => allowed == organization,
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
                SourcePrefix::Path(components) => write!(f, "{separator}/{}", components.join("/"))?,
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
        let is_valid = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['.', '~'])
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        match name.split_once('/') {
            Some((organization, "")) if is_valid(organization) => Ok(Self::Organization(organization.to_owned())),
            Some((organization, rest)) if is_valid(organization) && is_valid(rest) => {
                Ok(Self::Repository(name.to_owned()))
            }
            _ => Err(format!(
                "`{text}` is not a source prefix: write an absolute path like /adapters, a hub organization with a \
                 trailing slash like my-org/, or a repository like my-org/my-adapter"
            )),
        }
    }
}

/// Splits an absolute path without empty and `.` components; `None` if it is relative or contains `..`.
fn path_components(path: &str) -> Option<Vec<String>> {
    let components = path.strip_prefix('/')?.split('/').filter(|part| !part.is_empty() && *part != ".");
    components.map(|part| (part != "..").then(|| part.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed_sources(prefixes: &[&str]) -> SourceAllowlist {
        SourceAllowlist::new(prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect())
    }

    #[test]
    fn hub_names_are_distinguished_from_paths() {
        for hub in ["org/name", "org/name@main", "org/name@refs/pr/1", "hf://org/name", "meta-org/some.lora"] {
            assert!(is_hub_name(hub), "{hub}");
        }
        for path in ["/adapters/a1", "./a1", "../a1", "~/a1", "a1", "tiny/adapters/a1", "adapters/", "/a", ""] {
            assert!(!is_hub_name(path), "{path}");
        }
    }

    #[test]
    fn trailing_slash_is_no_change_of_source() {
        assert!(same_source("/adapters/a1/", "/adapters/a1"));
        assert!(!same_source("/adapters/a1", "/adapters/a2"));
    }

    #[test]
    fn allowlist_matches_whole_components_and_rejects_dotdot() {
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
    fn invalid_prefix_is_rejected_with_an_example() {
        for text in ["", "adapters", "../x", "org/a/b", "~/x", "org/name@main", "/a/../b", "./", "s3://bucket/a"] {
            let error = text.parse::<SourcePrefix>().unwrap_err();
            assert!(error.contains(text) && (error.contains("like my-org/") || error.contains("`..`")), "{error}");
        }
    }

    #[test]
    fn empty_list_allows_nothing_and_refusal_names_allowed_sources() {
        assert!(!allowed_sources(&[]).permits(&SourceRef::parse("/adapters/a")));
        let policy =
            AdapterSourcePolicy { allowed: Some(allowed_sources(&["/adapters", "org/"])), adapter_source: None };
        let resolved = policy.resolve(&AdapterId::new("v1").unwrap(), "/tmp/v1");
        assert_eq!(resolved.root, "/tmp/v1");
        let message = resolved.refusal.unwrap();
        assert!(
            message.contains("adapter `v1` has source `/tmp/v1`") && message.contains("/adapters, org/ only"),
            "{message}"
        );
    }
}
