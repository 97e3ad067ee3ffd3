//! The second of the two machines: how an adapter that lost its weight goes, one for every retired id.
//!
//! Every move that it makes is in [`map`], which is also what `ARCHITECTURE.md` shows.
//!
//! Invariants: an id is not unlisted before the routers are proven, it has been quiet, its delay is over and nobody
//! names it; the state of the traffic machine is not read.

#[cfg(test)]
mod tests;
pub(crate) mod transitions;

use crate::{
    observed::{AdapterListing, ObserveError, ObservedRouter, ObservedServer},
    residency::is_fresh,
    text::{self, after},
    wait::{RequeueWhen, Wait},
};
use jiff::Timestamp;
use rollora_api::{
    adapters::{ContentHash, edit},
    condition::reason,
    names::AdapterId,
    rollout::{
        spec::{Cleanup, CleanupPolicy},
        status::{RetiredAdapter, RetirementState},
    },
    sidecar_status::{AdapterState, NO_SIDECAR, SidecarStatus},
};
use std::time::Duration;

/// How often it is looked whether somebody still names an id.
const REFERENCE_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// What this machine looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetirementInputs<'a> {
    /// The time.
    pub(crate) now: Timestamp,
    /// `spec.cleanup`.
    pub(crate) cleanup: &'a Cleanup,
    /// `spec.paused`.
    pub(crate) paused: bool,
    /// Who else writes the adapters ConfigMap.
    pub(crate) gitops_owner: Option<&'a str>,
    /// Why the routers are not proven, where they are not.
    pub(crate) unproven_reason: Option<&'a str>,
    /// Every server of the pool; none where they could not be listed.
    pub(crate) servers: Option<&'a [ObservedServer]>,
    /// Every server beside the pool that reads the same adapters file.
    pub(crate) other_pool_servers: Result<&'a [ObservedServer], &'a ObserveError>,
    /// Every router; none where they could not be listed.
    pub(crate) routers: Option<&'a [ObservedRouter]>,
    /// The hash of the present content of the ConfigMap; none where it could not be read.
    pub(crate) content_hash: Option<&'a ContentHash>,
    /// Where the id stands in the file; none where that could not be read.
    pub(crate) listing: Option<AdapterListing>,
    /// Whether it is on its way back.
    pub(crate) needed: bool,
    /// Who else names the id.
    pub(crate) referenced_by: Option<&'a str>,
    /// The adapters file; none where it could not be read.
    pub(crate) file_text: Option<&'a str>,
}

impl<'a> RetirementInputs<'a> {
    /// Every server that may hold the id, or why they could not be listed.
    fn possible_holders(&self) -> Result<Vec<&'a ObservedServer>, String> {
        let servers = self.servers.ok_or("the servers cannot be listed")?;
        let sharers = self
            .other_pool_servers
            .map_err(|why| format!("who else reads the adapters file cannot be listed: {why}"))?;
        Ok(servers.iter().chain(sharers).collect())
    }
}

/// One retirement after a look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetirementUpdate {
    /// Its state and reason.
    pub(crate) entry: RetiredAdapter,
    /// When to look again.
    pub(crate) requeue: RequeueWhen,
}

impl RetirementUpdate {
    /// The same as something that is waited for, or told.
    pub(crate) fn to_wait(&self) -> Wait {
        let message = format!("{}: {}", self.entry.id, self.entry.reason);
        Wait { reason: condition_reason(self.entry.state), message, requeue: self.requeue }
    }
}

fn condition_reason(state: RetirementState) -> &'static str {
    match state {
        RetirementState::Waiting | RetirementState::Unlisting | RetirementState::Unloading => reason::DRAINING,
        RetirementState::StillInUse => reason::STILL_IN_USE,
        RetirementState::Relisted => reason::RELISTED,
        RetirementState::Suggested => reason::SUGGESTED,
        RetirementState::Kept => reason::KEPT,
        RetirementState::Gone => reason::GONE,
        RetirementState::Returning => reason::NOT_LISTED,
    }
}

