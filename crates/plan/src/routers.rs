//! The proof that the routers apply the written weights: every replica that exists reports that the active rule for the
//! model is ours, with the stamp and the targets of the last write.
//!
//! Invariant: without any replica nothing is proven, and a replica that cannot be queried is not proven.

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

/// How long an endpoint picker, which cannot be queried, is given to apply new weights.
const PICKER_GRACE_PERIOD: Duration = Duration::from_secs(10);

/// The rule that every router must report as active.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ExpectedRule<'a> {
    /// The model name that clients send.
    pub(crate) model: &'a ModelName,
    /// The UID of the Rollout, which names its stamp.
    pub(crate) rollout_uid: &'a str,
    /// The UID of the rewrite; `None` while it does not exist.
    pub(crate) rewrite_uid: Option<&'a str>,
    /// Whether the rewrite has been observed with the weights of the status.
    pub(crate) written: bool,
    /// The weights of the status, with their sequence.
    pub(crate) weights: &'a TrafficWeights,
    /// The rewrite whose rule takes precedence over ours; `None` if ours is first.
    pub(crate) shadowed_by: Option<&'a str>,
}

/// How many routers apply the expected rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouterProof {
    /// Routers that report the expected rule.
    pub(crate) proven: usize,
    /// All routers that exist.
    pub(crate) total: usize,
    /// What is waited for; `None` if the proof is complete.
    pub(crate) wait: Option<Wait>,
    /// Another rewrite whose rule is active for the model at some router.
    pub(crate) shadowed_by: Option<String>,
}

impl RouterProof {
    /// Returns whether every router applies the written weights.
    pub(crate) fn is_complete(&self) -> bool {
        self.wait.is_none()
    }

    /// Returns the proof while the rewrites cannot be read: nothing is proven.
    pub(crate) fn unobservable(error: &ObserveError, now: Timestamp) -> Self {
        Self::incomplete(0, 0, Wait::while_unobservable("the rewrites cannot be read", error, now))
    }

    /// Returns a proof that lacks routers, with what it waits for.
    pub(crate) fn incomplete(proven: usize, total: usize, wait: Wait) -> Self {
        Self { proven, total, wait: Some(wait), shadowed_by: None }
    }
}

/// Compares the report of every router with the expected rule.
pub(crate) fn prove(
    kind: RouterKind,
    expected: ExpectedRule<'_>,
    routers: Result<&[ObservedRouter], &ObserveError>,
    now: Timestamp,
) -> RouterProof {
    if !expected.written {
        let wait = Wait::soon(reason::ROUTERS_PENDING, "the rewrite is being written");
        return RouterProof::incomplete(0, routers.map_or(0, <[ObservedRouter]>::len), wait);
    }
    if let Some(other) = expected.shadowed_by {
        let wait = Wait::soon(reason::SHADOWED_BY, shadowed_message(other));
        return RouterProof {
            shadowed_by: Some(other.to_owned()),
            ..RouterProof::incomplete(0, routers.map_or(0, <[ObservedRouter]>::len), wait)
        };
    }
    match (kind, routers) {
        (RouterKind::EndpointPicker, _) => prove_by_grace_period(expected.weights, now),
        (RouterKind::ExtProc, Err(error)) => RouterProof::incomplete(
            0,
            0,
            Wait::soon(reason::UNAVAILABLE, format!("the routers cannot be listed: {error}")),
        ),
        (RouterKind::ExtProc, Ok([])) => RouterProof::incomplete(
            0,
            0,
            Wait::soon(
                reason::NO_ROUTERS,
                "there is no router: start rollora-ext-proc, or set spec.router to EndpointPicker",
            ),
        ),
        (RouterKind::ExtProc, Ok(routers)) => prove_by_report(expected, routers),
    }
}

/// Assumes that a picker applies the weights [`PICKER_GRACE_PERIOD`] after they were observed in the rewrite: the write
/// itself may take a while.
fn prove_by_grace_period(weights: &TrafficWeights, now: Timestamp) -> RouterProof {
    let applied_at = weights.applied_at.max(weights.changed_at);
    let end = applied_at.map_or(now, |applied_at| text::after(applied_at, PICKER_GRACE_PERIOD));
    let wait = (now < end).then(|| {
        let message = format!("waits until {} for the endpoint picker to apply the weights", text::time(end));
        Wait::until(reason::ROUTERS_PENDING, end, message)
    });
    RouterProof { proven: 0, total: 0, wait, shadowed_by: None }
}

/// The message for a rule of another rewrite that takes precedence.
pub(crate) fn shadowed_message(other: &str) -> String {
    format!("the rule of rewrite {other} is active for the model: remove that rule, or this Rollout")
}

fn prove_by_report(expected: ExpectedRule<'_>, routers: &[ObservedRouter]) -> RouterProof {
    let lagging: Vec<String> = routers
        .iter()
        .filter_map(|router| {
            let why = match &router.report {
                Err(error) => Some(format!("cannot be queried ({error})")),
                Ok(report) => mismatch(expected, report.rule(expected.model)),
            };
            why.map(|why| format!("{} {why}", router.name))
        })
        .collect();
    let shadowed_by = routers.iter().find_map(|router| shadowing_rewrite(expected, router.report.as_ref().ok()?));
    let wait = (!lagging.is_empty())
        .then(|| Wait::soon(reason::ROUTERS_PENDING, format!("waits for routers: {}", text::list(&lagging))));
    RouterProof { proven: routers.len() - lagging.len(), total: routers.len(), wait, shadowed_by }
}

/// Returns the rewrite whose exact rule for the model is active instead of ours.
fn shadowing_rewrite(expected: ExpectedRule<'_>, report: &RulesReport) -> Option<String> {
    let rule = report.models.get(expected.model.as_str())?;
    expected.rewrite_uid.is_some_and(|uid| uid != rule.uid).then(|| rule.rewrite.clone())
}

fn mismatch(expected: ExpectedRule<'_>, rule: Option<&ActiveRule>) -> Option<String> {
    let Some(rule) = rule else { return Some("has no rule for the model yet".to_owned()) };
    if expected.rewrite_uid != Some(rule.uid.as_str()) {
        return Some(format!("applies the rule of rewrite {}", rule.rewrite));
    }
    let stamp = rule.stamps.get(expected.rollout_uid).copied();
    if stamp != Some(expected.weights.sequence.0) {
        return Some("still applies earlier weights".to_owned());
    }
    (!same_targets(&rule.targets, &expected.weights.desired))
        .then(|| "applies other targets than those written".to_owned())
}

/// Returns whether a rule's targets have these weights. A single target may have any weight or none: it gets all
/// traffic.
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
