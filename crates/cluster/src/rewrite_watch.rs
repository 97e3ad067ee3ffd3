//! Watch of the InferenceModelRewrites of both API groups: complete lists first, then single changes.
//!
//! Invariants:
//! - Nothing is delayed: every change is delivered as soon as it is read.
//! - An outage removes nothing. After an outage every group is delivered again as a complete list.
//! - A group that is not installed is empty; its later installation or removal is delivered.

use crate::{
    Cluster, Scope,
    api_discovery::{self, REWRITE_GROUPS},
    api_error::ApiError,
    resource_kind,
    watch::{self, WatchEvent, WatchStream},
};
use futures_util::{Stream, StreamExt};
use kube::core::DynamicObject;
use rollora_api::rewrite::{InferenceModelRewrite, RewriteGroup};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::Notify;

/// A change of the rewrites, or of the watch itself.
#[derive(Debug, Clone, PartialEq)]
pub enum RewriteEvent {
    /// All rewrites of a group; replaces everything delivered for it before.
    Reset {
        /// API group of all the rewrites.
        group: RewriteGroup,
        /// All rewrites of the group; empty if the group is not installed anymore.
        rewrites: Vec<InferenceModelRewrite>,
    },
    /// A rewrite was created or changed.
    Apply(Box<InferenceModelRewrite>),
    /// A rewrite was deleted.
    Delete {
        /// API group of the deleted rewrite.
        group: RewriteGroup,
        /// Namespace of the deleted rewrite.
        namespace: String,
        /// Name of the deleted rewrite.
        name: String,
    },
    /// The state of the watch changed.
    State(RewriteWatchState),
}

/// Which groups are watched, and whether the watch is complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RewriteWatchState {
    /// Groups that are installed, as far as is known.
    pub served_groups: BTreeSet<RewriteGroup>,
    /// Whether a complete list of every installed group was delivered. Never becomes false again.
    pub synced: bool,
    /// Why changes may be missing at present; `None` if all installed groups are watched.
    pub problem: Option<ApiError>,
}

/// Watch of the rewrites of both groups in a scope.
pub struct RewriteWatch {
    cluster: Cluster,
    scope: Scope,
    group_polls: Pin<Box<dyn Stream<Item = Result<BTreeSet<RewriteGroup>, ApiError>> + Send>>,
    watches: BTreeMap<RewriteGroup, WatchStream<RewriteObject>>,
    /// Triggers a discovery poll immediately.
    rediscover: Arc<Notify>,
    tracker: RewriteTracker,
}

impl std::fmt::Debug for RewriteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RewriteWatch")
            .field("scope", &self.scope)
            .field("tracker", &self.tracker)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct RewriteObject {
    namespace: String,
    name: String,
    /// `None` if the object cannot be parsed.
    rewrite: Option<InferenceModelRewrite>,
}

impl RewriteObject {
    fn from_object(group: RewriteGroup, object: DynamicObject) -> Self {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        Self { namespace, name, rewrite: parse_rewrite(group, object) }
    }
}

enum RewriteInput {
    Groups(Result<BTreeSet<RewriteGroup>, ApiError>),
    Watch(RewriteGroup, Box<Result<WatchEvent<RewriteObject>, ApiError>>),
}

impl RewriteWatch {
    /// Returns a watch that has sent no request yet.
    pub fn new(cluster: &Cluster, scope: Scope) -> Self {
        let rediscover = Arc::new(Notify::new());
        Self {
            cluster: cluster.clone(),
            scope,
            group_polls: Box::pin(api_discovery::poll_groups(cluster.clone(), Arc::clone(&rediscover))),
            watches: BTreeMap::new(),
            rediscover,
            tracker: RewriteTracker::default(),
        }
    }

