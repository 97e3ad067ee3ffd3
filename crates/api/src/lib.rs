//! Rollora's data types: [`rollout::Rollout`], [`rewrite::InferenceModelRewrite`] of both API groups, the adapters
//! file, the operator's directives to sidecars, the reports of sidecars and routers, condition reasons, and the names
//! of annotations and headers.
//!
//! The crate contains plain data and pure functions, without I/O and without a clock. The feature `kube` adds the
//! derives and schemas of the custom resource; without it the crate does not depend on any Kubernetes library.

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
