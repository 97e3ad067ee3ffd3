//! Changes of the rewrite by other clients: a higher stamp, an edit, a deletion, and a contest with a client that keeps
//! editing.

use super::{DecisionBuilder, DecisionContext};
use crate::{residency, rewrite, text};
use jiff::Timestamp;
use rollora_api::{
    condition::reason,
    names::{AdapterId, Sequence},
    rollout::{RolloutStatus, status::RewriteIdentity},
};
use std::time::Duration;

/// This many foreign edits within [`CONTEST_WINDOW`] are a contest.
const CONTEST_THRESHOLD: usize = 3;
/// The interval in which foreign edits are counted.
const CONTEST_WINDOW: Duration = Duration::from_mins(5);
/// The shortest interval between two writes of a contested rewrite.
const CONTESTED_WRITE_INTERVAL: Duration = Duration::from_mins(1);

impl DecisionContext<'_> {
    /// Records what the rewrite shows: a higher stamp, our own last write, or the edit of another writer.
    pub(super) fn observe_rewrite(&self, builder: &mut DecisionBuilder) {
        let status = &mut builder.status;
        if self.observed.rewrites.is_err() || status.weights.desired.is_empty() {
            return;
        }
        if let Some(rewrite) = self.rewrite {
            status.rewrite = Some(RewriteIdentity {
                group: rewrite.group().map(|group| group.name().to_owned()).unwrap_or_default(),
                name: rewrite.metadata.name.clone(),
                uid: rewrite.metadata.uid.clone().unwrap_or_default(),
            });
            // The rewrite has a write for this Rollout that this status does not know. If the status is stale, writing
            // it will be refused; otherwise it was restored from an older copy, and continues from the higher stamp.
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
        // Another client may be so fast that our write is never observed in the rewrite.
        if [Some(status.weights.applied), self.observed.overwritten_sequence].contains(&Some(status.weights.sequence)) {
            self.record_overwrite(builder);
        }
    }

    fn record_overwrite(&self, builder: &mut DecisionBuilder) {
        let weights = &mut builder.status.weights;
        // From here on it is an ordinary missing write, so the event is recorded once.
        weights.applied = weights.applied.min(Sequence(weights.sequence.0 - 1));
        weights.overwritten.push(self.now);
        let surplus = weights.overwritten.len().saturating_sub(CONTEST_THRESHOLD);
        weights.overwritten.drain(..surplus);
        let what = if self.rewrite.is_some() { "edited" } else { "deleted" };
        let message = format!("another writer {what} rewrite {}: its weights are written again", self.rewrite_name());
        builder.record_event(true, reason::REWRITE_OVERWRITTEN, message);
    }

    /// Returns until when a contested rewrite is left as it is; `None` if it may be written now. It is never left while
    /// its targets could not be served, nor if the weights have changed since.
    pub(crate) fn contested_until(&self, status: &RolloutStatus) -> Option<Timestamp> {
        let overwritten = &status.weights.overwritten;
        let (first, last) = (overwritten.first()?, overwritten.last()?);
        let contested = overwritten.len() >= CONTEST_THRESHOLD && text::since(*first, self.now) < CONTEST_WINDOW;
        let moved_since = status.weights.changed_at.is_some_and(|changed| changed > *last);
        let end = text::after(*last, CONTESTED_WRITE_INTERVAL);
        (contested && !moved_since && self.now < end && self.foreign_targets_serve()).then_some(end)
    }

    /// Returns whether servers could serve every target of the rewrite as another writer left it.
    fn foreign_targets_serve(&self) -> bool {
        let rule = self.rewrite.and_then(|rewrite| rewrite::rule_for(&self.spec.model, rewrite));
        let (Some(rule), Some(servers)) = (rule, self.servers()) else { return false };
        rule.targets.iter().all(|target| {
            AdapterId::new(target.model_rewrite.clone()).is_ok_and(|id| residency::could_serve(&id, servers))
        })
    }
}
