//! The only crate that names kube: client, watches, writes with versions, events, leases.
//!
//! It speaks of documents and of whom it asked, and decides nothing about rollouts. What comes out of it are values of
//! `rollora-api`, versions, and errors in words.

mod answer;
mod client;
mod groups;
#[allow(dead_code, reason = "the kinds that the documents of the operator need")]
mod kinds;
mod rewrites;
mod scope;
mod watch;

pub use answer::{ApiError, Request};
pub use client::{Access, Cluster, ConnectError};
pub use groups::{GROUPS, served};
pub use rewrites::{RewriteNews, Rewrites, WatchState};
pub use scope::Scope;
