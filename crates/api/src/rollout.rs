//! The Rollout: one for every name that clients send, long-lived. Its spec says which adapter should serve the name
//! and in which steps traffic moves there; its status says how far that is.

#[cfg(feature = "kube")]
pub mod crd;
pub mod follow;
pub mod intent;
mod parse;
pub mod spec;
pub mod status;
pub mod validate;

pub use intent::{Intent, IntentKind, IntentPending};
pub use parse::{Diagnostic, RolloutError, line_of_field};
#[cfg(feature = "kube")]
pub use spec::RolloutResource;
pub use spec::RolloutSpec;
pub use status::RolloutStatus;
pub use validate::{FieldError, immutable_changes};

use crate::metadata::ObjectMeta;
use serde::{Deserialize, Serialize};

/// One Rollout, as it stands in a file or comes from the API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// `rollora.dev/v1alpha1`.
    pub api_version: String,
    /// `Rollout`.
    pub kind: String,
    /// Name, UID, version, annotations.
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: RolloutSpec,
    /// How far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RolloutStatus>,
}
