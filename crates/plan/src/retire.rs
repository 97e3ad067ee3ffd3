//! All retirements of a Rollout: starts one for each id that lost its weight, ends those of ids that are needed again,
//! and derives the edits of the adapters file. It also releases rejected ids that no router sends requests to.

use crate::{
    decide::{DecisionBuilder, DecisionContext},
    observed::{AdapterListing, AdaptersConfigMap},
    retirement::{self, RetirementInputs, RetirementUpdate, transitions},
    routers::RouterProof,
    traffic::NewlyRetired,
    wait::Wait,
};
use rollora_api::{
    adapters::edit,
    condition::reason,
    names::AdapterId,
    rollout::{
        RolloutSpec, RolloutStatus,
        status::{AdmissionStatus, PastRevision, RetiredAdapter, RetirementState},
    },
};
use std::time::Duration;

/// Maximum number of retired ids, and of ended revisions, that the status keeps.
const MAX_RECORDS: usize = 10;
/// Maximum number of retired ids that the status keeps while none of them is settled.
const MAX_UNSETTLED: usize = 50;

/// Advances every retirement and returns what each waits for.
pub(crate) fn advance_all(
    context: &DecisionContext<'_>,
    builder: &mut DecisionBuilder,
    proof: &RouterProof,
) -> Vec<Wait> {
    let newly_retired = std::mem::take(&mut builder.newly_retired);
    start(context, &mut builder.status, newly_retired);
    restore(context, &mut builder.status);
    let mut waits = Vec::new();
    for index in 0..builder.status.retired.len() {
        let entry = builder.status.retired[index].clone();
        let reference = referenced_by(context, &entry.id);
        let needed = needed_ids(&builder.status).any(|id| *id == entry.id);
        let unproven = unproven_reason(&builder.status, proof);
        let update = retirement::advance(
            &entry,
            RetirementInputs { needed, ..inputs(context, &entry.id, unproven, reference.as_deref()) },
        );
        if update.entry.state != entry.state {
            record_change(context, builder, &update);
        }
        if !is_settled(update.entry.state) {
            waits.push(update.to_wait());
        }
        builder.status.retired[index] = update.entry;
    }
    waits.extend(release_rejected(context, &mut builder.status, proof));
    prune(context, &mut builder.status);
    prune_oldest(builder);
    waits
}

fn start(context: &DecisionContext<'_>, status: &mut RolloutStatus, newly_retired: Vec<NewlyRetired>) {
    for NewlyRetired { id, reason, was_stable } in newly_retired {
        let before = status.retired.iter().position(|entry| entry.id == id).map(|index| status.retired.remove(index));
        transitions::assert_allowed(before.map(|entry| entry.state), Some(RetirementState::Waiting));
        status.retired.push(RetiredAdapter {
            id,
            since: context.now,
            state: RetirementState::Waiting,
            was_stable,
            reason,
        });
    }
}

/// Ends the retirement of ids that are needed again. An id that this operator has unlisted must be listed again first.
fn restore(context: &DecisionContext<'_>, status: &mut RolloutStatus) {
    let needed: Vec<AdapterId> = needed_ids(status).cloned().collect();
    let file = context.adapters_file().ok();
    status.retired.retain_mut(|entry| {
        if !needed.contains(&entry.id) {
            return true;
        }
        let unlisted = file.is_none_or(|file| AdapterListing::of(&entry.id, file) == AdapterListing::EnsureNotExist);
        let by_operator = matches!(
            entry.state,
            RetirementState::Unlisting
                | RetirementState::Unloading
                | RetirementState::Gone
                | RetirementState::Returning
        );
        let returns = unlisted && by_operator;
        transitions::assert_allowed(Some(entry.state), returns.then_some(RetirementState::Returning));
        entry.state = RetirementState::Returning;
        returns
    });
}

fn needed_ids(status: &RolloutStatus) -> impl Iterator<Item = &AdapterId> {
    let weighted = status.weights.desired.iter().map(|target| &target.id);
    let desired = status.revision.desired.iter();
    let desired = desired.filter(|id| !status.rejected.iter().any(|rejected| rejected.id == **id));
    status.revision.stable.iter().chain(desired).chain(weighted)
}

/// Returns why the routers are not proven. Before the first weights no router sends requests for this Rollout.
fn unproven_reason<'b>(status: &RolloutStatus, proof: &'b RouterProof) -> Option<&'b str> {
    let wait = proof.wait.as_ref().filter(|_| !status.weights.desired.is_empty())?;
    Some(wait.message.as_str())
}

fn inputs<'b>(
    context: &'b DecisionContext<'_>,
    id: &AdapterId,
    unproven: Option<&'b str>,
    reference: Option<&'b str>,
) -> RetirementInputs<'b> {
    RetirementInputs {
        now: context.now,
        cleanup: &context.spec.cleanup,
        paused: context.spec.paused,
        gitops_owner: context.adapters().and_then(|adapters| adapters.gitops_owner.as_deref()),
        unproven_reason: unproven,
        servers: context.servers(),
        other_pool_servers: context.observed.other_pool_servers.as_deref(),
        routers: context.observed.routers.as_deref().ok(),
        content_hash: context.content_hash(),
        listing: context.adapters_file().ok().map(|file| AdapterListing::of(id, file)),
        needed: false,
        referenced_by: reference,
        file_text: context.adapters().map(|adapters| adapters.user_text.as_str()),
    }
}

