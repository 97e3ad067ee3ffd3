//! The data of Rollora: [`rollout::Rollout`], [`rewrite::InferenceModelRewrite`] of both API groups, the
//! adapters file, the operator's key, what a sidecar and a router report, condition reasons, and the names of
//! annotations and headers.
//!
//! No I/O and no clock: everything here is plain data and pure functions over it. With the feature `kube` the
//! custom resource's derives and schemas are added; without it nothing here knows Kubernetes' libraries.

#![warn(missing_docs)]

pub mod adapters;
pub mod cause;
pub mod condition;
pub mod duration;
pub mod metadata;
pub mod names;
pub mod operator_directives;
pub mod rewrite;
pub mod rollout;
pub mod router_report;
pub mod sidecar_status;

#[cfg(feature = "kube")]
mod schema;
mod yaml;
