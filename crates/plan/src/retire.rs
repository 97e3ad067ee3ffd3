//! Between the two machines: ids that traffic left begin to go, ids that are wanted again come back, and the edits of
//! the adapters file that follow. Also lets go of rejected ids when nobody can reach them any more.

use crate::{
    decide::{Case, Draft},
    observed::{Adapters, Listing},
    retirement::{self, Looked, Scene, map},
    routers::Proof,
    traffic::Left,
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
const KEPT: usize = 10;
/// Retired ids that are kept while something is left to be done for each.
const UNSETTLED: usize = 50;

/// Moves every retirement on, and says what each waits for.
pub(crate) fn go_on(case: &Case<'_>, draft: &mut Draft, proof: &Proof) -> Vec<Wait> {
    let left = std::mem::take(&mut draft.left);
    begin(case, &mut draft.status, left);
    come_back(case, &mut draft.status);
    let mut waits = Vec::new();
    for index in 0..draft.status.retired.len() {
        let entry = draft.status.retired[index].clone();
        let named_by = named_by(case, &entry.id);
        let wanted = wanted(&draft.status).any(|wanted| *wanted == entry.id);
        let unproven = unproven(&draft.status, proof);
        let looked =
            retirement::advance(&entry, Scene { wanted, ..scene(case, &entry.id, unproven, named_by.as_deref()) });
        if looked.entry.state != entry.state {
            changed(case, draft, &looked);
        }
        if !is_settled(looked.entry.state) {
            waits.push(looked.wait());
        }
        draft.status.retired[index] = looked.entry;
    }
    waits.extend(release_rejected(case, &mut draft.status, proof));
    forget(case, &mut draft.status);
    forget_oldest(draft);
    waits
}

fn begin(case: &Case<'_>, status: &mut RolloutStatus, left: Vec<Left>) {
    for Left { id, reason, was_stable } in left {
        let before = status.retired.iter().position(|entry| entry.id == id).map(|index| status.retired.remove(index));
        map::assert_is_on_it(before.map(|entry| entry.state), Some(RetirementState::Waiting));
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
fn come_back(case: &Case<'_>, status: &mut RolloutStatus) {
    let wanted: Vec<AdapterId> = wanted(status).cloned().collect();
    let file = case.file().ok();
    status.retired.retain_mut(|entry| {
        if !wanted.contains(&entry.id) {
            return true;
        }
        let unlisted = file.is_none_or(|file| Listing::of(&entry.id, file) == Listing::NotExist);
        let by_us = matches!(
            entry.state,
            RetirementState::Unlisting
                | RetirementState::Unloading
                | RetirementState::Gone
                | RetirementState::Returning
        );
        let returns = unlisted && by_us;
        map::assert_is_on_it(Some(entry.state), returns.then_some(RetirementState::Returning));
        entry.state = RetirementState::Returning;
        returns
    });
}

fn wanted(status: &RolloutStatus) -> impl Iterator<Item = &AdapterId> {
    let weighted = status.weights.desired.iter().map(|target| &target.id);
    let desired = status.revision.desired.iter();
    let desired = desired.filter(|id| !status.rejected.iter().any(|rejected| rejected.id == **id));
    status.revision.stable.iter().chain(desired).chain(weighted)
}

/// Why the routers are not proven. While no weight was ever given, no router sends anything anywhere for us.
fn unproven<'b>(status: &RolloutStatus, proof: &'b Proof) -> Option<&'b str> {
    let wait = proof.wait.as_ref().filter(|_| !status.weights.desired.is_empty())?;
    Some(wait.message.as_str())
}

fn scene<'b>(case: &'b Case<'_>, id: &AdapterId, unproven: Option<&'b str>, named_by: Option<&'b str>) -> Scene<'b> {
    Scene {
        now: case.now,
        cleanup: &case.spec.cleanup,
        paused: case.spec.paused,
        gitops_owner: case.adapters().and_then(|adapters| adapters.gitops_owner.as_deref()),
        unproven,
        servers: case.servers(),
        sharers: case.world.sharers.as_deref(),
        routers: case.world.routers.as_deref().ok(),
        content: case.content(),
        listing: case.file().ok().map(|file| Listing::of(id, file)),
        wanted: false,
        named_by,
        text: case.adapters().map(|adapters| adapters.user_text.as_str()),
    }
}

/// Another Rollout, or any rewrite of the pool, that names the id.
fn named_by(case: &Case<'_>, id: &AdapterId) -> Option<String> {
    let (Ok(rewrites), Ok(_)) = (&case.world.rewrites, &case.world.rollouts) else {
        return Some("somebody who cannot be read now".to_owned());
    };
    let points_at = rewrites.iter().filter(|rewrite| rewrite.metadata.deletion_timestamp.is_none()).find(|rewrite| {
        rewrite.spec.rules.iter().flat_map(|rule| &rule.targets).any(|target| target.model_rewrite == id.as_str())
    });
    if let Some(rewrite) = points_at {
        return Some(format!("rewrite {}", rewrite.metadata.name));
    }
    let other = case.others().find(|other| {
        let named = other.spec.adapter.id.as_ref() == Some(id);
        let held = |status: &RolloutStatus| {
            let waiting =
                |entry: &&RetiredAdapter| matches!(entry.state, RetirementState::Waiting | RetirementState::StillInUse);
            wanted(status).chain(status.retired.iter().filter(waiting).map(|entry| &entry.id)).any(|other| other == id)
        };
        named || other.status.as_ref().is_some_and(held)
    });
    other.map(|other| format!("Rollout {}", other.metadata.name))
}

fn changed(case: &Case<'_>, draft: &mut Draft, looked: &Looked) {
    let (status, entry) = (&mut draft.status, &looked.entry);
    // It stays admitted where it was: what was proven once may be loaded by whoever lists it again, and nothing else.
    if entry.state == RetirementState::Gone {
        let revision = status.revision.number;
        let outcome = reason::GONE.to_owned();
        status.history.insert(0, PastRevision { revision, id: entry.id.clone(), outcome, at: case.now });
        status.history.truncate(KEPT);
    }
    let warning = matches!(entry.state, RetirementState::Suggested);
    let wait = looked.wait();
    draft.say(warning, wait.reason, wait.message);
}

/// Whether nothing is left to do by anybody but a person who wants something else.
pub(crate) fn is_settled(state: RetirementState) -> bool {
    matches!(state, RetirementState::Gone | RetirementState::Kept | RetirementState::Relisted)
}

/// A rejected id that was admitted is loaded by nobody any more when no router sends to it, and stays where it is loaded
/// until nobody can reach it and it has been quiet.
fn release_rejected(case: &Case<'_>, status: &mut RolloutStatus, proof: &Proof) -> Vec<Wait> {
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
        let named_by = named_by(case, &id);
        let unproven = unproven(status, proof);
        let is_reachable = unproven.is_some() || named_by.is_some();
        let scene = scene(case, &id, unproven, named_by.as_deref());
        let hindrance = retirement::hindrance(&id, since, Duration::ZERO, scene);
        let AdmissionStatus { admitted, retained: held, .. } = &mut status.admission;
        if !is_reachable {
            held.extend(admitted.extract_if(.., |admitted| *admitted == id));
        }
        match hindrance {
            None => held.retain(|held| *held != id),
            Some(hindrance) => waits.push(hindrance.wait(&id)),
        }
    }
    waits
}

