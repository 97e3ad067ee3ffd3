//! The Rollout, Rollora's custom resource: one long-lived object for each model name that clients send. Its spec says
//! which adapter serves the name and in which steps traffic moves to it; its status reports the progress.

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

/// One Rollout, as read from a file or from the API server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rollout {
    /// Always `rollora.dev/v1alpha1`, see [`crate::names::API_VERSION`].
    pub api_version: String,
    /// Always `Rollout`, which validation checks.
    pub kind: String,
    /// Name, namespace, UID, resource version, labels and annotations.
    pub metadata: ObjectMeta,
    /// Desired state, written by a person.
    pub spec: RolloutSpec,
    /// Observed state, written by the operator; `None` before its first write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<RolloutStatus>,
}
