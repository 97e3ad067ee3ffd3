//! Applies events of the rewrite watch to the active rules.
//!
//! Invariant: an outage of the API server removes no rule; a metric reports it.

use crate::readiness::ServerReadiness;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rollora_api::rewrite::RewriteGroup;
use rollora_cluster::{REWRITE_GROUPS, RewriteEvent, RewriteWatch, RewriteWatchState};
use rollora_router::{active_rules::ActiveRules, rules::RewriteKey};
use std::{convert::Infallible, sync::Arc};

/// Applies events of the rewrite watch to the active rules.
#[derive(Debug)]
pub(crate) struct RuleSource {
    active_rules: Arc<ActiveRules>,
    readiness: ServerReadiness,
    metrics: WatchMetrics,
}

#[derive(Debug, Default)]
struct WatchMetrics {
    /// 1 while the watch works.
    up: Gauge,
    group_served: Family<GroupLabels, Gauge>,
    events: Family<KindLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

impl RuleSource {
    pub(crate) fn new(active_rules: Arc<ActiveRules>, readiness: ServerReadiness, registry: &mut Registry) -> Self {
        let metrics = WatchMetrics::default();
        let registry = registry.sub_registry_with_prefix("rollora_rewrite_watch");
        registry.register(
            "up",
            "1 while rewrites are watched, 0 while the last rules stay active without updates",
            metrics.up.clone(),
        );
        registry.register("group_served", "1 if the API group is installed and watched", metrics.group_served.clone());
        registry.register("events", "Events of the rewrite watch, by kind", metrics.events.clone());
        Self { active_rules, readiness, metrics }
    }

    /// Applies events until the task is dropped.
    pub(crate) async fn run(mut self, mut rewrites: RewriteWatch) -> Infallible {
        loop {
            let event = rewrites.next().await;
            self.handle_event(event);
        }
    }

    fn handle_event(&mut self, event: RewriteEvent) {
        let kind = match event {
            RewriteEvent::Reset { group, rewrites } => {
                self.active_rules.reset_group(group, &rewrites);
                "Reset"
            }
            RewriteEvent::Apply(rewrite) => {
                self.active_rules.apply(&rewrite);
                "Apply"
            }
            RewriteEvent::Delete { group, namespace, name } => {
                self.active_rules.delete(&RewriteKey { group, namespace: Some(namespace), name });
                "Delete"
            }
            RewriteEvent::State(state) => {
                self.handle_state(&state);
                "State"
            }
        };
        self.metrics.events.get_or_create(&KindLabels { kind }).inc();
    }

    fn handle_state(&mut self, state: &RewriteWatchState) {
        let served: Vec<RewriteGroup> = state.served_groups.iter().copied().collect();
        self.active_rules.set_groups(&served);
        for group in REWRITE_GROUPS {
            let gauge = self.metrics.group_served.get_or_create(&GroupLabels { group: group.name() });
            gauge.set(state.served_groups.contains(&group).into());
        }
        self.metrics.up.set((state.synced && state.problem.is_none()).into());
        self.readiness.set_problem(state.problem.as_ref().map(ToString::to_string));
        if let Some(problem) = &state.problem {
            tracing::warn!("cannot watch rewrites, the last rules stay active: {problem}");
        } else {
            let groups: Vec<&str> = served.iter().map(|group| group.name()).collect();
            tracing::info!(complete = state.synced, ?groups, "watching rewrites");
        }
        if state.synced {
            self.readiness.set_serving();
        }
    }
}

#[cfg(test)]
mod tests;
