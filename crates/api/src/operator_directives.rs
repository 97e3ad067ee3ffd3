//! The operator's directives to sidecars: the key `rollora.yaml`, next to the user's key in the adapters ConfigMap.
//!
//! The directives reach a sidecar through the same mount or watch as the user's file and are part of the same hash.
//! Without them a sidecar behaves like lora-syncer.

use crate::{names::AdapterId, yaml};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Content of the key `rollora.yaml`. Lists are written sorted, so that equal content has equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OperatorDirectives {
    /// Patterns with one `*`, and ids, that Rollouts manage. Matching ids wait for their admission.
    pub managed: Vec<String>,
    /// Managed ids that every server may load.
    pub admitted: Vec<AdapterId>,
    /// Managed ids that one server each may load to prove them; for a rejected id, the server that tried it.
    pub pilots: Vec<Pilot>,
    /// Ids that have weight or that a rollback could need. Sidecars never unload them and load them again after a
    /// restart of the server.
    pub serving: Vec<AdapterId>,
    /// Ids that failed. No sidecar loads them, and they are unloaded when idle.
    pub rejected: Vec<AdapterId>,
}

/// Pilot of an adapter: the one server that loads it first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Pilot {
    /// Id of the adapter that is tried.
    pub id: AdapterId,
    /// Name of the pod (for `rollora local`: of the server) that tries it.
    #[cfg_attr(feature = "kube", schemars(length(max = 253)))]
    pub pod: String,
}

/// Whether one server may load an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// No Rollout manages the id, or it is admitted, or this server is its pilot.
    Granted,
    /// A Rollout manages the id and has not admitted it yet.
    Waiting,
    /// The id failed before; no server may load it.
    Rejected,
}

/// Error of a key `rollora.yaml` that cannot be parsed. The operator then overwrites the key; a sidecar keeps the last
/// valid one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse the key `rollora.yaml`, line {line}: {message}")]
pub struct DirectivesError {
    /// Line of the error, from 1; 1 if it is not known.
    pub line: usize,
    /// What is wrong at that line.
    pub message: String,
}

impl OperatorDirectives {
    /// Parses the text of the key. Unknown fields are ignored, because later versions may add some; an empty text gives
    /// empty directives.
    pub fn parse(text: &str) -> Result<Self, DirectivesError> {
        let decoded = yaml::decode(yaml::without_bom(text));
        decoded.map_err(|error| DirectivesError { line: error.line.unwrap_or(1), message: error.message })
    }

    /// Formats the directives as YAML. Equal content gives equal bytes, whatever the order of the lists.
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

    /// Adds the entries of `other` to these directives.
    pub fn extend(&mut self, other: Self) {
        self.managed.extend(other.managed);
        self.admitted.extend(other.admitted);
        self.pilots.extend(other.pilots);
        self.serving.extend(other.serving);
        self.rejected.extend(other.rejected);
    }

    /// Returns the ids that the server `pod` must try as their pilot.
    pub fn pilot_ids<'a>(&'a self, pod: &'a str) -> impl Iterator<Item = &'a AdapterId> {
        let here = self.pilots.iter().filter(move |pilot| pilot.pod == pod).map(|pilot| &pilot.id);
        here.filter(|id| !self.rejected.contains(id))
    }

    /// Returns whether the server `pod` may load `id`.
    pub fn admission(&self, id: &AdapterId, pod: &str) -> Admission {
        if self.rejected.contains(id) {
            return Admission::Rejected;
        }
        let managed = self.managed.iter().any(|pattern| matches_pattern(pattern, id.as_str()));
        let pilot = self.pilot_ids(pod).any(|pilot_id| pilot_id == id);
        if !managed || pilot || self.admitted.contains(id) { Admission::Granted } else { Admission::Waiting }
    }
}

const HEADER: &str = "# Written by Rollora for its sidecars: manual changes are overwritten.\n";

fn yaml_list(name: &str, items: &[String]) -> String {
    if items.is_empty() {
        return format!("{name}: []\n");
    }
    items.iter().fold(format!("{name}:\n"), |text, item| format!("{text}- {item}\n"))
}

/// Returns whether `name` matches `pattern`, in which the first `*` stands for any text, including none.
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
    fn yaml_is_sorted_and_quoted() {
        insta::assert_snapshot!(example_directives().to_yaml(), @r##"
        # Written by Rollora for its sidecars: manual changes are overwritten.
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
    fn empty_text_and_unknown_fields_are_accepted() {
        assert_eq!(OperatorDirectives::parse("").unwrap(), OperatorDirectives::default());
        let key = OperatorDirectives::parse("serving: [v1]\nlater: {a: 1}\n").unwrap();
        assert_eq!(key, OperatorDirectives { serving: vec![id("v1")], ..OperatorDirectives::default() });
    }

    #[test]
    fn parse_error_names_the_line() {
        let error = OperatorDirectives::parse("serving: []\nadmitted: [',']\n").unwrap_err();
        assert_eq!(error.line, 2);
        assert!(error.to_string().contains("commas"), "{error}");
    }

    #[test]
    fn server_may_load_unmanaged_admitted_and_pilot_ids() {
        let mut key = OperatorDirectives { managed: vec!["v*".to_owned()], ..example_directives() };
        key.rejected = vec![id("v9"), id("other")];
        let cases = [
            ("unmanaged", "a", Admission::Granted),
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
    fn star_matches_any_text_between_prefix_and_suffix() {
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
        fn written_yaml_parses_back(key in any_directives()) {
            prop_assert_eq!(OperatorDirectives::parse(&key.to_yaml()).unwrap(), key);
        }

        #[test]
        fn order_and_duplicates_do_not_change_the_yaml(key in any_directives()) {
            let mut other = key.clone();
            other.serving.reverse();
            other.serving.extend(key.serving.first().cloned());
            other.pilots.reverse();
            prop_assert_eq!(other.to_yaml(), key.to_yaml());
        }
    }
}
