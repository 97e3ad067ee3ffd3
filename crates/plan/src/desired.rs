//! Which adapter is wanted: exactly the one that the Rollout names, or the highest listed version that it follows.
//!
//! Invariant: a file that cannot be read, or in which nothing matches, changes nothing.

use crate::{observed::AdapterListing, text};
use rollora_api::{
    adapters::AdaptersFile,
    condition::reason,
    names::AdapterId,
    rollout::{
        follow::{self, Resolution},
        spec::{AdapterChoice, Follow},
    },
};

/// What a Rollout wants, as far as the adapters file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DesiredAdapter {
    /// This adapter.
    Id(AdapterId),
    /// Whatever was wanted before, because of this.
    Unchanged(String),
}

/// Resolves the choice against the file; `file` is why there is none, where there is none.
pub(crate) fn resolve(choice: &AdapterChoice, file: Result<&AdaptersFile, String>) -> DesiredAdapter {
    if let Some(id) = &choice.id {
        return DesiredAdapter::Id(id.clone());
    }
    let file = match file {
        Ok(file) => file,
        Err(why) => return DesiredAdapter::Unchanged(why),
    };
    let Some(follow) = &choice.follow else {
        return DesiredAdapter::Unchanged("spec.adapter names no adapter: write follow or id".to_owned());
    };
    let resolution = highest(follow, file);
    resolution.id.map_or_else(
        || DesiredAdapter::Unchanged(no_match_message(&follow.pattern, &resolution.ignored)),
        DesiredAdapter::Id,
    )
}

fn highest(follow: &Follow, file: &AdaptersFile) -> Resolution {
    let listed = file
        .ensure_exist
        .iter()
        .map(|entry| &entry.id)
        .filter(|id| AdapterListing::of(id, file) == AdapterListing::EnsureExist);
    follow::highest_version(&follow.pattern, follow.order, listed)
}

/// What in the file is other than whoever wrote the Rollout may think, beside what is wanted: a reason, and words.
pub(crate) fn spec_warning(choice: &AdapterChoice, file: &AdaptersFile) -> Option<(&'static str, String)> {
    let ignored = ignored_ids_message(choice, file).map(|words| (reason::NO_MATCH, words));
    ignored.or_else(|| Some((reason::INVALID, source_mismatch(choice, file)?)))
}

/// What is listed under the pattern and will never be wanted.
fn ignored_ids_message(choice: &AdapterChoice, file: &AdaptersFile) -> Option<String> {
    let follow = choice.follow.as_ref()?;
    let resolution = highest(follow, file);
    let ids: Vec<&str> = resolution.ignored.iter().map(AdapterId::as_str).collect();
    (resolution.id.is_some() && !ids.is_empty()).then(|| {
        let pattern = &follow.pattern;
        format!("ignored, because only digits and dots may stand for the * of {pattern}: {}", text::list(&ids))
    })
}

/// The adapter is listed with another source than the Rollout names.
fn source_mismatch(choice: &AdapterChoice, file: &AdaptersFile) -> Option<String> {
    let (id, source) = (choice.id.as_ref()?, choice.source.as_ref()?);
    let listed = &file.ensure_exist.iter().find(|entry| entry.id == *id)?.source;
    (listed != source).then(|| {
        format!(
            "spec.adapter.source, {source}, is ignored: {id} is listed with the source {listed}, and an id has one source \
             for ever: make them equal, or give the new weights a new id"
        )
    })
}

fn no_match_message(pattern: &str, ignored: &[AdapterId]) -> String {
    match ignored.first() {
        None => format!("no id under ensureExist matches {pattern}: list one, or mend spec.adapter"),
        Some(id) => format!("no id under ensureExist matches {pattern} with digits and dots ({id} is ignored)"),
    }
}

/// Whether the file lists the adapter, and if not, what to do; nothing where the file cannot be read.
pub(crate) fn not_listed_message(id: &AdapterId, file: &AdaptersFile) -> Option<String> {
    match AdapterListing::of(id, file) {
        AdapterListing::EnsureExist => None,
        AdapterListing::EnsureNotExist => Some(format!("{id} is under ensureNotExist: move it to ensureExist")),
        AdapterListing::Both => Some(format!("{id} is in both lists: remove it from ensureNotExist")),
        AdapterListing::Absent => Some(format!("{id} is not listed: add it under ensureExist")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning_for(choice: &str, exist: &str) -> Option<(&'static str, String)> {
        let text = format!("vLLMLoRAConfig:\n  ensureExist:\n    models:\n{exist}");
        let file = AdaptersFile::parse(&text).unwrap().file;
        spec_warning(&serde_json::from_str(choice).unwrap(), &file)
    }

    #[test]
    fn a_source_that_is_not_the_listed_one_is_said_with_both() {
        let listed = "    - {id: a-v1, source: org/a}\n";
        assert_eq!(warning_for(r#"{"id": "a-v1"}"#, listed), None);
        assert_eq!(warning_for(r#"{"id": "a-v1", "source": "org/a"}"#, listed), None);
        assert_eq!(warning_for(r#"{"id": "a-v2", "source": "org/b"}"#, listed), None);
        let (reason, words) = warning_for(r#"{"id": "a-v1", "source": "org/b"}"#, listed).unwrap();
        assert_eq!(reason, reason::INVALID);
        let begin = "spec.adapter.source, org/b, is ignored: a-v1 is listed with the source org/a";
        assert!(words.starts_with(begin), "{words}");
    }

    #[test]
    fn what_is_no_version_is_said_where_something_else_is_wanted() {
        let follow = r#"{"follow": {"pattern": "a-v*"}}"#;
        let entry = |id: &str| format!("    - {{id: {id}, source: /a}}\n");
        assert_eq!(warning_for(follow, &entry("a-v1")), None);
        assert_eq!(warning_for(follow, &entry("a-v2-rc1")), None, "that nothing matches says it");
        let (reason, words) = warning_for(follow, &(entry("a-v1") + &entry("a-v2-rc1"))).unwrap();
        assert_eq!((reason, words.ends_with("of a-v*: a-v2-rc1")), (reason::NO_MATCH, true), "{words}");
    }
}
