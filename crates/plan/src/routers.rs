//! The proof that routers do what was written: every replica that exists reports the rule in force for the model, and
//! it is ours, with the stamp and the targets of the last write.
//!
//! Invariant: no replica at all proves nothing, and a replica that cannot be asked is not proven.

#[cfg(test)]
mod tests;

use crate::{
    observed::{ObserveError, ObservedRouter},
    text,
    wait::Wait,
};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::ModelName,
    rewrite::RewriteTarget,
    rollout::{
        spec::RouterKind,
        status::{TargetWeight, TrafficWeights},
    },
    router_report::{ActiveRule, RulesReport},
};
use std::time::Duration;

/// How long an endpoint picker, which cannot be asked, is given to take over new weights.
const PICKER_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// What must be in force.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpectedRule<'a> {
    /// The name that clients send.
    pub(crate) model: &'a ModelName,
    /// The Rollout that stamps.
    pub(crate) rollout_uid: &'a str,
    /// The UID of the rewrite; none while it does not exist.
    pub(crate) rewrite_uid: Option<&'a str>,
    /// Whether the rewrite says what the status says.
    pub(crate) written: bool,
    /// The weights.
    pub(crate) weights: &'a TrafficWeights,
    /// The rewrite whose rule goes before ours, where there is one.
    pub(crate) shadowed_by: Option<&'a str>,
}

/// Who has the rule in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouterProof {
    /// Routers that do.
    pub(crate) proven: usize,
    /// All routers.
    pub(crate) total: usize,
    /// What is waited for; none when it is proven.
    pub(crate) wait: Option<Wait>,
    /// Another object whose rule is in force for the model at some router.
    pub(crate) shadowed_by: Option<String>,
}

impl RouterProof {
    /// Whether every router does what was written.
    pub(crate) fn is_complete(&self) -> bool {
        self.wait.is_none()
    }

    /// Nothing is proven while the rewrites cannot be read.
    pub(crate) fn unobservable(error: &ObserveError, now: Timestamp) -> Self {
        Self::incomplete(0, 0, Wait::while_unobservable("the rewrites cannot be read", error, now))
    }

    /// So many of so many are proven, and this is waited for.
    pub(crate) fn incomplete(proven: usize, total: usize, wait: Wait) -> Self {
        Self { proven, total, wait: Some(wait), shadowed_by: None }
    }
}

/// Looks at every router.
pub(crate) fn prove(
    kind: RouterKind,
    claim: ExpectedRule<'_>,
    routers: Result<&[ObservedRouter], &ObserveError>,
    now: Timestamp,
) -> RouterProof {
    if !claim.written {
        let wait = Wait::soon(reason::ROUTERS_PENDING, "the rewrite is being written");
        return RouterProof::incomplete(0, routers.map_or(0, <[ObservedRouter]>::len), wait);
    }
    if let Some(other) = claim.shadowed_by {
        let wait = Wait::soon(reason::SHADOWED_BY, shadowed_message(other));
        return RouterProof {
            shadowed_by: Some(other.to_owned()),
            ..RouterProof::incomplete(0, routers.map_or(0, <[ObservedRouter]>::len), wait)
        };
    }
    match (kind, routers) {
        (RouterKind::EndpointPicker, _) => prove_by_grace_period(claim.weights, now),
        (RouterKind::ExtProc, Err(error)) => RouterProof::incomplete(
            0,
            0,
            Wait::soon(reason::UNAVAILABLE, format!("the routers cannot be listed: {error}")),
        ),
        (RouterKind::ExtProc, Ok([])) => RouterProof::incomplete(
            0,
            0,
            Wait::soon(reason::NO_ROUTERS, "there is no router: start rollora-ext-proc, or set spec.router"),
        ),
        (RouterKind::ExtProc, Ok(routers)) => prove_by_report(claim, routers),
    }
}

/// From the time at which the rewrite was seen to say it: a write may take its time.
fn prove_by_grace_period(weights: &TrafficWeights, now: Timestamp) -> RouterProof {
    let begins = weights.applied_at.max(weights.changed_at);
    let over = begins.map_or(now, |begins| text::after(begins, PICKER_GRACE_PERIOD));
    let wait = (now < over).then(|| {
        let message = format!("the endpoint picker has until {} to take over the weights", text::time(over));
        Wait::until(reason::ROUTERS_PENDING, over, message)
    });
    RouterProof { proven: 0, total: 0, wait, shadowed_by: None }
}

/// What there is to do about the rule of another rewrite.
pub(crate) fn shadowed_message(other: &str) -> String {
    format!("the rule of {other} is in force for the model: remove it, or this Rollout")
}

fn prove_by_report(claim: ExpectedRule<'_>, routers: &[ObservedRouter]) -> RouterProof {
    let lagging: Vec<String> = routers
        .iter()
        .filter_map(|router| {
            let why = match &router.report {
                Err(error) => Some(format!("cannot be asked ({error})")),
                Ok(report) => mismatch(claim, report.rule(claim.model)),
            };
            why.map(|why| format!("{} {why}", router.name))
        })
        .collect();
    let shadowed_by = routers.iter().find_map(|router| shadowing_rewrite(claim, router.report.as_ref().ok()?));
    let wait = (!lagging.is_empty())
        .then(|| Wait::soon(reason::ROUTERS_PENDING, format!("waits for routers: {}", text::list(&lagging))));
    RouterProof { proven: routers.len() - lagging.len(), total: routers.len(), wait, shadowed_by }
}

/// The rewrite whose exact rule for the model is in force instead of ours.
fn shadowing_rewrite(claim: ExpectedRule<'_>, report: &RulesReport) -> Option<String> {
    let rule = report.models.get(claim.model.as_str())?;
    claim.rewrite_uid.is_some_and(|uid| uid != rule.uid).then(|| rule.rewrite.clone())
}

fn mismatch(claim: ExpectedRule<'_>, rule: Option<&ActiveRule>) -> Option<String> {
    let Some(rule) = rule else { return Some("has no rule for the model yet".to_owned()) };
    if claim.rewrite_uid != Some(rule.uid.as_str()) {
        return Some(format!("follows the rule of {}", rule.rewrite));
    }
    let stamp = rule.stamps.get(claim.rollout_uid).copied();
    if stamp != Some(claim.weights.sequence.0) {
        return Some("still has earlier weights".to_owned());
    }
    (!same_targets(&rule.targets, &claim.weights.desired)).then(|| "has other targets than were written".to_owned())
}

/// Whether a rule's targets are these weights. A single target may carry any weight, or none: it gets everything.
pub(crate) fn same_targets(targets: &[RewriteTarget], weights: &[TargetWeight]) -> bool {
    if let ([target], [weight]) = (targets, weights) {
        return target.model_rewrite == weight.id.as_str();
    }
    let mut written: Vec<_> = targets.iter().map(|target| (target.model_rewrite.as_str(), target.weight)).collect();
    let mut wanted: Vec<_> = weights.iter().map(|weight| (weight.id.as_str(), Some(weight.weight))).collect();
    written.sort_unstable();
    wanted.sort_unstable();
    written == wanted
}
