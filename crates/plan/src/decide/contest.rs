//! The rewrite as somebody else left it: a higher stamp, an edit, a deletion; and a rival who does not stop.

use super::{DecisionBuilder, DecisionContext};
use crate::{residency, rewrite, text};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::{AdapterId, Sequence},
    rollout::{RolloutStatus, status::RewriteIdentity},
};
use std::time::Duration;

/// So many foreign edits within [`WINDOW`] are a contest.
const CONTEST_THRESHOLD: usize = 3;
/// See [`CONTEST`].
const CONTEST_WINDOW: Duration = Duration::from_mins(5);
/// How slowly a contested rewrite is put back.
const CONTESTED_WRITE_INTERVAL: Duration = Duration::from_mins(1);

impl DecisionContext<'_> {
    /// Takes note of what the rewrite says: a higher stamp, our own last write, or somebody else's edit.
    pub(super) fn observe_rewrite(&self, draft: &mut DecisionBuilder) {
        let status = &mut draft.status;
        if self.observed.rewrites.is_err() || status.weights.desired.is_empty() {
            return;
        }
        if let Some(rewrite) = self.rewrite {
            status.rewrite = Some(RewriteIdentity {
                group: rewrite.group().map(|group| group.name().to_owned()).unwrap_or_default(),
                name: rewrite.metadata.name.clone(),
                uid: rewrite.metadata.uid.clone().unwrap_or_default(),
            });
            // Somebody wrote for this Rollout what this status does not know of. If the status is old, writing it will
            // be refused as stale; if it is not, it was restored, and goes on from there.
            if let Some(stamp) =
                rewrite::stamped_sequence(rewrite, self.uid).filter(|stamp| *stamp > status.weights.sequence)
            {
                status.weights.sequence = stamp.next();
                return;
            }
            if rewrite::is_written(rewrite, self.desired_rewrite(status)) {
                if status.weights.applied != status.weights.sequence {
                    status.weights.applied = status.weights.sequence;
                    status.weights.applied_at = Some(self.now);
                }
                return;
            }
        }
        // A rival may be so quick that our write is never found in the rewrite.
        if [Some(status.weights.applied), self.observed.overwritten_sequence].contains(&Some(status.weights.sequence)) {
            self.record_overwrite(draft);
        }
    }

    fn record_overwrite(&self, draft: &mut DecisionBuilder) {
        let weights = &mut draft.status.weights;
        // From here on it is just a write that is missing: it is said once.
        weights.applied = weights.applied.min(Sequence(weights.sequence.0 - 1));
        weights.overwritten.push(self.now);
        let surplus = weights.overwritten.len().saturating_sub(CONTEST_THRESHOLD);
        weights.overwritten.drain(..surplus);
        let what = if self.rewrite.is_some() { "edited" } else { "deleted" };
        let message = format!("somebody {what} rewrite {}: its weights are put back", self.rewrite_name());
        draft.record_event(true, reason::REWRITE_OVERWRITTEN, message);
    }

    /// Until when a contested rewrite is left as it is. Never while it would send requests to nobody, and never when
    /// weights have to move.
    pub(crate) fn contested_until(&self, status: &RolloutStatus) -> Option<Timestamp> {
        let overwritten = &status.weights.overwritten;
        let (first, last) = (overwritten.first()?, overwritten.last()?);
        let contested = overwritten.len() >= CONTEST_THRESHOLD && text::since(*first, self.now) < CONTEST_WINDOW;
        let moved_since = status.weights.changed_at.is_some_and(|changed| changed > *last);
        let end = text::after(*last, CONTESTED_WRITE_INTERVAL);
        (contested && !moved_since && self.now < end && self.foreign_targets_serve()).then_some(end)
    }

    /// Whether requests would be answered if the rewrite stayed as somebody else left it.
    fn foreign_targets_serve(&self) -> bool {
        let rule = self.rewrite.and_then(|rewrite| rewrite::rule_for(&self.spec.model, rewrite));
        let (Some(rule), Some(servers)) = (rule, self.servers()) else { return false };
        rule.targets.iter().all(|target| {
            AdapterId::new(target.model_rewrite.clone()).is_ok_and(|id| residency::could_serve(&id, servers))
        })
    }
}
