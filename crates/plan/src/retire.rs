//! Between the two machines: ids that traffic left begin to go, ids that are wanted again come back, and the edits of
//! the adapters file that follow. Also lets go of rejected ids when nobody can reach them any more.

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

/// Retired ids and ended revisions that are kept.
const MAX_RECORDS: usize = 10;
/// Retired ids that are kept while something is left to be done for each.
const MAX_UNSETTLED: usize = 50;

/// Moves every retirement on, and says what each waits for.
pub(crate) fn advance_all(case: &DecisionContext<'_>, draft: &mut DecisionBuilder, proof: &RouterProof) -> Vec<Wait> {
    let left = std::mem::take(&mut draft.newly_retired);
    start(case, &mut draft.status, left);
    restore(case, &mut draft.status);
    let mut waits = Vec::new();
    for index in 0..draft.status.retired.len() {
        let entry = draft.status.retired[index].clone();
        let named_by = referenced_by(case, &entry.id);
        let wanted = needed_ids(&draft.status).any(|wanted| *wanted == entry.id);
        let unproven = unproven_reason(&draft.status, proof);
        let looked = retirement::advance(
            &entry,
            RetirementInputs { needed: wanted, ..inputs(case, &entry.id, unproven, named_by.as_deref()) },
        );
        if looked.entry.state != entry.state {
            record_change(case, draft, &looked);
        }
        if !is_settled(looked.entry.state) {
            waits.push(looked.to_wait());
        }
        draft.status.retired[index] = looked.entry;
    }
    waits.extend(release_rejected(case, &mut draft.status, proof));
    prune(case, &mut draft.status);
    prune_oldest(draft);
    waits
}

fn start(case: &DecisionContext<'_>, status: &mut RolloutStatus, left: Vec<NewlyRetired>) {
    for NewlyRetired { id, reason, was_stable } in left {
        let before = status.retired.iter().position(|entry| entry.id == id).map(|index| status.retired.remove(index));
        transitions::assert_allowed(before.map(|entry| entry.state), Some(RetirementState::Waiting));
        status.retired.push(RetiredAdapter {
            id,
            since: case.now,
            state: RetirementState::Waiting,
            was_stable,
            reason,
        });
    }
}

/// Ids that are wanted are not retired. One that this operator has unlisted is listed again first.
fn restore(case: &DecisionContext<'_>, status: &mut RolloutStatus) {
    let wanted: Vec<AdapterId> = needed_ids(status).cloned().collect();
    let file = case.adapters_file().ok();
    status.retired.retain_mut(|entry| {
        if !wanted.contains(&entry.id) {
            return true;
        }
        let unlisted = file.is_none_or(|file| AdapterListing::of(&entry.id, file) == AdapterListing::EnsureNotExist);
        let by_us = matches!(
            entry.state,
            RetirementState::Unlisting
                | RetirementState::Unloading
                | RetirementState::Gone
                | RetirementState::Returning
        );
        let returns = unlisted && by_us;
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

/// Why the routers are not proven. While no weight was ever given, no router sends anything anywhere for us.
fn unproven_reason<'b>(status: &RolloutStatus, proof: &'b RouterProof) -> Option<&'b str> {
    let wait = proof.wait.as_ref().filter(|_| !status.weights.desired.is_empty())?;
    Some(wait.message.as_str())
}

fn inputs<'b>(
    case: &'b DecisionContext<'_>,
    id: &AdapterId,
    unproven: Option<&'b str>,
    named_by: Option<&'b str>,
) -> RetirementInputs<'b> {
    RetirementInputs {
        now: case.now,
        cleanup: &case.spec.cleanup,
        paused: case.spec.paused,
        gitops_owner: case.adapters().and_then(|adapters| adapters.gitops_owner.as_deref()),
        unproven_reason: unproven,
        servers: case.servers(),
        other_pool_servers: case.observed.other_pool_servers.as_deref(),
        routers: case.observed.routers.as_deref().ok(),
        content_hash: case.content_hash(),
        listing: case.adapters_file().ok().map(|file| AdapterListing::of(id, file)),
        needed: false,
        referenced_by: named_by,
        file_text: case.adapters().map(|adapters| adapters.user_text.as_str()),
    }
}

/// Another Rollout, or any rewrite of the pool, that names the id.
fn referenced_by(case: &DecisionContext<'_>, id: &AdapterId) -> Option<String> {
    let (Ok(rewrites), Ok(_)) = (&case.observed.rewrites, &case.observed.rollouts) else {
        return Some("somebody who cannot be read now".to_owned());
    };
    let points_at = rewrites.iter().filter(|rewrite| rewrite.metadata.deletion_timestamp.is_none()).find(|rewrite| {
        rewrite.spec.rules.iter().flat_map(|rule| &rule.targets).any(|target| target.model_rewrite == id.as_str())
    });
    if let Some(rewrite) = points_at {
        return Some(format!("rewrite {}", rewrite.metadata.name));
    }
    let other = case.other_rollouts().find(|other| {
        let named = other.spec.adapter.id.as_ref() == Some(id);
        let held = |status: &RolloutStatus| {
            let waiting =
                |entry: &&RetiredAdapter| matches!(entry.state, RetirementState::Waiting | RetirementState::StillInUse);
            needed_ids(status)
                .chain(status.retired.iter().filter(waiting).map(|entry| &entry.id))
                .any(|other| other == id)
        };
        named || other.status.as_ref().is_some_and(held)
    });
    other.map(|other| format!("Rollout {}", other.metadata.name))
}

