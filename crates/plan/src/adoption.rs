//! Finds what serves the model name when a Rollout has no status: because it is new, or because the status was lost.
//!
//! Invariant: weights do not change while it is not known what serves the name.

use crate::{
    observed::{ObservedServer, ObservedState},
    residency, rewrite, text,
    wait::Wait,
};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::{AdapterId, ModelName, NameError, STABLE_ANNOTATION, Sequence},
    rewrite::{InferenceModelRewrite, PoolRef, RewriteRule},
    rollout::status::TargetWeight,
};

/// The most targets that a status can hold.
const MAX_TARGETS: usize = 16;

/// The result of the discovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// Nothing serves the model name yet.
    FirstInstall,
    /// A rule serves the name, or servers have an adapter or base model of that name.
    Found {
        /// The target that is stable.
        stable: AdapterId,
        /// The active weights; empty if no rule exists.
        weights: Vec<TargetWeight>,
        /// The last sequence that this Rollout stamped; zero if it never did.
        sequence: Sequence,
    },
    /// It is not known yet, or a person must decide.
    Pending(Wait),
}

/// Finds what serves `model`: the rule of the rewrite `name`, or servers of the pool directly.
pub(crate) fn discover(
    name: &str,
    pool: &PoolRef,
    model: &ModelName,
    rollout_uid: &str,
    observed: &ObservedState,
    now: Timestamp,
) -> Adoption {
    let rewrites = match &observed.rewrites {
        Ok(rewrites) => rewrites,
        Err(error) => return Adoption::Pending(Wait::while_unobservable("the rewrites cannot be read", error, now)),
    };
    let own = rewrite::find(name, None, rewrites);
    if let Some((own, rule)) = own.and_then(|own| Some((own, rewrite::rule_for(model, own)?))) {
        return from_rule(own, rule, rollout_uid);
    }
    let other = rewrites
        .iter()
        .find(|other| other.spec.pool_ref.name == pool.name && rewrite::rule_for(model, other).is_some());
    if let Some(other) = other {
        let name = &other.metadata.name;
        let message = format!(
            "the rule of rewrite {name} is active for {model}: name that rewrite in spec.rewriteRef, or remove the rule"
        );
        return Adoption::Pending(Wait::on_change(reason::SHADOWED_BY, message));
    }
    match &observed.servers {
        Ok(servers) => from_servers(model, pool, servers),
        Err(error) => {
            Adoption::Pending(Wait::while_unobservable("the servers of the pool cannot be listed", error, now))
        }
    }
}

fn unavailable(message: &str) -> Adoption {
    Adoption::Pending(Wait::soon(reason::UNAVAILABLE, message))
}

fn from_rule(rewrite: &InferenceModelRewrite, rule: &RewriteRule, rollout_uid: &str) -> Adoption {
    let sequence = rewrite::stamped_sequence(rewrite, rollout_uid).unwrap_or_default();
    let weights = match normalized_weights(rule) {
        Ok(weights) => weights,
        Err(error) => {
            return stable_unknown(format!(
                "the rule for the model in rewrite {} has a target that is not an adapter: {error}: fix the target",
                rewrite.metadata.name
            ));
        }
    };
    let annotated = rewrite.metadata.annotations.get(STABLE_ANNOTATION);
    let stable = match (annotated, weights.as_slice()) {
        (_, []) => {
            return stable_unknown(format!(
                "the rule for the model in rewrite {} has no targets: add one",
                rewrite.metadata.name
            ));
        }
        (_, [only]) => only.id.clone(),
        (_, targets) if targets.len() > MAX_TARGETS => {
            return stable_unknown(format!(
                "the rule for the model in rewrite {} has {} targets, and at most {MAX_TARGETS} can be taken over: \
                 remove some",
                rewrite.metadata.name,
                targets.len()
            ));
        }
        // Rollouts that share the rewrite name their stable ids there too.
        (Some(named), targets) => {
            match targets.iter().find(|target| rewrite::stable_ids(named).any(|id| id == target.id.as_str())) {
                Some(target) => target.id.clone(),
                None => {
                    return stable_unknown(format!(
                        "the annotation {STABLE_ANNOTATION} of rewrite {} names {named}, which is no target of its \
                         rule: name a target",
                        rewrite.metadata.name
                    ));
                }
            }
        }
        (None, targets) => {
            let ids: Vec<&str> = targets.iter().map(|target| target.id.as_str()).collect();
            return stable_unknown(format!(
                "the rule for the model has the targets {}: write the annotation {STABLE_ANNOTATION} with the stable \
                 one on rewrite {}",
                text::list(&ids),
                rewrite.metadata.name
            ));
        }
    };
    Adoption::Found { stable, weights, sequence }
}

