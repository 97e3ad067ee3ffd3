//! Resolves the desired adapter: the id that the Rollout names, or the highest listed version that it follows.
//!
//! Invariant: if the file cannot be read, or nothing in it matches, the desired adapter does not change.

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

/// The result of resolving `spec.adapter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DesiredAdapter {
    /// The id of the desired adapter.
    Id(AdapterId),
    /// The adapter that was desired before stays, and why nothing could be resolved.
    Unchanged(String),
}

/// Resolves the choice against the file. `file` is an error if the adapters file cannot be used.
pub(crate) fn resolve(choice: &AdapterChoice, file: Result<&AdaptersFile, String>) -> DesiredAdapter {
    if let Some(id) = &choice.id {
        return DesiredAdapter::Id(id.clone());
    }
    let file = match file {
        Ok(file) => file,
        Err(why) => return DesiredAdapter::Unchanged(why),
    };
    let Some(follow) = &choice.follow else {
        return DesiredAdapter::Unchanged("spec.adapter names no adapter: set follow or id".to_owned());
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

/// Returns a reason and a message if the file differs from what the spec suggests, although an adapter is desired.
pub(crate) fn spec_warning(choice: &AdapterChoice, file: &AdaptersFile) -> Option<(&'static str, String)> {
    let ignored = ignored_ids_message(choice, file).map(|message| (reason::NO_MATCH, message));
    ignored.or_else(|| Some((reason::INVALID, source_mismatch(choice, file)?)))
}

/// Names listed ids that fit the pattern but are no versions, so that they are never desired.
fn ignored_ids_message(choice: &AdapterChoice, file: &AdaptersFile) -> Option<String> {
    let follow = choice.follow.as_ref()?;
    let resolution = highest(follow, file);
    let ids: Vec<&str> = resolution.ignored.iter().map(AdapterId::as_str).collect();
    (resolution.id.is_some() && !ids.is_empty()).then(|| {
        let pattern = &follow.pattern;
        format!("ids are ignored, because only digits and dots may stand for the * of {pattern}: {}", text::list(&ids))
    })
}

/// Explains that the adapter is listed with a source that differs from the one in the spec.
fn source_mismatch(choice: &AdapterChoice, file: &AdaptersFile) -> Option<String> {
    let (id, source) = (choice.id.as_ref()?, choice.source.as_ref()?);
    let listed = &file.ensure_exist.iter().find(|entry| entry.id == *id)?.source;
    (listed != source).then(|| {
        format!(
            "spec.adapter.source, {source}, is ignored: {id} is listed with the source {listed}, and the source of \
             an id never changes: make them equal, or list the new weights under a new id"
        )
    })
}

fn no_match_message(pattern: &str, ignored: &[AdapterId]) -> String {
    match ignored.first() {
        None => format!("no id under ensureExist matches {pattern}: list one, or fix spec.adapter"),
        Some(id) => format!(
            "no id under ensureExist matches {pattern} with digits and dots for the * ({id} is ignored): list one"
        ),
    }
}

/// Returns what to do so that the file lists the adapter; `None` if it does.
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
    fn source_mismatch_warning_names_both_sources() {
        let listed = "    - {id: a-v1, source: org/a}\n";
        assert_eq!(warning_for(r#"{"id": "a-v1"}"#, listed), None);
        assert_eq!(warning_for(r#"{"id": "a-v1", "source": "org/a"}"#, listed), None);
        assert_eq!(warning_for(r#"{"id": "a-v2", "source": "org/b"}"#, listed), None);
        let (reason, message) = warning_for(r#"{"id": "a-v1", "source": "org/b"}"#, listed).unwrap();
        assert_eq!(reason, reason::INVALID);
        let prefix = "spec.adapter.source, org/b, is ignored: a-v1 is listed with the source org/a";
        assert!(message.starts_with(prefix), "{message}");
    }

    #[test]
    fn ids_that_are_no_versions_cause_a_warning() {
        let follow = r#"{"follow": {"pattern": "a-v*"}}"#;
        let entry = |id: &str| format!("    - {{id: {id}, source: /a}}\n");
        assert_eq!(warning_for(follow, &entry("a-v1")), None);
        assert_eq!(warning_for(follow, &entry("a-v2-rc1")), None, "the message that nothing matches names it already");
        let (reason, message) = warning_for(follow, &(entry("a-v1") + &entry("a-v2-rc1"))).unwrap();
        assert_eq!((reason, message.ends_with("of a-v*: a-v2-rc1")), (reason::NO_MATCH, true), "{message}");
    }
}
