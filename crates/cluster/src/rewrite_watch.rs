//! Every InferenceModelRewrite of both groups, as it changes: complete lists first, then single changes.
//!
//! Invariants:
//! - Nothing is held back: what the API server says is handed over as soon as it is read.
//! - An outage takes nothing away. After one, every group is told anew, whole.
//! - A group that is not installed is empty; when it is installed or removed later, that is told.

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

/// What there is to know of rewrites.
#[derive(Debug, Clone, PartialEq)]
pub enum RewriteEvent {
    /// Every rewrite of this group, in place of all that was told of it before.
    Reset {
        /// The group.
        group: RewriteGroup,
        /// All of it; empty also where the group is not installed any more.
        rewrites: Vec<InferenceModelRewrite>,
    },
    /// One is new or was changed.
    Apply(Box<InferenceModelRewrite>),
    /// One is gone.
    Delete {
        /// Its group.
        group: RewriteGroup,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// How the watch itself is, whenever that changes.
    State(RewriteWatchState),
}

/// How the watch is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RewriteWatchState {
    /// The groups that are installed, as far as that is known.
    pub served_groups: BTreeSet<RewriteGroup>,
    /// Whether every installed group has been told whole at least once. Never becomes false again.
    pub synced: bool,
    /// Why news may be missing at present; none where the API server can be reached and everything is watched.
    pub problem: Option<ApiError>,
}

/// The watch.
pub struct RewriteWatch {
    cluster: Cluster,
    scope: Scope,
    group_polls: Pin<Box<dyn Stream<Item = Result<BTreeSet<RewriteGroup>, ApiError>> + Send>>,
    watches: BTreeMap<RewriteGroup, WatchStream<RewriteObject>>,
    /// Has the groups looked for at once.
    rediscover: Arc<Notify>,
    tracker: RewriteTracker,
}

impl std::fmt::Debug for RewriteWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewrites").field("scope", &self.scope).field("digest", &self.tracker).finish_non_exhaustive()
    }
}

/// An object that was told of.
#[derive(Debug, Clone, PartialEq)]
struct RewriteObject {
    namespace: String,
    name: String,
    /// None where it cannot be read.
    rewrite: Option<InferenceModelRewrite>,
}

impl RewriteObject {
    fn from_object(group: RewriteGroup, object: DynamicObject) -> Self {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        Self { namespace, name, rewrite: parse_rewrite(group, object) }
    }
}

/// One thing that was heard.
enum RewriteInput {
    Groups(Result<BTreeSet<RewriteGroup>, ApiError>),
    Watch(RewriteGroup, Box<Result<WatchEvent<RewriteObject>, ApiError>>),
}

impl RewriteWatch {
    /// A watch that has not asked anything yet.
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

    /// The next news. Never ends; nothing is lost where it is given up and called again.
    pub async fn next(&mut self) -> RewriteEvent {
        loop {
            if let Some(news) = self.tracker.pending.pop_front() {
                return news;
            }
            match poll_fn(|context| self.poll_input(context)).await {
                RewriteInput::Watch(group, news) => {
                    if matches!(*news, Err(ApiError::NotFound(_))) {
                        self.rediscover.notify_one();
                    }
                    self.tracker.handle_event(group, *news);
                }
                RewriteInput::Groups(look) => {
                    for group in self.tracker.handle_discovery(look) {
                        self.watches.remove(&group);
                    }
                    for group in &self.tracker.state.served_groups {
                        let group = *group;
                        let read = move |object| RewriteObject::from_object(group, object);
                        let watch =
                            || watch::watch_all(&self.cluster, &self.scope, resource_kind::rewrite(group), read);
                        self.watches.entry(group).or_insert_with(watch);
                    }
                }
            }
        }
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> Poll<RewriteInput> {
        for (group, watch) in &mut self.watches {
            if let Poll::Ready(Some(news)) = watch.poll_next_unpin(context) {
                return Poll::Ready(RewriteInput::Watch(*group, Box::new(news)));
            }
        }
        match self.group_polls.poll_next_unpin(context) {
            Poll::Ready(Some(look)) => Poll::Ready(RewriteInput::Groups(look)),
            // Neither stream ends.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// What was heard so far, and what is still to be told of it.
#[derive(Debug, Default)]
struct RewriteTracker {
    state: RewriteWatchState,
    /// Groups that were told whole since they were last found.
    synced: BTreeSet<RewriteGroup>,
    /// Why the groups cannot be found out.
    discovery_problem: Option<ApiError>,
    /// Per group why it cannot be watched.
    watch_problems: BTreeMap<RewriteGroup, ApiError>,
    pending: VecDeque<RewriteEvent>,
}

impl RewriteTracker {
    /// Takes in which groups there are. Returns those whose watch has to end, or to begin anew.
    fn handle_discovery(&mut self, look: Result<BTreeSet<RewriteGroup>, ApiError>) -> Vec<RewriteGroup> {
        let mut state = self.state.clone();
        let mut over: Vec<RewriteGroup> = Vec::new();
        match look {
            Err(error) => self.discovery_problem = Some(error),
            Ok(served) => {
                if self.discovery_problem.take().is_some() {
                    // A connection that an outage cut may never say so.
                    over.extend(REWRITE_GROUPS);
                }
                for group in state.served_groups.difference(&served) {
                    over.push(*group);
                    self.synced.remove(group);
                    self.watch_problems.remove(group);
                    self.pending.push_back(RewriteEvent::Reset { group: *group, rewrites: Vec::new() });
                }
                state.synced |= served.is_subset(&self.synced);
                state.served_groups = served;
            }
        }
        self.update_state(state);
        over
    }

    /// Takes in what the watch of one group says.
    fn handle_event(&mut self, group: RewriteGroup, news: Result<WatchEvent<RewriteObject>, ApiError>) {
        let mut state = self.state.clone();
        match news {
            Err(error) => {
                self.watch_problems.insert(group, error);
            }
            Ok(news) => {
                self.watch_problems.remove(&group);
                match news {
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

    /// Tells the state where it changed: after the news that it speaks of.
    fn update_state(&mut self, mut state: RewriteWatchState) {
        let problem = self.discovery_problem.as_ref().or_else(|| self.watch_problems.values().next());
        state.problem = problem.cloned();
        if state != self.state {
            self.state = state.clone();
            self.pending.push_back(RewriteEvent::State(state));
        }
    }
}

/// The object in our words. One that cannot be read, which its schema does not allow, is left out.
pub(crate) fn parse_rewrite(group: RewriteGroup, object: DynamicObject) -> Option<InferenceModelRewrite> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let read = serde_json::to_value(object).and_then(|mut value| {
        // A list says them once for all.
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".to_owned(), group.api_version().into());
            fields.insert("kind".to_owned(), resource_kind::rewrite(group).name.into());
        }
        serde_json::from_value(value)
    });
    match read {
        Ok(rewrite) => Some(rewrite),
        Err(error) => {
            tracing::warn!(group = group.name(), rewrite = name, "a rewrite cannot be read and is ignored: {error}");
            None
        }
    }
}

#[cfg(test)]
mod tests;