/// Why an id may not go yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blocker {
    state: RetirementState,
    reason: String,
    requeue: RequeueWhen,
}

impl Blocker {
    fn waiting(reason: impl Into<String>, requeue: RequeueWhen) -> Self {
        Self { state: RetirementState::Waiting, reason: reason.into(), requeue }
    }

    /// The same as something that `id` waits for.
    pub(crate) fn into_wait(self, id: &AdapterId) -> Wait {
        Wait { reason: condition_reason(self.state), message: format!("{id}: {}", self.reason), requeue: self.requeue }
    }
}

/// Moves one retirement on.
pub(crate) fn advance(entry: &RetiredAdapter, scene: RetirementInputs<'_>) -> RetirementUpdate {
    let looked = match entry.state {
        RetirementState::Waiting | RetirementState::StillInUse | RetirementState::Suggested | RetirementState::Kept => {
            begin_cleanup(entry, scene)
        }
        // Until its entry has moved nothing has happened: what comes up meanwhile keeps it.
        RetirementState::Unlisting if scene.listing == Some(AdapterListing::EnsureExist) => begin_cleanup(entry, scene),
        RetirementState::Unlisting => unlist(entry, scene),
        RetirementState::Unloading => unload(entry, scene),
        RetirementState::Relisted => handle_relisted(entry, scene),
        RetirementState::Gone => handle_gone(entry, scene),
        RetirementState::Returning if scene.needed => {
            transition(entry, RetirementState::Returning, "it is listed again", RequeueWhen::OnChange)
        }
        // Whoever wanted it back has thought better of it, or it was rejected meanwhile.
        RetirementState::Returning => begin_cleanup(entry, scene),
    };
    transitions::assert_allowed(Some(entry.state), Some(looked.entry.state));
    looked
}

fn transition(
    entry: &RetiredAdapter,
    state: RetirementState,
    reason: impl Into<String>,
    again: RequeueWhen,
) -> RetirementUpdate {
    RetirementUpdate { entry: RetiredAdapter { state, reason: reason.into(), ..entry.clone() }, requeue: again }
}

fn begin_cleanup(entry: &RetiredAdapter, scene: RetirementInputs<'_>) -> RetirementUpdate {
    if let Some(hindrance) = find_blocker(&entry.id, entry.since, scene.cleanup.delay.get(), scene) {
        return transition(entry, hindrance.state, hindrance.reason, hindrance.requeue);
    }
    let id = &entry.id;
    match scene.listing {
        None => {
            return transition(entry, RetirementState::Waiting, "the adapters file cannot be read", RequeueWhen::Soon);
        }
        Some(AdapterListing::EnsureNotExist) => {
            return transition(entry, RetirementState::Unloading, "the file unlists it", RequeueWhen::Soon);
        }
        Some(AdapterListing::Absent) => {
            let reason = format!("the file does not list it, so it stays loaded: put {id} under ensureNotExist");
            return transition(entry, RetirementState::Kept, reason, RequeueWhen::OnChange);
        }
        Some(AdapterListing::Both) => {
            let reason = format!("{id} is in both lists of the file: remove it from ensureExist");
            return transition(entry, RetirementState::Suggested, reason, RequeueWhen::OnChange);
        }
        Some(AdapterListing::EnsureExist) => {}
    }
    match (scene.cleanup.policy, scene.gitops_owner) {
        (CleanupPolicy::Keep, _) => {
            transition(entry, RetirementState::Kept, "cleanup.policy is Keep", RequeueWhen::OnChange)
        }
        (CleanupPolicy::Suggest, _) => suggest(entry, "cleanup.policy is Suggest"),
        (CleanupPolicy::Unload, Some(owner)) => suggest(entry, &format!("{owner} owns the adapters file")),
        (CleanupPolicy::Unload, None) => unlist(entry, scene),
    }
}

