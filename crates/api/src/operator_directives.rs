//! The operator's own key, `rollora.yaml`, beside the user's in the adapters ConfigMap: what the operator tells the
//! sidecars. It travels by the same mount, watch and hash as the user's file. Without it a sidecar is the plain drop-in.

use crate::{names::AdapterId, yaml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What the operator tells the sidecars. Lists are sorted, so that equal content has equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OperatorDirectives {
    /// Patterns (`*` once) and ids that Rollouts govern: such ids wait for their admission.
    pub managed: Vec<String>,
    /// Governed ids that every server may load.
    pub admitted: Vec<AdapterId>,
    /// Governed ids that one server each may load, to prove them; of a rejected one, where it was tried.
    pub pilots: Vec<Pilot>,
    /// Ids that have weight, or that a rollback could need: never unloaded, loaded again after a restart.
    pub serving: Vec<AdapterId>,
    /// Ids that failed: not loaded anywhere, unloaded when idle.
    pub rejected: Vec<AdapterId>,
}

/// One id on trial on one server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Pilot {
    /// The adapter on trial.
    pub id: AdapterId,
    /// The pod (on one machine: the server's name) that tries it.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub pod: String,
}

/// Whether one server may load an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// No Rollout governs the id, or it is admitted, or this server is its pilot.
    Granted,
    /// Governed, and not admitted yet.
    Waiting,
    /// It failed before.
    Rejected,
}

/// A key that cannot be read. The operator writes it anew; a sidecar keeps the last good one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the operator's key `rollora.yaml`, line {line}: {message}")]
pub struct DirectivesError {
    /// The line, from 1; 1 where it is not known.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

impl OperatorDirectives {
    /// Reads the key's text. Fields of later versions are ignored; no text at all is the empty key.
    pub fn parse(text: &str) -> Result<Self, DirectivesError> {
        let decoded = yaml::decode(yaml::without_bom(text));
        decoded.map_err(|error| DirectivesError { line: error.line.unwrap_or(1), message: error.message })
    }

    /// The key as text: equal content gives equal bytes, in whatever order it was put together.
    pub fn to_yaml(&self) -> String {
        let mut text = String::from(HEADER);
        for (name, ids) in [
            ("managed", self.managed.iter().map(String::as_str).collect::<BTreeSet<_>>()),
            ("admitted", self.admitted.iter().map(AdapterId::as_str).collect()),
            ("serving", self.serving.iter().map(AdapterId::as_str).collect()),
            ("rejected", self.rejected.iter().map(AdapterId::as_str).collect()),
        ] {
            let ids: Vec<String> = ids.into_iter().map(yaml::quoted).collect();
            text.push_str(&yaml_list(name, &ids));
        }
        let pilots: BTreeSet<&Pilot> = self.pilots.iter().collect();
        let pilot =
            |pilot: &&Pilot| format!("{{id: {}, pod: {}}}", yaml::quoted(pilot.id.as_str()), yaml::quoted(&pilot.pod));
        text.push_str(&yaml_list("pilots", &pilots.iter().map(pilot).collect::<Vec<_>>()));
        text
    }

    /// Takes in the entries of another key.
    pub fn extend(&mut self, other: Self) {
        self.managed.extend(other.managed);
        self.admitted.extend(other.admitted);
        self.pilots.extend(other.pilots);
        self.serving.extend(other.serving);
        self.rejected.extend(other.rejected);
    }

    /// What the server `pod` is to try.
    pub fn pilot_ids<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = &'a AdapterId> {
        let here = self.pilots.iter().filter(move |pilot| pilot.pod == pod).map(|pilot| &pilot.id);
        here.filter(|id| !self.rejected.contains(id))
    }

    /// Whether the server `pod` may load `id`.
    pub fn admission(&self, id: &AdapterId, pod: &str) -> Admission {
        if self.rejected.contains(id) {
            return Admission::Rejected;
        }
        let governed = self.managed.iter().any(|pattern| matches_pattern(pattern, id.as_str()));
        let pilot = self.pilot_ids(pod).any(|trial| trial == id);
        if !governed || pilot || self.admitted.contains(id) { Admission::Granted } else { Admission::Waiting }
    }
}

/// What a person who opens the ConfigMap should know.
const HEADER: &str = "# Written by Rollora for its sidecars: changes made here are undone.\n";

