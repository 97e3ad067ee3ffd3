//! What the watch of rewrites tells, put into force.
//!
//! Invariant: an outage of the API server takes nothing out of force, and is seen in a metric.

use crate::readiness::Readiness;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rollora_api::rewrite::RewriteGroup;
use rollora_cluster::{GROUPS, RewriteNews, Rewrites, WatchState};
use rollora_router::{in_force::InForce, rules::RewriteKey};
use std::{convert::Infallible, sync::Arc};

/// Puts into force what the watch tells.
#[derive(Debug)]
pub(crate) struct Feed {
    in_force: Arc<InForce>,
    readiness: Readiness,
    gauges: Gauges,
}

#[derive(Debug, Default)]
struct Gauges {
    /// Whether news arrive.
    up: Gauge,
    served: Family<OfGroup, Gauge>,
    news: Family<OfKind, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfGroup {
    group: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

impl Feed {
    pub(crate) fn new(in_force: Arc<InForce>, readiness: Readiness, registry: &mut Registry) -> Self {
        let gauges = Gauges::default();
        let registry = registry.sub_registry_with_prefix("rollora_rewrite_watch");
        registry.register("up", "1 while news of rewrites arrive, 0 while old rules are kept", gauges.up.clone());
        registry.register("group_served", "1 where the API group is installed and read", gauges.served.clone());
        registry.register("news", "What the watch of rewrites has told", gauges.news.clone());
        Self { in_force, readiness, gauges }
    }

    /// Follows the watch for ever.
    pub(crate) async fn follow(mut self, mut rewrites: Rewrites) -> Infallible {
        loop {
            let news = rewrites.next().await;
            self.hear(news);
        }
    }

    fn hear(&mut self, news: RewriteNews) {
        let kind = match news {
            RewriteNews::Reset { group, rewrites } => {
                self.in_force.reset_group(group, &rewrites);
                "Reset"
            }
            RewriteNews::Apply(rewrite) => {
                self.in_force.apply(&rewrite);
                "Apply"
            }
            RewriteNews::Delete { group, namespace, name } => {
                self.in_force.delete(&RewriteKey { group, namespace: Some(namespace), name });
                "Delete"
            }
            RewriteNews::State(state) => {
                self.hear_state(&state);
                "State"
            }
        };
        self.gauges.news.get_or_create(&OfKind { kind }).inc();
    }

    fn hear_state(&mut self, state: &WatchState) {
        let served: Vec<RewriteGroup> = state.served.iter().copied().collect();
        self.in_force.set_groups(&served);
        for group in GROUPS {
            let gauge = self.gauges.served.get_or_create(&OfGroup { group: group.name() });
            gauge.set(state.served.contains(&group).into());
        }
        self.gauges.up.set((state.complete && state.problem.is_none()).into());
        self.readiness.set_problem(state.problem.as_ref().map(ToString::to_string));
        if let Some(problem) = &state.problem {
            tracing::warn!("rewrites cannot be watched, the last rules stay in force: {problem}");
        } else {
            let groups: Vec<&str> = served.iter().map(|group| group.name()).collect();
            tracing::info!(complete = state.complete, ?groups, "rewrites are watched");
        }
        if state.complete {
            self.readiness.serving();
        }
    }
}

#[cfg(test)]
mod tests;
