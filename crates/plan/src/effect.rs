//! What has to be done to the world. Effects are found by comparing what the status says with what was observed, so
//! they may be repeated, lost and found again.

use rollora_api::{operator_directives::OperatorDirectives, rewrite::InferenceModelRewrite};

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Replace the rewrite of this group and name as it was observed, or make it where it was not there.
    WriteRewrite(Box<InferenceModelRewrite>),
    /// Put our finalizer ([`rollora_api::names::FINALIZER`]) on the Rollout, or take it off.
    SetFinalizer(bool),
    /// Write keys of the adapters ConfigMap as it was observed; what is none stays.
    WriteAdapters {
        /// The user's key after the edit of one entry.
        user_text: Option<String>,
        /// The operator's key.
        directives: Option<OperatorDirectives>,
    },
}
