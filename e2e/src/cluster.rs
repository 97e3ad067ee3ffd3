//! The bed of a cluster's parts, each of them real where the real thing fits in a test.

pub mod control_plane;
pub mod gateway;
pub mod homes;
pub mod kubelet;
pub mod manifests;
mod mirror;
pub mod picker;
pub mod place;
mod pods;
pub mod population;
pub mod turnstile;
mod workloads;
