//! What serves the name when a Rollout has no status: the first time, or because the status was lost.
//!
//! Invariant: nothing moves while it is not known what serves the name now.

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

/// As many as a status holds.
const MAX_TARGETS: usize = 16;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Adoption {
    /// Nothing serves the name.
    FirstInstall,
    /// A rule, or servers by that very name.
    Found {
        /// The stable side.
        stable: AdapterId,
        /// The weights in force; none where no rule exists.
        weights: Vec<TargetWeight>,
        /// The last sequence that this Rollout stamped.
        sequence: Sequence,
    },
    /// Nobody can tell yet, or a person has to say.
    Pending(Wait),
}

/// Looks for what serves `model`.
pub(crate) fn discover(
    name: &str,
    pool: &PoolRef,
    model: &ModelName,
    rollout_uid: &str,
    world: &ObservedState,
    now: Timestamp,
) -> Adoption {
    let rewrites = match &world.rewrites {
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
        let message = format!("the rule of {name} is in force for {model}: name it in spec.rewriteRef, or remove it");
        return Adoption::Pending(Wait::on_change(reason::SHADOWED_BY, message));
    }
    match &world.servers {
        Ok(servers) => from_servers(model, pool, servers),
        Err(error) => Adoption::Pending(Wait::while_unobservable("the servers cannot be listed", error, now)),
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
            return stable_unknown(format!("the rule for the model has a target that is no adapter: {error}"));
        }
    };
    let annotated = rewrite.metadata.annotations.get(STABLE_ANNOTATION);
    let stable = match (annotated, weights.as_slice()) {
        (_, []) => return stable_unknown("the rule for the model has no targets: write one".to_owned()),
        (_, [only]) => only.id.clone(),
        (_, targets) if targets.len() > MAX_TARGETS => {
            return stable_unknown(format!(
                "the rule for the model has {} targets, and at most {MAX_TARGETS} can be taken over: remove some",
                targets.len()
            ));
        }
        // Rollouts that share the rewrite name theirs there too.
        (Some(named), targets) => {
            match targets.iter().find(|target| rewrite::stable_ids(named).any(|id| id == target.id.as_str())) {
                Some(target) => target.id.clone(),
                None => {
                    return stable_unknown(format!(
                        "{STABLE_ANNOTATION} names {named}, which is no target of the rule"
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

/// What each adapter of a rule gets: all weights omitted means equal ones, some omitted means that those get nothing, and
/// an adapter that stands in several targets gets the sum.
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

/// Without a rule, servers may serve the name directly.
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
        Some((server, error)) => {
            unavailable(&format!("whether {} serves {model} cannot be asked ({error})", server.name))
        }
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

    /// As routers read it: what is taken over must move nothing.
    #[test]
    fn shares_are_what_routers_make_of_a_rule() {
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