/// Returns the weight of each adapter of a rule, as routers read it.
///
/// If all weights are omitted, they are equal. If some are omitted, those targets get no traffic. An adapter in several
/// targets gets the sum.
fn normalized_weights(rule: &RewriteRule) -> Result<Vec<TargetWeight>, NameError> {
    let all_omitted = rule.targets.iter().all(|target| target.weight.is_none());
    let mut shares: Vec<TargetWeight> = Vec::new();
    for target in &rule.targets {
        let id = AdapterId::new(target.model_rewrite.clone())?;
        let Some(weight) = target.weight.or(all_omitted.then_some(1)) else { continue };
        match shares.iter_mut().find(|share| share.id == id) {
            Some(share) => share.weight = share.weight.saturating_add(weight),
            None => shares.push(TargetWeight { id, weight }),
        }
    }
    Ok(shares)
}

fn stable_unknown(message: String) -> Adoption {
    Adoption::Pending(Wait::on_change(reason::STABLE_UNKNOWN, message))
}

/// Finds out whether servers serve the name directly, without a rule.
fn from_servers(model: &ModelName, pool: &PoolRef, servers: &[ObservedServer]) -> Adoption {
    let ready: Vec<&ObservedServer> = servers.iter().filter(|server| server.ready).collect();
    if ready.is_empty() {
        return Adoption::Pending(Wait::soon(reason::NO_READY_PODS, text::no_ready_servers(pool)));
    }
    let Ok(stable) = AdapterId::new(model.as_str()) else { return Adoption::FirstInstall };
    let has_it =
        |server: &&&ObservedServer| server.status.as_ref().is_ok_and(|status| residency::serves(&stable, status));
    if ready.iter().any(|server| has_it(&server)) {
        return Adoption::Found { stable, weights: Vec::new(), sequence: Sequence::default() };
    }
    match ready.iter().find_map(|server| server.status.as_ref().err().map(|error| (server, error))) {
        Some((server, error)) => unavailable(&format!(
            "whether {} serves {model} is not known: its sidecar cannot be queried ({error})",
            server.name
        )),
        None => Adoption::FirstInstall,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::rewrite::RewriteTarget;

    fn rule(targets: &[(&str, Option<i32>)]) -> RewriteRule {
        let target = |(name, weight): &(&str, Option<i32>)| RewriteTarget {
            model_rewrite: (*name).to_owned(),
            weight: *weight,
            ..RewriteTarget::default()
        };
        RewriteRule { targets: targets.iter().map(target).collect(), ..RewriteRule::default() }
    }

    /// Adoption must not change traffic, so the weights are those that routers derive from the rule.
    #[test]
    fn adopted_weights_equal_those_of_routers() {
        for (targets, expected) in [
            (&[("v1", None)][..], &[("v1", 1)][..]),
            (&[("v1", None), ("v2", None)], &[("v1", 1), ("v2", 1)]),
            (&[("v1", Some(90)), ("v2", Some(10))], &[("v1", 90), ("v2", 10)]),
            (&[("v1", Some(100)), ("v2", None)], &[("v1", 100)]),
            (&[("v1", Some(5)), ("v2", Some(3)), ("v1", Some(7))], &[("v1", 12), ("v2", 3)]),
            (&[], &[]),
        ] {
            let shares = normalized_weights(&rule(targets)).unwrap();
            let shares: Vec<(&str, i32)> = shares.iter().map(|share| (share.id.as_str(), share.weight)).collect();
            assert_eq!(shares, expected, "{targets:?}");
        }
        assert!(normalized_weights(&rule(&[("", None)])).is_err());
    }
}
