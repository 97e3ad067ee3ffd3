//! Every InferenceModelRewrite of both groups, as it changes: complete lists first, then single changes.
//!
//! Invariants:
//! - Nothing is held back: what the API server says is handed over as soon as it is read.
//! - An outage takes nothing away. After one, every group is told anew, whole.
//! - A group that is not installed is empty; when it is installed or removed later, that is told.

use crate::{
    Cluster, Scope,
    answer::ApiError,
    groups::{self, GROUPS},
    kinds,
    watch::{self, News, Watch},
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
pub enum RewriteNews {
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
    State(WatchState),
}

/// How the watch is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WatchState {
    /// The groups that are installed, as far as that is known.
    pub served: BTreeSet<RewriteGroup>,
    /// Whether every installed group has been told whole at least once. Never becomes false again.
    pub complete: bool,
    /// Why news may be missing at present; none where the API server can be reached and everything is watched.
    pub problem: Option<ApiError>,
}

/// The watch.
pub struct Rewrites {
    cluster: Cluster,
    scope: Scope,
    groups: Pin<Box<dyn Stream<Item = Result<BTreeSet<RewriteGroup>, ApiError>> + Send>>,
    watches: BTreeMap<RewriteGroup, Watch<Found>>,
    /// Has the groups looked for at once.
    doubt: Arc<Notify>,
    digest: Digest,
}

impl std::fmt::Debug for Rewrites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rewrites").field("scope", &self.scope).field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// An object that was told of.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    namespace: String,
    name: String,
    /// None where it cannot be read.
    rewrite: Option<InferenceModelRewrite>,
}

impl Found {
    fn of(group: RewriteGroup, object: DynamicObject) -> Self {
        let namespace = object.metadata.namespace.clone().unwrap_or_default();
        let name = object.metadata.name.clone().unwrap_or_default();
        Self { namespace, name, rewrite: read(group, object) }
    }
}

/// One thing that was heard.
enum Heard {
    Groups(Result<BTreeSet<RewriteGroup>, ApiError>),
    Watch(RewriteGroup, Box<Result<News<Found>, ApiError>>),
}

impl Rewrites {
    /// A watch that has not asked anything yet.
    pub fn new(cluster: &Cluster, scope: Scope) -> Self {
        let doubt = Arc::new(Notify::new());
        Self {
            cluster: cluster.clone(),
            scope,
            groups: Box::pin(groups::follow(cluster.clone(), Arc::clone(&doubt))),
            watches: BTreeMap::new(),
            doubt,
            digest: Digest::default(),
        }
    }

    /// The next news. Never ends; nothing is lost where it is given up and called again.
    pub async fn next(&mut self) -> RewriteNews {
        loop {
            if let Some(news) = self.digest.told.pop_front() {
                return news;
            }
            match poll_fn(|context| self.poll_heard(context)).await {
                Heard::Watch(group, news) => {
                    if matches!(*news, Err(ApiError::NotFound(_))) {
                        self.doubt.notify_one();
                    }
                    self.digest.hear(group, *news);
                }
                Heard::Groups(look) => {
                    for group in self.digest.look(look) {
                        self.watches.remove(&group);
                    }
                    for group in &self.digest.state.served {
                        let group = *group;
                        let read = move |object| Found::of(group, object);
                        let watch = || watch::watch_all(&self.cluster, &self.scope, kinds::rewrite(group), read);
                        self.watches.entry(group).or_insert_with(watch);
                    }
                }
            }
        }
    }

    fn poll_heard(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        for (group, watch) in &mut self.watches {
            if let Poll::Ready(Some(news)) = watch.poll_next_unpin(context) {
                return Poll::Ready(Heard::Watch(*group, Box::new(news)));
            }
        }
        match self.groups.poll_next_unpin(context) {
            Poll::Ready(Some(look)) => Poll::Ready(Heard::Groups(look)),
            // Neither stream ends.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

/// What was heard so far, and what is still to be told of it.
#[derive(Debug, Default)]
struct Digest {
    state: WatchState,
    /// Groups that were told whole since they were last found.
    listed: BTreeSet<RewriteGroup>,
    /// Why the groups cannot be found out.
    away: Option<ApiError>,
    /// Per group why it cannot be watched.
    problems: BTreeMap<RewriteGroup, ApiError>,
    told: VecDeque<RewriteNews>,
}

impl Digest {
    /// Takes in which groups there are. Returns those whose watch has to end, or to begin anew.
    fn look(&mut self, look: Result<BTreeSet<RewriteGroup>, ApiError>) -> Vec<RewriteGroup> {
        let mut state = self.state.clone();
        let mut over: Vec<RewriteGroup> = Vec::new();
        match look {
            Err(error) => self.away = Some(error),
            Ok(served) => {
                if self.away.take().is_some() {
                    // A connection that an outage cut may never say so.
                    over.extend(GROUPS);
                }
                for group in state.served.difference(&served) {
                    over.push(*group);
                    self.listed.remove(group);
                    self.problems.remove(group);
                    self.told.push_back(RewriteNews::Reset { group: *group, rewrites: Vec::new() });
                }
                state.complete |= served.is_subset(&self.listed);
                state.served = served;
            }
        }
        self.settle(state);
        over
    }

    /// Takes in what the watch of one group says.
    fn hear(&mut self, group: RewriteGroup, news: Result<News<Found>, ApiError>) {
        let mut state = self.state.clone();
        match news {
            Err(error) => {
                self.problems.insert(group, error);
            }
            Ok(news) => {
                self.problems.remove(&group);
                match news {
                    News::Reset(all) => {
                        let rewrites = all.into_iter().filter_map(|found| found.rewrite).collect();
                        self.told.push_back(RewriteNews::Reset { group, rewrites });
                        self.listed.insert(group);
                        state.complete |= state.served.is_subset(&self.listed);
                    }
                    News::Apply(found) => {
                        self.told.extend(found.rewrite.map(|rewrite| RewriteNews::Apply(Box::new(rewrite))));
                    }
                    News::Delete(Found { namespace, name, .. }) => {
                        self.told.push_back(RewriteNews::Delete { group, namespace, name });
                    }
                }
            }
        }
        self.settle(state);
    }

    /// Tells the state where it changed: after the news that it speaks of.
    fn settle(&mut self, mut state: WatchState) {
        let problem = self.away.as_ref().or_else(|| self.problems.values().next());
        state.problem = problem.cloned();
        if state != self.state {
            self.state = state.clone();
            self.told.push_back(RewriteNews::State(state));
        }
    }
}

/// The object in our words. One that cannot be read, which its schema does not allow, is left out.
pub(crate) fn read(group: RewriteGroup, object: DynamicObject) -> Option<InferenceModelRewrite> {
    let name = object.metadata.name.clone().unwrap_or_default();
    let read = serde_json::to_value(object).and_then(|mut value| {
        // A list says them once for all.
        if let Some(fields) = value.as_object_mut() {
            fields.insert("apiVersion".to_owned(), group.api_version().into());
            fields.insert("kind".to_owned(), kinds::rewrite(group).name.into());
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