/// Returns the kind and name of another Rollout, or of any rewrite of the namespace, that references the id.
fn referenced_by(context: &DecisionContext<'_>, id: &AdapterId) -> Option<String> {
    let (Ok(rewrites), Ok(_)) = (&context.observed.rewrites, &context.observed.rollouts) else {
        return Some("an unreadable rewrite or Rollout possibly".to_owned());
    };
    let referencing = rewrites.iter().filter(|rewrite| rewrite.metadata.deletion_timestamp.is_none()).find(|rewrite| {
        rewrite.spec.rules.iter().flat_map(|rule| &rule.targets).any(|target| target.model_rewrite == id.as_str())
    });
    if let Some(rewrite) = referencing {
        return Some(format!("rewrite {}", rewrite.metadata.name));
    }
    let other = context.other_rollouts().find(|other| {
        let named = other.spec.adapter.id.as_ref() == Some(id);
        let uses = |status: &RolloutStatus| {
            let waiting =
                |entry: &&RetiredAdapter| matches!(entry.state, RetirementState::Waiting | RetirementState::StillInUse);
            needed_ids(status)
                .chain(status.retired.iter().filter(waiting).map(|entry| &entry.id))
                .any(|other| other == id)
        };
        named || other.status.as_ref().is_some_and(uses)
    });
    other.map(|other| format!("Rollout {}", other.metadata.name))
}

fn record_change(context: &DecisionContext<'_>, builder: &mut DecisionBuilder, update: &RetirementUpdate) {
    let (status, entry) = (&mut builder.status, &update.entry);
    // The id stays admitted: a server may load it again if a client lists it, without another pilot.
    if entry.state == RetirementState::Gone {
        let revision = status.revision.number;
        let outcome = reason::GONE.to_owned();
        status.history.insert(0, PastRevision { revision, id: entry.id.clone(), outcome, at: context.now });
        status.history.truncate(MAX_RECORDS);
    }
    let warning = matches!(entry.state, RetirementState::Suggested);
    let wait = update.to_wait();
    builder.record_event(warning, wait.reason, wait.message);
}

/// Returns whether the operator has nothing left to do for an id in this state.
pub(crate) fn is_settled(state: RetirementState) -> bool {
    matches!(state, RetirementState::Gone | RetirementState::Kept | RetirementState::Relisted)
}

/// Releases rejected ids that were admitted. When no router sends requests to one, no server loads it any more; servers
/// that have it keep it until it is unreferenced and has been unused for `quietFor`.
fn release_rejected(context: &DecisionContext<'_>, status: &mut RolloutStatus, proof: &RouterProof) -> Vec<Wait> {
    let mut waits = Vec::new();
    let rejected_at = status.step.as_ref().map(|step| step.entered_at);
    let since = status.weights.changed_at.or(rejected_at).unwrap_or(context.now);
    let mut rejected: Vec<AdapterId> = status.rejected.iter().map(|rejected| rejected.id.clone()).collect();
    // An id that has weight, or would take it back, is never released, even if it is recorded as rejected.
    let serves = |id: &AdapterId| {
        status.revision.stable.as_ref() == Some(id) || status.weights.desired.iter().any(|target| target.id == *id)
    };
    rejected.retain(|id| status.admission.permits(id) && !serves(id));
    for id in rejected {
        let reference = referenced_by(context, &id);
        let unproven = unproven_reason(status, proof);
        let is_reachable = unproven.is_some() || reference.is_some();
        let inputs = inputs(context, &id, unproven, reference.as_deref());
        let blocker = retirement::find_blocker(&id, since, Duration::ZERO, inputs);
        let AdmissionStatus { admitted, retained, .. } = &mut status.admission;
        if !is_reachable {
            retained.extend(admitted.extract_if(.., |admitted| *admitted == id));
        }
        match blocker {
            None => retained.retain(|other| *other != id),
            Some(blocker) => waits.push(blocker.into_wait(&id)),
        }
    }
    waits
}