fn suggest(entry: &RetiredAdapter, why: &str) -> RetirementUpdate {
    let reason = format!("{why}: move the entry of {} from ensureExist to ensureNotExist", entry.id);
    transition(entry, RetirementState::Suggested, reason, RequeueWhen::OnChange)
}

/// Why an id that lost its weight at `since` may not be unloaded yet. The order is that of the cleanup: routers,
/// quiet, delay, references.
pub(crate) fn find_blocker(
    id: &AdapterId,
    since: Timestamp,
    delay: Duration,
    scene: RetirementInputs<'_>,
) -> Option<Blocker> {
    if let Some(why) = scene.unproven_reason {
        return Some(Blocker::waiting(why, RequeueWhen::Soon));
    }
    if let Some(hindrance) = recent_use(id, since, scene) {
        return Some(hindrance);
    }
    let end = after(since, delay);
    if scene.now < end {
        let reason = format!("stays for a delay of {}, until {}", text::duration(delay), text::time(end));
        return Some(Blocker::waiting(reason, RequeueWhen::At(end)));
    }
    if scene.paused {
        return Some(Blocker::waiting("spec.paused is true", RequeueWhen::OnChange));
    }
    scene.referenced_by.map(|who| Blocker {
        state: RetirementState::StillInUse,
        reason: format!("{who} names it"),
        requeue: RequeueWhen::At(after(scene.now, REFERENCE_POLL_INTERVAL)),
    })
}

/// Use within `quietFor`, or nobody who could tell.
fn recent_use(id: &AdapterId, since: Timestamp, scene: RetirementInputs<'_>) -> Option<Blocker> {
    let listed = scene
        .possible_holders()
        .and_then(|servers| Ok((servers, scene.routers.ok_or("the routers cannot be listed")?)));
    let (servers, routers) = match listed {
        Ok(listed) => listed,
        Err(why) => return Some(Blocker::waiting(format!("nobody knows who uses it: {why}"), RequeueWhen::Soon)),
    };
    let mut times: Vec<(Timestamp, &str)> = vec![(since, "")];
    for server in &servers {
        match &server.status {
            Ok(status) => times.extend(
                status.adapter(id).and_then(|adapter| adapter.last_used).map(|used| (used, server.name.as_str())),
            ),
            Err(error) => {
                let reason = format!("waits for {}: its sidecar cannot be asked ({error})", server.name);
                return Some(Blocker::waiting(reason, RequeueWhen::Soon));
            }
        }
    }
    for router in routers {
        let report = router.report.as_ref().ok();
        let used = report.and_then(|report| report.last_used.get(id.as_str()));
        times.extend(used.map(|used| (*used, router.name.as_str())));
    }
    let (used, at) = times.into_iter().max()?;
    let quiet = after(used, scene.cleanup.quiet_for.get());
    if scene.now >= quiet {
        let state = if at.is_empty() { RetirementState::Waiting } else { RetirementState::StillInUse };
        return stale_usage(&servers, quiet).map(|reason| Blocker { state, reason, requeue: RequeueWhen::Soon });
    }
    let needed = text::duration(scene.cleanup.quiet_for.get());
    if at.is_empty() {
        let reason = format!("must be quiet for {needed}, until {}", text::time(quiet));
        return Some(Blocker::waiting(reason, RequeueWhen::At(quiet)));
    }
    let reason = format!("was used at {} ({at}) and must be quiet for {needed}", text::time(used));
    Some(Blocker { state: RetirementState::StillInUse, reason, requeue: RequeueWhen::At(quiet) })
}

