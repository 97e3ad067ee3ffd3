//! Names: newtypes that are validated once at the edge, and the annotations, labels, headers and ports that all
//! programs share.

use serde::{Deserialize, Serialize};
use std::fmt;

/// API group and version of Rollora's own kinds.
pub const API_VERSION: &str = "rollora.dev/v1alpha1";
/// Annotation of a rewrite with several targets that a Rollout adopts: the id of the stable one.
pub const STABLE_ANNOTATION: &str = "rollora.dev/stable";
/// Annotation of a Rollout: an action that a person requests, see [`crate::rollout::Intent`].
pub const INTENT_ANNOTATION: &str = "rollora.dev/intent";
/// Annotation of a rewrite, followed by the Rollout's UID: the sequence of the last change of weights.
pub const SEQUENCE_ANNOTATION_PREFIX: &str = "weights.rollora.dev/";
/// Annotation of a rewrite: the request header whose value keeps a client on one target.
pub const STICKY_HEADER_ANNOTATION: &str = "rollora.dev/sticky-header";
/// Response header that names the adapter that served a request.
pub const TARGET_HEADER: &str = "x-rollora-target";
/// Finalizer of a Rollout while traffic is split: its deletion first moves all traffic to stable.
pub const FINALIZER: &str = "rollora.dev/traffic";
/// Label of a router pod (`rollora-ext-proc`): the InferencePool whose requests it rewrites.
pub const ROUTER_POOL_LABEL: &str = "rollora.dev/router-for";
/// Annotation of a router pod: the namespace of that InferencePool, if it is not the pod's own.
pub const ROUTER_NAMESPACE_ANNOTATION: &str = "rollora.dev/router-for-namespace";
/// Annotation of a router pod: the port that serves `/rules`. Defaults to [`ROUTER_PORT`].
pub const ROUTER_PORT_ANNOTATION: &str = "rollora.dev/router-port";
/// Default port of a router, see [`ROUTER_PORT_ANNOTATION`].
pub const ROUTER_PORT: u16 = 9090;
/// Label of a pod with sidecars, with any value. The operator queries these sidecars before an adapter leaves the
/// ConfigMap that they read, whichever pool the pod belongs to, if any.
pub const SIDECAR_LABEL: &str = "rollora.dev/sidecar";
/// Annotation of a pod: the ConfigMap that its sidecars watch, as `NAME` or `NAMESPACE/NAME`, if the pod does not mount
/// it.
pub const ADAPTERS_ANNOTATION: &str = "rollora.dev/adapters";
/// Annotation of a pod with a sidecar: the port that serves `/status`. Defaults to [`SIDECAR_PORT`].
pub const SIDECAR_PORT_ANNOTATION: &str = "rollora.dev/sidecar-port";
/// Default port of a sidecar, see [`SIDECAR_PORT_ANNOTATION`].
pub const SIDECAR_PORT: u16 = 8080;
/// Key of the adapters ConfigMap that the operator owns, see [`crate::operator_directives`].
pub const DIRECTIVES_KEY: &str = "rollora.yaml";

/// Why a name is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is the empty string.
    #[error("the {kind} is empty: write the name")]
    Empty {
        /// Kind of the name, for example `adapter id`.
        kind: &'static str,
    },
    /// The name is longer than 253 bytes.
    #[error("the {kind} `{start}…` has {length} bytes: at most 253 are allowed")]
    TooLong {
        /// Kind of the name, for example `adapter id`.
        kind: &'static str,
        /// First 32 characters of the name.
        start: String,
        /// Length of the name in bytes.
        length: usize,
    },
    /// The name contains a comma or a control character, which would make it ambiguous in metrics or headers.
    #[error("the {kind} `{name}` contains {character:?}: commas and control characters are not allowed")]
    BadCharacter {
        /// Kind of the name, for example `adapter id`.
        kind: &'static str,
        /// The name that was checked.
        name: String,
        /// First character that is not allowed.
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
            /// Creates the name. Fails unless it has 1 to 253 bytes, no commas and no control characters.
            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check_name($kind, &name)?;
                Ok(Self(name))
            }

            /// Returns the name as a string slice.
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
    /// Id of an adapter: an immutable version, for example `small-segment-lora-v2`.
    AdapterId, "adapter id"
}
name! {
    /// Model name that clients send in the field `model` of requests.
    ModelName, "model name"
}

/// Number of a weight change of a Rollout. Increases with every change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "kube", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Sequence(pub i64);

impl Sequence {
    /// Returns the sequence of the next change.
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

/// Returns the name of the annotation that holds the sequence of the Rollout with this UID on a rewrite.
pub fn sequence_annotation(rollout_uid: &str) -> String {
    format!("{SEQUENCE_ANNOTATION_PREFIX}{rollout_uid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_names_are_accepted() {
        for name in ["a", "small-segment-lora-v2", "org/name@rev", "name with spaces", "é", &"x".repeat(253)] {
            assert_eq!(AdapterId::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn error_of_an_invalid_name_says_what_to_change() {
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
    fn name_is_checked_when_deserialized() {
        assert!(serde_json::from_str::<AdapterId>("\"a,b\"").is_err());
        let id: AdapterId = serde_json::from_str("\"v1\"").unwrap();
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"v1\"");
    }

    #[test]
    fn sequence_annotation_names_the_rollout() {
        assert_eq!(Sequence(1).next(), Sequence(2));
        assert_eq!(sequence_annotation("1234"), "weights.rollora.dev/1234");
    }
}