fn yaml_list(name: &str, items: &[String]) -> String {
    if items.is_empty() {
        return format!("{name}: []\n");
    }
    items.iter().fold(format!("{name}:\n"), |text, item| format!("{text}- {item}\n"))
}

/// Whether `name` matches `pattern`, in which the first `*` stands for any text, also none.
pub fn matches_pattern(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => {
            name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(text: &str) -> AdapterId {
        AdapterId::new(text).unwrap()
    }

    fn example_directives() -> OperatorDirectives {
        OperatorDirectives {
            managed: vec!["small-segment-lora-v*".to_owned(), "a \"quoted\" id".to_owned()],
            admitted: vec![id("v2"), id("v1")],
            pilots: vec![Pilot { id: id("v3"), pod: "127.0.0.1:8000".to_owned() }],
            serving: vec![id("v1")],
            rejected: vec![],
        }
    }

    #[test]
    fn the_text_is_what_a_person_expects() {
        insta::assert_snapshot!(example_directives().to_yaml(), @r##"
        # Written by Rollora for its sidecars: changes made here are undone.
        managed:
        - "a \"quoted\" id"
        - "small-segment-lora-v*"
        admitted:
        - "v1"
        - "v2"
        serving:
        - "v1"
        rejected: []
        pilots:
        - {id: "v3", pod: "127.0.0.1:8000"}
        "##);
    }

    #[test]
    fn no_text_is_the_empty_key_and_unknown_fields_are_ignored() {
        assert_eq!(OperatorDirectives::parse("").unwrap(), OperatorDirectives::default());
        let key = OperatorDirectives::parse("serving: [v1]\nlater: {a: 1}\n").unwrap();
        assert_eq!(key, OperatorDirectives { serving: vec![id("v1")], ..OperatorDirectives::default() });
    }

    #[test]
    fn a_key_that_cannot_be_read_names_its_line() {
        let error = OperatorDirectives::parse("serving: []\nadmitted: [',']\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.to_string().contains("commas"), "{error}");
    }

    #[test]
    fn a_server_loads_what_is_free_admitted_or_on_trial_there() {
        let mut key = OperatorDirectives { managed: vec!["v*".to_owned()], ..example_directives() };
        key.rejected = vec![id("v9"), id("other")];
        let cases = [
            ("free", "a", Admission::Granted),
            ("v1", "a", Admission::Granted),
            ("v3", "127.0.0.1:8000", Admission::Granted),
            ("v3", "127.0.0.1:8001", Admission::Waiting),
            ("v4", "a", Admission::Waiting),
            ("v9", "a", Admission::Rejected),
            ("other", "a", Admission::Rejected),
        ];
        for (name, pod, expected) in cases {
            assert_eq!(key.admission(&id(name), pod), expected, "{name} on {pod}");
        }
    }

    #[test]
    fn a_pattern_matches_what_begins_and_ends_as_it_does() {
        for (pattern, name, expected) in [
            ("a-v*", "a-v1", true),
            ("a-v*", "a-v", true),
            ("a-v*", "b-v1", false),
            ("*-lora", "x-lora", true),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches_pattern(pattern, name), expected, "{pattern} {name}");
        }
    }

    fn any_id() -> impl Strategy<Value = AdapterId> {
        "[^,\\p{Cc}]{1,12}".prop_map(|text| AdapterId::new(text).unwrap())
    }

    fn any_directives() -> impl Strategy<Value = OperatorDirectives> {
        let ids = || prop::collection::btree_set(any_id(), 0..4).prop_map(|ids| ids.into_iter().collect::<Vec<_>>());
        let pilots = prop::collection::btree_set((any_id(), "\\PC{0,12}"), 0..3);
        (prop::collection::btree_set("\\PC{0,12}", 0..3), ids(), pilots, ids(), ids()).prop_map(
            |(managed, admitted, pilots, serving, rejected)| OperatorDirectives {
                managed: managed.into_iter().collect(),
                admitted,
                pilots: pilots.into_iter().map(|(id, pod)| Pilot { id, pod }).collect(),
                serving,
                rejected,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(key in any_directives()) {
            prop_assert_eq!(OperatorDirectives::parse(&key.to_yaml()).unwrap(), key);
        }

        #[test]
        fn order_and_repetition_do_not_change_the_bytes(key in any_directives()) {
            let mut other = key.clone();
            other.serving.reverse();
            other.serving.extend(key.serving.first().cloned());
            other.pilots.reverse();
            prop_assert_eq!(other.to_yaml(), key.to_yaml());
        }
    }
}