    /// Returns the next event. Never ends; cancel safe.
    pub async fn next(&mut self) -> RewriteEvent {
        loop {
            if let Some(event) = self.tracker.pending.pop_front() {
                return event;
            }
            match poll_fn(|context| self.poll_input(context)).await {
                RewriteInput::Watch(group, event) => {
                    if matches!(*event, Err(ApiError::NotFound(_))) {
                        self.rediscover.notify_one();
                    }
                    self.tracker.handle_event(group, *event);
                }
                RewriteInput::Groups(poll) => {
                    for group in self.tracker.handle_discovery(poll) {
                        self.watches.remove(&group);
                    }
                    for group in &self.tracker.state.served_groups {
                        let group = *group;
                        let convert = move |object| RewriteObject::from_object(group, object);
                        let watch =
                            || watch::watch_all(&self.cluster, &self.scope, resource_kind::rewrite(group), convert);
                        self.watches.entry(group).or_insert_with(watch);
                    }
                }
            }
        }
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<RewriteInput> {
        for (group, watch) in &mut self.watches {
            if let Poll::Ready(Some(event)) = watch.poll_next_unpin(context) {
                return Poll::Ready(RewriteInput::Watch(*group, Box::new(event)));
            }
        }
        match self.group_polls.poll_next_unpin(context) {
            Poll::Ready(Some(poll)) => Poll::Ready(RewriteInput::Groups(poll)),
            // Neither kind of stream ends.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// State derived from all inputs, and the events that were not delivered yet.
#[derive(Debug, Default)]
struct RewriteTracker {
    state: RewriteWatchState,
    /// Groups of which a complete list was received since their last discovery.
    synced: BTreeSet<RewriteGroup>,
    discovery_problem: Option<ApiError>,
    /// Why a group cannot be watched, by group.
    watch_problems: BTreeMap<RewriteGroup, ApiError>,
    pending: VecDeque<RewriteEvent>,
}

impl RewriteTracker {
    /// Applies a discovery result. Returns the groups whose watch must end or restart.
    fn handle_discovery(&mut self, poll: Result<BTreeSet<RewriteGroup>, ApiError>) -> Vec<RewriteGroup> {
        let mut state = self.state.clone();
        let mut ended: Vec<RewriteGroup> = Vec::new();
        match poll {
            Err(error) => self.discovery_problem = Some(error),
            Ok(served) => {
                if self.discovery_problem.take().is_some() {
                    // A connection that broke in an outage may never report it.
                    ended.extend(REWRITE_GROUPS);
                }
                for group in state.served_groups.difference(&served) {
                    ended.push(*group);
                    self.synced.remove(group);
                    self.watch_problems.remove(group);
                    self.pending.push_back(RewriteEvent::Reset { group: *group, rewrites: Vec::new() });
                }
                state.synced |= served.is_subset(&self.synced);
                state.served_groups = served;
            }
        }
        self.update_state(state);
        ended
    }

    /// Applies an event of the watch of one group.
    fn handle_event(&mut self, group: RewriteGroup, event: Result<WatchEvent<RewriteObject>, ApiError>) {
        let mut state = self.state.clone();
        match event {
            Err(error) => {
                self.watch_problems.insert(group, error);
            }
            Ok(event) => {
                self.watch_problems.remove(&group);
                match event {
                    WatchEvent::Reset(all) => {
                        let rewrites = all.into_iter().filter_map(|found| found.rewrite).collect();
                        self.pending.push_back(RewriteEvent::Reset { group, rewrites });
                        self.synced.insert(group);
                        state.synced |= state.served_groups.is_subset(&self.synced);
                    }
                    WatchEvent::Apply(found) => {
                        self.pending.extend(found.rewrite.map(|rewrite| RewriteEvent::Apply(Box::new(rewrite))));
                    }
                    WatchEvent::Delete(RewriteObject { namespace, name, .. }) => {
                        self.pending.push_back(RewriteEvent::Delete { group, namespace, name });
                    }
                }
            }
        }
        self.update_state(state);
    }

    /// Queues the state if it changed, after the events that it refers to.
    fn update_state(&mut self, mut state: RewriteWatchState) {
        let problem = self.discovery_problem.as_ref().or_else(|| self.watch_problems.values().next());
        state.problem = problem.cloned();
        if state != self.state {
            self.state = state.clone();
            self.pending.push_back(RewriteEvent::State(state));
        }
    }
}

/// Converts an API object. Returns `None` for one that cannot be parsed, which its schema does not allow.
pub(crate) fn parse_rewrite(group: RewriteGroup, object: DynamicObject) -> Option<InferenceModelRewrite> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let parsed = serde_json::to_value(object).and_then(|mut value| {
        // Items of a list do not repeat these two fields.
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".to_owned(), group.api_version().into());
            fields.insert("kind".to_owned(), resource_kind::rewrite(group).name.into());
        }
        serde_json::from_value(value)
    });
    match parsed {
        Ok(rewrite) => Some(rewrite),
        Err(error) => {
            tracing::warn!(group = group.name(), rewrite = name, "ignoring a rewrite that cannot be parsed: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests;
