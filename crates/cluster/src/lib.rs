//! The only crate that names kube: client, watches, writes with versions, events, leases.
//!
//! It speaks of documents and of whom it asked, and decides nothing about rollouts. What comes out of it are values of
//! `rollora-api`, versions, and errors in words.

mod answer;
mod ask;
mod client;
pub mod configmap;
mod documents;
mod events;
mod groups;
mod index;
mod kinds;
mod lease;
mod owner;
mod pods;
mod rewrites;
mod rollouts;
mod scope;
mod shelf;
mod watch;

pub use answer::{ApiError, Request};
pub use ask::{Again, AskError, Asker};
pub use client::{Access, Cluster, ConnectError};
pub use documents::{AdaptersMap, Changes, Documents, ReadError, Sharers, Versioned, Written};
pub use events::{Events, Notice, Teller, TooMuchToTell, events};
pub use groups::{GROUPS, served};
pub use lease::{Election, LeaseProblem, LeaseSettings, LostLease};
pub use pods::{Pod, Pool};
pub use rewrites::{RewriteNews, Rewrites, WatchState};
pub use rollouts::{Rollouts, Told};
pub use scope::Scope;
pub use shelf::ObjectName;
