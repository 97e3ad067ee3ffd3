//! Writes to the cluster that a decision asks for.
//!
//! Effects are found by comparing the status with the observed state, so they may be repeated, and one that is lost is
//! found again by the next decision.

use rollora_api::{operator_directives::OperatorDirectives, rewrite::InferenceModelRewrite};

/// One write to the API server, or to the files of `rollora local`.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Replace the rewrite of this group and name as it was observed, or create it if it did not exist.
    WriteRewrite(Box<InferenceModelRewrite>),
    /// Add (`true`) or remove (`false`) our finalizer ([`rollora_api::names::FINALIZER`]) on the Rollout.
    SetFinalizer(bool),
    /// Replace keys of the adapters ConfigMap as it was observed; a key that is `None` stays.
    WriteAdapters {
        /// The new text of the user's key, with entries added or moved.
        user_text: Option<String>,
        /// The new operator directives (the key `rollora.yaml`).
        directives: Option<OperatorDirectives>,
    },
}
