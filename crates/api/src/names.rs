//! Names: newtypes that are parsed once at the edge, and the constants that everybody must spell alike.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The API group and version of Rollora's own kinds.
pub const API_VERSION: &str = "rollora.dev/v1alpha1";
/// On a rewrite with two targets that is adopted: which of the two is stable.
pub const STABLE_ANNOTATION: &str = "rollora.dev/stable";
/// On a Rollout: what a person asks for, see [`crate::rollout::Intent`].
pub const INTENT_ANNOTATION: &str = "rollora.dev/intent";
/// On a rewrite, followed by the Rollout's UID: the sequence of the last change of weights.
pub const SEQUENCE_ANNOTATION_PREFIX: &str = "weights.rollora.dev/";
/// On a rewrite: the request header whose value keeps a client on one target.
pub const STICKY_HEADER_ANNOTATION: &str = "rollora.dev/sticky-header";
/// The response header that names the version that served a request.
pub const TARGET_HEADER: &str = "x-rollora-target";
/// On a Rollout while traffic is split: its deletion first gives everything back to stable.
pub const FINALIZER: &str = "rollora.dev/traffic";
/// On a pod that executes rewrites (`rollora-ext-proc`): the InferencePool that it does so for.
pub const ROUTER_POOL_LABEL: &str = "rollora.dev/router-for";
/// On such a pod: the namespace of that InferencePool, where it is another one than the pod's own.
pub const ROUTER_NAMESPACE_ANNOTATION: &str = "rollora.dev/router-for-namespace";
/// On such a pod: where `/rules` is answered; [`ROUTER_PORT`] where absent.
pub const ROUTER_PORT_ANNOTATION: &str = "rollora.dev/router-port";
/// See [`ROUTER_PORT_ANNOTATION`].
pub const ROUTER_PORT: u16 = 9090;
/// On a pod in which sidecars run, with any value: they are asked before an adapter leaves the ConfigMap that they read, in
/// whichever pool the pod is, or in none.
pub const SIDECAR_LABEL: &str = "rollora.dev/sidecar";
/// On a pod: the ConfigMap that its sidecars watch, as `NAME` or `NAMESPACE/NAME`, where the pod does not mount it.
pub const ADAPTERS_ANNOTATION: &str = "rollora.dev/adapters";
/// On a pod with a sidecar: where it answers `/status`; [`SIDECAR_PORT`] where absent.
pub const SIDECAR_PORT_ANNOTATION: &str = "rollora.dev/sidecar-port";
/// See [`SIDECAR_PORT_ANNOTATION`].
pub const SIDECAR_PORT: u16 = 8080;
/// The key of the ConfigMap that belongs to the operator, see [`crate::operator_key`].
pub const DIRECTIVES_KEY: &str = "rollora.yaml";

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was written.
    #[error("the {kind} is empty: write the name")]
    Empty {
        /// What the name is of.
        kind: &'static str,
    },
    /// Longer than 253 bytes.
    #[error("the {kind} `{start}…` has {length} bytes: at most 253 are allowed")]
    TooLong {
        /// What the name is of.
        kind: &'static str,
        /// The first characters.
        start: String,
        /// The length in bytes.
        length: usize,
    },
    /// A character that makes the name ambiguous somewhere on its way.
    #[error("the {kind} `{name}` contains {character:?}: commas and control characters are not allowed")]
    BadCharacter {
        /// What the name is of.
        kind: &'static str,
        /// The whole name.
        name: String,
        /// The first character that is refused.
        character: char,
    },
}

fn check_name(kind: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { kind });
    }
    if name.len() > 253 {
        let start = name.chars().take(32).collect();
        return Err(NameError::TooLong { kind, start, length: name.len() });
    }
    // vLLM's `lora_requests_info` joins names by commas: a comma in a name would be ambiguous there.
    match name.chars().find(|c| *c == ',' || c.is_control()) {
        Some(character) => Err(NameError::BadCharacter { kind, name: name.to_owned(), character }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `name`: 1 to 253 bytes, no commas, no control characters.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check_name($kind, &name)?;
                Ok(Self(name))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        #[cfg(feature = "kube")]
        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                crate::schema::name(concat!("the ", $kind))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
    };
}

name! {
    /// The id of an adapter: an immutable version, for example `small-segment-lora-v2`.
    AdapterId, "adapter id"
}
name! {
    /// The name that clients send as `model`.
    ModelName, "model name"
}

/// A rising number: one for every change of weights that a Rollout makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Sequence(pub i64);

impl Sequence {
    /// The sequence of the next change.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The annotation on a rewrite that holds the sequence of the Rollout with this UID.
pub fn sequence_annotation(rollout_uid: &str) -> String {
    format!("{SEQUENCE_ANNOTATION_PREFIX}{rollout_uid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_servers_and_metrics_can_carry_are_accepted() {
        for name in ["a", "small-segment-lora-v2", "org/name@rev", "name with spaces", "é", &"x".repeat(253)] {
            assert_eq!(AdapterId::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_name_that_is_refused_says_what_to_change() {
        let long = "x".repeat(254);
        for (name, expected) in [
            ("", "the model name is empty: write the name"),
            ("a,b", "the model name `a,b` contains ',': commas and control characters are not allowed"),
            ("a\nb", "the model name `a\nb` contains '\\n': commas and control characters are not allowed"),
            (&long, "the model name `xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…` has 254 bytes: at most 253 are allowed"),
        ] {
            assert_eq!(ModelName::new(name).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn a_name_is_checked_when_it_is_decoded() {
        assert!(serde_json::from_str::<AdapterId>("\"a,b\"").is_err());
        let id: AdapterId = serde_json::from_str("\"v1\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"v1\"");
    }

    #[test]
    fn a_sequence_rises_and_its_annotation_names_the_rollout() {
        assert_eq!(Sequence(1).next(), Sequence(2));
        assert_eq!(sequence_annotation("1234"), "weights.rollora.dev/1234");
    }
}