/// Drops what nobody needs to remember: rejected ids that are neither listed nor loaded any more, admissions and trials
/// of ids that have no part here.
fn forget(case: &Case<'_>, status: &mut RolloutStatus) {
    let (file, servers) = (case.file().ok(), case.servers());
    let desired = status.revision.desired.clone();
    let admission = status.admission.clone();
    status.rejected.retain(|rejected| {
        let id = &rejected.id;
        let listed = file.is_none_or(|file| matches!(Listing::of(id, file), Listing::Exist | Listing::Both));
        let loaded = servers.is_none_or(|servers| {
            servers.iter().any(|server| server.status.as_ref().map_or(true, |status| status.is_resident(id)))
        });
        listed || loaded || desired.as_ref() == Some(id) || admission.permits(id)
    });
    let known = |id: &AdapterId| {
        wanted(status).any(|wanted| wanted == id)
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
fn forget_oldest(draft: &mut Draft) {
    while draft.status.retired.len() > KEPT {
        let settled = draft.status.retired.iter().position(|entry| is_settled(entry.state));
        if settled.is_none() && draft.status.retired.len() <= UNSETTLED {
            return;
        }
        let RetiredAdapter { id, state, .. } = draft.status.retired.remove(settled.unwrap_or(0));
        if !is_settled(state) {
            let message = format!(
                "{id} is not cleaned up any more: more than {UNSETTLED} ids are on their way out; move its entry from \
                 ensureExist to ensureNotExist"
            );
            draft.say(true, reason::SUGGESTED, message);
        }
    }
}

/// The adapters file after the edits that the retirements need; none where nothing has to be edited. A file that
/// cannot be edited stays as it is: the retirement says so.
///
/// An entry moves only when the key does not say any more that its id serves. So whoever wants it back meanwhile writes
/// the key first, and an edit that was begun before, by an operator that somebody stopped, finds another version.
pub(crate) fn edit(spec: &RolloutSpec, status: &RolloutStatus, adapters: &Adapters) -> Option<String> {
    let file = adapters.file.as_ref().ok()?;
    let mut edited: Option<String> = None;
    if let (Some(id), Some(source)) = (&spec.adapter.id, &spec.adapter.source)
        && Listing::of(id, file) == Listing::Absent
        && status.revision.desired.as_ref() == Some(id)
    {
        edited = edit::add_entry(&adapters.user_text, id, source).ok();
    }
    for entry in &status.retired {
        let text = edited.as_deref().unwrap_or(&adapters.user_text);
        let next = match (entry.state, Listing::of(&entry.id, file)) {
            (RetirementState::Unlisting, Listing::Exist) if !adapters.key.serving.contains(&entry.id) => {
                edit::unlist(text, &entry.id)
            }
            (RetirementState::Returning, Listing::NotExist) => edit::relist(text, &entry.id),
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

    fn draft(retirements: &[RetirementState]) -> Draft {
        let entry = |(number, retirement): (usize, &RetirementState)| RetiredAdapter {
            id: AdapterId::new(format!("a-v{number}")).unwrap(),
            since: Timestamp::UNIX_EPOCH,
            state: *retirement,
            was_stable: false,
            reason: String::new(),
        };
        let retired = retirements.iter().enumerate().map(entry).collect();
        let status = RolloutStatus { retired, ..RolloutStatus::default() };
        Draft { status, events: Vec::new(), left: Vec::new() }
    }

    fn kept(states: &[RetirementState]) -> (Vec<String>, usize) {
        let mut draft = draft(states);
        forget_oldest(&mut draft);
        let ids = draft.status.retired.iter().map(|entry| entry.id.to_string()).collect();
        (ids, draft.events.len())
    }

    #[test]
    fn of_too_many_retired_ids_the_oldest_go_that_nothing_is_left_to_be_done_for() {
        use RetirementState::{Gone, Waiting};
        assert_eq!(kept(&[Gone; KEPT]).0.len(), KEPT);
        let (ids, said) = kept(&[&[Waiting, Gone][..], &[Waiting; KEPT]].concat());
        assert_eq!((ids.len(), ids.contains(&"a-v1".to_owned()), said), (KEPT + 1, false, 0));
        assert_eq!(kept(&[Waiting; UNSETTLED]).0.len(), UNSETTLED);
    }

    #[test]
    fn one_that_is_dropped_before_its_end_is_said() {
        let (ids, said) = kept(&[RetirementState::Waiting; UNSETTLED + 1]);
        assert_eq!((ids.len(), ids[0].as_str(), said), (UNSETTLED, "a-v1", 1));
    }
}