/// A server whose uses were read last before the quiet was over: who has used it since is not known. One that does not tell
/// when it was read says all that it ever will.
fn stale_usage(servers: &[&ObservedServer], quiet: Timestamp) -> Option<String> {
    let read = |server: &&ObservedServer| Some((server.name.clone(), server.status.as_ref().ok()?.usage_read_at?));
    let (name, read) = servers.iter().filter_map(read).find(|(_, read)| *read < quiet)?;
    Some(format!("must be quiet until {}, and the uses of {name} were read at {}", text::time(quiet), text::time(read)))
}

fn unlist(entry: &RetiredAdapter, scene: RetirementInputs<'_>) -> RetirementUpdate {
    match scene.listing {
        Some(AdapterListing::EnsureNotExist) => unload(entry, scene),
        Some(AdapterListing::EnsureExist) => match scene.file_text.map(|text| edit::unlist(text, &entry.id)) {
            Some(Err(error)) => suggest(entry, &format!("its entry cannot be moved ({error})")),
            _ => transition(entry, RetirementState::Unlisting, "its entry moves to ensureNotExist", RequeueWhen::Soon),
        },
        Some(AdapterListing::Absent | AdapterListing::Both) => begin_cleanup(entry, scene),
        None => transition(entry, RetirementState::Unlisting, "the adapters file cannot be read", RequeueWhen::Soon),
    }
}

fn unload(entry: &RetiredAdapter, scene: RetirementInputs<'_>) -> RetirementUpdate {
    match scene.listing {
        Some(AdapterListing::EnsureExist) => return handle_relisted(entry, scene),
        Some(AdapterListing::Absent) => return begin_cleanup(entry, scene),
        Some(AdapterListing::EnsureNotExist | AdapterListing::Both) | None => {}
    }
    let servers = match scene.possible_holders() {
        Ok(servers) => servers,
        Err(why) => return transition(entry, RetirementState::Unloading, why, RequeueWhen::Soon),
    };
    let holding: Vec<String> = servers
        .iter()
        .filter_map(|server| match &server.status {
            Ok(status) if has_unloaded(&entry.id, status, scene.content_hash) => None,
            Ok(_) => Some(server.name.clone()),
            Err(error) => Some(format!("{} (cannot be asked: {error})", server.name)),
        })
        .collect();
    if holding.is_empty() {
        return transition(entry, RetirementState::Gone, "no server has it", RequeueWhen::OnChange);
    }
    let reason =
        format!("waits for {} of {} servers to unload it: {}", holding.len(), servers.len(), text::list(&holding));
    transition(entry, RetirementState::Unloading, reason, RequeueWhen::Soon)
}

/// Whether a sidecar confirms that its server does not have the id. A server that is down has nothing. Where there is no
/// sidecar, what vLLM lists is all there is.
fn has_unloaded(id: &AdapterId, status: &SidecarStatus, content: Option<&ContentHash>) -> bool {
    if status.readiness.reason == NO_SIDECAR {
        return status.server.is_some() && !status.is_resident(id);
    }
    let gone = status.adapter(id).is_none_or(|adapter| adapter.state == AdapterState::Gone);
    is_fresh(status, content) && (gone || status.server.is_none())
}

fn handle_relisted(entry: &RetiredAdapter, scene: RetirementInputs<'_>) -> RetirementUpdate {
    match scene.listing {
        Some(AdapterListing::EnsureNotExist) => {
            unload(&RetiredAdapter { state: RetirementState::Unloading, ..entry.clone() }, scene)
        }
        Some(AdapterListing::Absent) => begin_cleanup(entry, scene),
        _ => transition(
            entry,
            RetirementState::Relisted,
            "somebody listed it again: it is theirs",
            RequeueWhen::OnChange,
        ),
    }
}

fn handle_gone(entry: &RetiredAdapter, scene: RetirementInputs<'_>) -> RetirementUpdate {
    match scene.listing {
        Some(AdapterListing::EnsureExist) => handle_relisted(entry, scene),
        _ => transition(entry, RetirementState::Gone, "no server has it", RequeueWhen::OnChange),
    }
}