fn record_change(case: &DecisionContext<'_>, draft: &mut DecisionBuilder, looked: &RetirementUpdate) {
    let (status, entry) = (&mut draft.status, &looked.entry);
    // It stays admitted where it was: what was proven once may be loaded by whoever lists it again, and nothing else.
    if entry.state == RetirementState::Gone {
        let revision = status.revision.number;
        let outcome = reason::GONE.to_owned();
        status.history.insert(0, PastRevision { revision, id: entry.id.clone(), outcome, at: case.now });
        status.history.truncate(MAX_RECORDS);
    }
    let warning = matches!(entry.state, RetirementState::Suggested);
    let wait = looked.to_wait();
    draft.record_event(warning, wait.reason, wait.message);
}

/// Whether nothing is left to do by anybody but a person who wants something else.
pub(crate) fn is_settled(state: RetirementState) -> bool {
    matches!(state, RetirementState::Gone | RetirementState::Kept | RetirementState::Relisted)
}

/// A rejected id that was admitted is loaded by nobody any more when no router sends to it, and stays where it is loaded
/// until nobody can reach it and it has been quiet.
fn release_rejected(case: &DecisionContext<'_>, status: &mut RolloutStatus, proof: &RouterProof) -> Vec<Wait> {
    let mut waits = Vec::new();
    let rejected_at = status.step.as_ref().map(|step| step.entered_at);
    let since = status.weights.changed_at.or(rejected_at).unwrap_or(case.now);
    let mut rejected: Vec<AdapterId> = status.rejected.iter().map(|rejected| rejected.id.clone()).collect();
    // What still has weight, or would take it, is let go by nobody, whatever is known against it.
    let serves = |id: &AdapterId| {
        status.revision.stable.as_ref() == Some(id) || status.weights.desired.iter().any(|target| target.id == *id)
    };
    rejected.retain(|id| status.admission.permits(id) && !serves(id));
    for id in rejected {
        let named_by = referenced_by(case, &id);
        let unproven = unproven_reason(status, proof);
        let is_reachable = unproven.is_some() || named_by.is_some();
        let scene = inputs(case, &id, unproven, named_by.as_deref());
        let hindrance = retirement::find_blocker(&id, since, Duration::ZERO, scene);
        let AdmissionStatus { admitted, retained: held, .. } = &mut status.admission;
        if !is_reachable {
            held.extend(admitted.extract_if(.., |admitted| *admitted == id));
        }
        match hindrance {
            None => held.retain(|held| *held != id),
            Some(hindrance) => waits.push(hindrance.into_wait(&id)),
        }
    }
    waits
}

/// Drops what nobody needs to remember: rejected ids that are neither listed nor loaded any more, admissions and trials
/// of ids that have no part here.
fn prune(case: &DecisionContext<'_>, status: &mut RolloutStatus) {
    let (file, servers) = (case.adapters_file().ok(), case.servers());
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
    let known = |id: &AdapterId| {
        needed_ids(status).any(|wanted| wanted == id)
            || status.retired.iter().any(|entry| entry.id == *id)
            || status.rejected.iter().any(|rejected| rejected.id == *id)
    };
    let admitted = status.admission.admitted.iter().filter(|id| known(id)).cloned().collect();
    let tried = status.admission.past_pilots.iter().filter(|pilot| known(&pilot.id)).cloned().collect();
    let held = status.admission.retained.iter().filter(|id| status.rejected.iter().any(|rejected| rejected.id == **id));
    let held = held.cloned().collect();
    status.admission.admitted = admitted;
    status.admission.retained = held;
    status.admission.past_pilots = tried;
}

/// Drops the oldest of too many retired ids, first those that nothing is left to be done for.
fn prune_oldest(draft: &mut DecisionBuilder) {
    while draft.status.retired.len() > MAX_RECORDS {
        let settled = draft.status.retired.iter().position(|entry| is_settled(entry.state));
        if settled.is_none() && draft.status.retired.len() <= MAX_UNSETTLED {
            return;
        }
        let RetiredAdapter { id, state, .. } = draft.status.retired.remove(settled.unwrap_or(0));
        if !is_settled(state) {
            let message = format!(
                "{id} is not cleaned up any more: more than {MAX_UNSETTLED} ids are on their way out; move its entry from \
                 ensureExist to ensureNotExist"
            );
            draft.record_event(true, reason::SUGGESTED, message);
        }
    }
}

/// The adapters file after the edits that the retirements need; none where nothing has to be edited. A file that
/// cannot be edited stays as it is: the retirement says so.
///
/// An entry moves only when the key does not say any more that its id serves. So whoever wants it back meanwhile writes
/// the key first, and an edit that was begun before, by an operator that somebody stopped, finds another version.
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
        let mut draft = builder_with(states);
        prune_oldest(&mut draft);
        let ids = draft.status.retired.iter().map(|entry| entry.id.to_string()).collect();
        (ids, draft.events.len())
    }

    #[test]
    fn of_too_many_retired_ids_the_oldest_go_that_nothing_is_left_to_be_done_for() {
        use RetirementState::{Gone, Waiting};
        assert_eq!(remaining(&[Gone; MAX_RECORDS]).0.len(), MAX_RECORDS);
        let (ids, said) = remaining(&[&[Waiting, Gone][..], &[Waiting; MAX_RECORDS]].concat());
        assert_eq!((ids.len(), ids.contains(&"a-v1".to_owned()), said), (MAX_RECORDS + 1, false, 0));
        assert_eq!(remaining(&[Waiting; MAX_UNSETTLED]).0.len(), MAX_UNSETTLED);
    }

    #[test]
    fn one_that_is_dropped_before_its_end_is_said() {
        let (ids, said) = remaining(&[RetirementState::Waiting; MAX_UNSETTLED + 1]);
        assert_eq!((ids.len(), ids[0].as_str(), said), (MAX_UNSETTLED, "a-v1", 1));
    }
}