/// Drops records that are no longer needed: rejected ids that are neither listed nor loaded, and admissions and past
/// pilots of ids that this Rollout does not use.
fn prune(context: &DecisionContext<'_>, status: &mut RolloutStatus) {
    let (file, servers) = (context.adapters_file().ok(), context.servers());
    let desired = status.revision.desired.clone();
    let admission = status.admission.clone();
    status.rejected.retain(|rejected| {
        let id = &rejected.id;
        let listed = file.is_none_or(|file| {
            matches!(AdapterListing::of(id, file), AdapterListing::EnsureExist | AdapterListing::Both)
        });
        let loaded = servers.is_none_or(|servers| {
            servers.iter().any(|server| server.status.as_ref().map_or(true, |status| status.is_resident(id)))
        });
        listed || loaded || desired.as_ref() == Some(id) || admission.permits(id)
    });
    let is_used = |id: &AdapterId| {
        needed_ids(status).any(|needed| needed == id)
            || status.retired.iter().any(|entry| entry.id == *id)
            || status.rejected.iter().any(|rejected| rejected.id == *id)
    };
    let admitted = status.admission.admitted.iter().filter(|id| is_used(id)).cloned().collect();
    let past_pilots = status.admission.past_pilots.iter().filter(|pilot| is_used(&pilot.id)).cloned().collect();
    let retained =
        status.admission.retained.iter().filter(|id| status.rejected.iter().any(|rejected| rejected.id == **id));
    let retained = retained.cloned().collect();
    status.admission.admitted = admitted;
    status.admission.retained = retained;
    status.admission.past_pilots = past_pilots;
}

/// Drops the oldest of too many retired ids, settled ones first.
fn prune_oldest(builder: &mut DecisionBuilder) {
    while builder.status.retired.len() > MAX_RECORDS {
        let settled = builder.status.retired.iter().position(|entry| is_settled(entry.state));
        if settled.is_none() && builder.status.retired.len() <= MAX_UNSETTLED {
            return;
        }
        let RetiredAdapter { id, state, .. } = builder.status.retired.remove(settled.unwrap_or(0));
        if !is_settled(state) {
            let message = format!(
                "{id} will not be cleaned up, because more than {MAX_UNSETTLED} ids are being retired: move its entry \
                 from ensureExist to ensureNotExist"
            );
            builder.record_event(true, reason::SUGGESTED, message);
        }
    }
}

/// Returns the adapters file after the edits that the retirements need; `None` if there are none. A file that cannot be
/// edited stays as it is, and the retirement reports it.
///
/// An entry moves only after the id has left `serving` in the directives. If the id is needed again, the directives are
/// written first, so that an older edit, by an operator that was stopped in between, fails with a version conflict.
pub(crate) fn edit_adapters_file(
    spec: &RolloutSpec,
    status: &RolloutStatus,
    adapters: &AdaptersConfigMap,
) -> Option<String> {
    let file = adapters.file.as_ref().ok()?;
    let mut edited: Option<String> = None;
    if let (Some(id), Some(source)) = (&spec.adapter.id, &spec.adapter.source)
        && AdapterListing::of(id, file) == AdapterListing::Absent
        && status.revision.desired.as_ref() == Some(id)
    {
        edited = edit::add_entry(&adapters.user_text, id, source).ok();
    }
    for entry in &status.retired {
        let text = edited.as_deref().unwrap_or(&adapters.user_text);
        let next = match (entry.state, AdapterListing::of(&entry.id, file)) {
            (RetirementState::Unlisting, AdapterListing::EnsureExist)
                if !adapters.directives.serving.contains(&entry.id) =>
            {
                edit::unlist(text, &entry.id)
            }
            (RetirementState::Returning, AdapterListing::EnsureNotExist) => edit::relist(text, &entry.id),
            _ => continue,
        };
        edited = next.ok().or(edited);
    }
    edited
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;

    fn builder_with(retirements: &[RetirementState]) -> DecisionBuilder {
        let entry = |(number, retirement): (usize, &RetirementState)| RetiredAdapter {
            id: AdapterId::new(format!("a-v{number}")).unwrap(),
            since: Timestamp::UNIX_EPOCH,
            state: *retirement,
            was_stable: false,
            reason: String::new(),
        };
        let retired = retirements.iter().enumerate().map(entry).collect();
        let status = RolloutStatus { retired, ..RolloutStatus::default() };
        DecisionBuilder { status, events: Vec::new(), newly_retired: Vec::new() }
    }

    fn remaining(states: &[RetirementState]) -> (Vec<String>, usize) {
        let mut builder = builder_with(states);
        prune_oldest(&mut builder);
        let ids = builder.status.retired.iter().map(|entry| entry.id.to_string()).collect();
        (ids, builder.events.len())
    }

    #[test]
    fn settled_retirements_are_dropped_first() {
        use RetirementState::{Gone, Waiting};
        assert_eq!(remaining(&[Gone; MAX_RECORDS]).0.len(), MAX_RECORDS);
        let (ids, events) = remaining(&[&[Waiting, Gone][..], &[Waiting; MAX_RECORDS]].concat());
        assert_eq!((ids.len(), ids.contains(&"a-v1".to_owned()), events), (MAX_RECORDS + 1, false, 0));
        assert_eq!(remaining(&[Waiting; MAX_UNSETTLED]).0.len(), MAX_UNSETTLED);
    }

    #[test]
    fn dropping_an_unsettled_retirement_records_an_event() {
        let (ids, events) = remaining(&[RetirementState::Waiting; MAX_UNSETTLED + 1]);
        assert_eq!((ids.len(), ids[0].as_str(), events), (MAX_UNSETTLED, "a-v1", 1));
    }
}
