//! Access to the Kubernetes API: client, watches with caches, versioned writes, events, leader election.
//!
//! Exposes typed reads and versioned writes of `rollora-api` objects, with errors that a person can act on. It is the
//! only crate that names kube, and it contains no rollout logic.

#![warn(missing_docs)]

mod api_discovery;
mod api_error;
mod cached_client;
mod client;
pub mod configmap;
mod events;
mod gitops_owner;
mod http_client;
mod index;
mod lease;
mod object_cache;
mod pods;
mod resource_kind;
mod rewrite_watch;
mod rollout_api;
mod scope;
mod watch;

pub use api_discovery::{REWRITE_GROUPS, served_groups};
pub use api_error::{ApiError, ApiRequest};
pub use cached_client::{
    AdaptersConfigMapData, CachedClient, ChangeStream, ConfigMapReaders, ObjectReadError, ObjectWriteOutcome,
    VersionedObject,
};
pub use client::{Cluster, ConnectError, ConnectOptions};
pub use events::{EventDetails, EventPublisher, EventQueueFull, EventRecorder, event_recorder};
pub use http_client::{ConnectionReuse, HttpClient, HttpClientError};
pub use lease::{LeaderElector, LeaseProblem, LeaseSettings, LostLease};
pub use object_cache::NamespacedName;
pub use pods::{InferencePool, Pod};
pub use rewrite_watch::{RewriteEvent, RewriteWatch, RewriteWatchState};
pub use rollout_api::{RecordedEvent, RolloutApi};
pub use scope::Scope;
