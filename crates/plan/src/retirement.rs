//! The retirement machine: how an adapter that lost its weight is unlisted and unloaded. Each retired id has one.
//!
//! [`transitions`] lists every transition; `ARCHITECTURE.md` shows them as a diagram.
//!
//! Invariants:
//! - An id is unlisted only after the routers are proven, it has been unused for `quietFor`, its delay has elapsed and
//!   no other Rollout or rewrite references it.
//! - This machine does not read the state of the traffic machine.

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

/// Interval of the check whether another object still references an id.
const REFERENCE_POLL_INTERVAL: Duration = Duration::from_secs(10);

/// The inputs of one evaluation of a retirement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetirementInputs<'a> {
    /// The time of the decision.
    pub(crate) now: Timestamp,
    /// The field `spec.cleanup`: policy, delay and `quietFor`.
    pub(crate) cleanup: &'a Cleanup,
    /// The field `spec.paused`: nothing is unlisted while it is true.
    pub(crate) paused: bool,
    /// The GitOps tool that owns the adapters ConfigMap; `None` if there is none.
    pub(crate) gitops_owner: Option<&'a str>,
    /// Why the routers are not proven; `None` if they are.
    pub(crate) unproven_reason: Option<&'a str>,
    /// Every server of the pool; `None` if they could not be listed.
    pub(crate) servers: Option<&'a [ObservedServer]>,
    /// Every server of other pools that reads the same adapters file.
    pub(crate) other_pool_servers: Result<&'a [ObservedServer], &'a ObserveError>,
    /// Every router; `None` if they could not be listed.
    pub(crate) routers: Option<&'a [ObservedRouter]>,
    /// The hash of the current content of the ConfigMap; `None` if it could not be read.
    pub(crate) content_hash: Option<&'a ContentHash>,
    /// Which lists of the adapters file contain the id; `None` if the file could not be read.
    pub(crate) listing: Option<AdapterListing>,
    /// Whether the id is desired, stable or weighted again.
    pub(crate) needed: bool,
    /// The other Rollout or rewrite that references the id.
    pub(crate) referenced_by: Option<&'a str>,
    /// The text of the adapters file; `None` if it could not be read.
    pub(crate) file_text: Option<&'a str>,
}

impl<'a> RetirementInputs<'a> {
    /// Returns every server that may have the id loaded, or why they could not be listed.
    fn possible_holders(&self) -> Result<Vec<&'a ObservedServer>, String> {
        let servers = self.servers.ok_or("the servers cannot be listed")?;
        let other_servers = self
            .other_pool_servers
            .map_err(|why| format!("the servers of other pools that read the adapters file cannot be listed: {why}"))?;
        Ok(servers.iter().chain(other_servers).collect())
    }
}

/// The result of one evaluation of a retirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RetirementUpdate {
    /// The entry with its new state and reason.
    pub(crate) entry: RetiredAdapter,
    /// When to evaluate it again.
    pub(crate) requeue: RequeueWhen,
}

impl RetirementUpdate {
    /// Returns the update as a wait, for the status and for events.
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

/// Why an id may not be unlisted or unloaded yet.
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

    /// Returns the blocker as a wait of `id`.
    pub(crate) fn into_wait(self, id: &AdapterId) -> Wait {
        Wait { reason: condition_reason(self.state), message: format!("{id}: {}", self.reason), requeue: self.requeue }
    }
}

/// Evaluates one retirement and returns its next state.
pub(crate) fn advance(entry: &RetiredAdapter, inputs: RetirementInputs<'_>) -> RetirementUpdate {
    let update = match entry.state {
        RetirementState::Waiting | RetirementState::StillInUse | RetirementState::Suggested | RetirementState::Kept => {
            begin_cleanup(entry, inputs)
        }
        // Until its entry has moved nothing has happened, so a new blocker still keeps the id.
        RetirementState::Unlisting if inputs.listing == Some(AdapterListing::EnsureExist) => {
            begin_cleanup(entry, inputs)
        }
        RetirementState::Unlisting => unlist(entry, inputs),
        RetirementState::Unloading => unload(entry, inputs),
        RetirementState::Relisted => handle_relisted(entry, inputs),
        RetirementState::Gone => handle_gone(entry, inputs),
        RetirementState::Returning if inputs.needed => {
            transition(entry, RetirementState::Returning, "the operator lists it again", RequeueWhen::OnChange)
        }
        // The desired adapter changed again, or the id was rejected meanwhile.
        RetirementState::Returning => begin_cleanup(entry, inputs),
    };
    transitions::assert_allowed(Some(entry.state), Some(update.entry.state));
    update
}

fn transition(
    entry: &RetiredAdapter,
    state: RetirementState,
    reason: impl Into<String>,
    requeue: RequeueWhen,
) -> RetirementUpdate {
    RetirementUpdate { entry: RetiredAdapter { state, reason: reason.into(), ..entry.clone() }, requeue }
}

fn begin_cleanup(entry: &RetiredAdapter, inputs: RetirementInputs<'_>) -> RetirementUpdate {
    if let Some(blocker) = find_blocker(&entry.id, entry.since, inputs.cleanup.delay.get(), inputs) {
        return transition(entry, blocker.state, blocker.reason, blocker.requeue);
    }
    let id = &entry.id;
    match inputs.listing {
        None => {
            return transition(entry, RetirementState::Waiting, "the adapters file cannot be read", RequeueWhen::Soon);
        }
        Some(AdapterListing::EnsureNotExist) => {
            return transition(entry, RetirementState::Unloading, "it is under ensureNotExist", RequeueWhen::Soon);
        }
        Some(AdapterListing::Absent) => {
            let reason = format!(
                "it is in neither list of the adapters file, so it stays loaded: add {id} under ensureNotExist"
            );
            return transition(entry, RetirementState::Kept, reason, RequeueWhen::OnChange);
        }
        Some(AdapterListing::Both) => {
            let reason = format!("{id} is in both lists of the adapters file: remove it from ensureExist");
            return transition(entry, RetirementState::Suggested, reason, RequeueWhen::OnChange);
        }
        Some(AdapterListing::EnsureExist) => {}
    }
    match (inputs.cleanup.policy, inputs.gitops_owner) {
        (CleanupPolicy::Keep, _) => transition(
            entry,
            RetirementState::Kept,
            "cleanup.policy is Keep, so it stays loaded",
            RequeueWhen::OnChange,
        ),
        (CleanupPolicy::Suggest, _) => suggest(entry, "cleanup.policy is Suggest"),
        (CleanupPolicy::Unload, Some(owner)) => suggest(entry, &format!("{owner} owns the adapters file")),
        (CleanupPolicy::Unload, None) => unlist(entry, inputs),
    }
}

fn suggest(entry: &RetiredAdapter, why: &str) -> RetirementUpdate {
    let reason = format!("{why}: move the entry of {} from ensureExist to ensureNotExist", entry.id);
    transition(entry, RetirementState::Suggested, reason, RequeueWhen::OnChange)
}

/// Returns why an id that lost its weight at `since` may not be unloaded yet.
///
/// The order is fixed: routers, recent use, delay, `spec.paused`, references.
pub(crate) fn find_blocker(
    id: &AdapterId,
    since: Timestamp,
    delay: Duration,
    inputs: RetirementInputs<'_>,
) -> Option<Blocker> {
    if let Some(why) = inputs.unproven_reason {
        return Some(Blocker::waiting(why, RequeueWhen::Soon));
    }
    if let Some(blocker) = recent_use(id, since, inputs) {
        return Some(blocker);
    }
    let end = after(since, delay);
    if inputs.now < end {
        let reason = format!("stays loaded for cleanup.delay, {}, until {}", text::duration(delay), text::time(end));
        return Some(Blocker::waiting(reason, RequeueWhen::At(end)));
    }
    if inputs.paused {
        return Some(Blocker::waiting("spec.paused is true: set it to false to continue", RequeueWhen::OnChange));
    }
    inputs.referenced_by.map(|reference| Blocker {
        state: RetirementState::StillInUse,
        reason: format!("{reference} references it"),
        requeue: RequeueWhen::At(after(inputs.now, REFERENCE_POLL_INTERVAL)),
    })
}

/// Returns a blocker if the id was used within `quietFor`, or if its use is not known.
fn recent_use(id: &AdapterId, since: Timestamp, inputs: RetirementInputs<'_>) -> Option<Blocker> {
    let listed = inputs
        .possible_holders()
        .and_then(|servers| Ok((servers, inputs.routers.ok_or("the routers cannot be listed")?)));
    let (servers, routers) = match listed {
        Ok(listed) => listed,
        Err(why) => {
            return Some(Blocker::waiting(format!("whether it is in use is not known: {why}"), RequeueWhen::Soon));
        }
    };
    let mut times: Vec<(Timestamp, &str)> = vec![(since, "")];
    for server in &servers {
        match &server.status {
            Ok(status) => times.extend(
                status.adapter(id).and_then(|adapter| adapter.last_used).map(|used| (used, server.name.as_str())),
            ),
            Err(error) => {
                let reason = format!("waits for {}: its sidecar cannot be queried ({error})", server.name);
                return Some(Blocker::waiting(reason, RequeueWhen::Soon));
            }
        }
    }
    for router in routers {
        let report = router.report.as_ref().ok();
        let used = report.and_then(|report| report.last_used.get(id.as_str()));
        times.extend(used.map(|used| (*used, router.name.as_str())));
    }
    let (used, last_user) = times.into_iter().max()?;
    let quiet_until = after(used, inputs.cleanup.quiet_for.get());
    if inputs.now >= quiet_until {
        let state = if last_user.is_empty() { RetirementState::Waiting } else { RetirementState::StillInUse };
        return stale_usage(&servers, quiet_until).map(|reason| Blocker { state, reason, requeue: RequeueWhen::Soon });
    }
    let (quiet_for, end) = (text::duration(inputs.cleanup.quiet_for.get()), text::time(quiet_until));
    if last_user.is_empty() {
        let reason = format!("must be unused for {quiet_for}, until {end}");
        return Some(Blocker::waiting(reason, RequeueWhen::At(quiet_until)));
    }
    let reason =
        format!("was used at {} ({last_user}) and must be unused for {quiet_for}, until {end}", text::time(used));
    Some(Blocker { state: RetirementState::StillInUse, reason, requeue: RequeueWhen::At(quiet_until) })
}

/// Returns a reason that names a server whose usage was last read before `quiet_until`: later use is not known. A
/// server that never reports a read time has no newer data either, so it does not block.
fn stale_usage(servers: &[&ObservedServer], quiet_until: Timestamp) -> Option<String> {
    let read = |server: &&ObservedServer| Some((server.name.clone(), server.status.as_ref().ok()?.usage_read_at?));
    let (name, read) = servers.iter().filter_map(read).find(|(_, read)| *read < quiet_until)?;
    Some(format!(
        "must be unused until {}, and its use on {name} is known only until {}",
        text::time(quiet_until),
        text::time(read)
    ))
}

fn unlist(entry: &RetiredAdapter, inputs: RetirementInputs<'_>) -> RetirementUpdate {
    match inputs.listing {
        Some(AdapterListing::EnsureNotExist) => unload(entry, inputs),
        Some(AdapterListing::EnsureExist) => match inputs.file_text.map(|text| edit::unlist(text, &entry.id)) {
            Some(Err(error)) => suggest(entry, &format!("the operator cannot move its entry ({error})")),
            _ => transition(
                entry,
                RetirementState::Unlisting,
                "the operator moves its entry to ensureNotExist",
                RequeueWhen::Soon,
            ),
        },
        Some(AdapterListing::Absent | AdapterListing::Both) => begin_cleanup(entry, inputs),
        None => transition(entry, RetirementState::Unlisting, "the adapters file cannot be read", RequeueWhen::Soon),
    }
}

fn unload(entry: &RetiredAdapter, inputs: RetirementInputs<'_>) -> RetirementUpdate {
    match inputs.listing {
        Some(AdapterListing::EnsureExist) => return handle_relisted(entry, inputs),
        Some(AdapterListing::Absent) => return begin_cleanup(entry, inputs),
        Some(AdapterListing::EnsureNotExist | AdapterListing::Both) | None => {}
    }
    let servers = match inputs.possible_holders() {
        Ok(servers) => servers,
        Err(why) => return transition(entry, RetirementState::Unloading, why, RequeueWhen::Soon),
    };
    let holders: Vec<String> = servers
        .iter()
        .filter_map(|server| match &server.status {
            Ok(status) if has_unloaded(&entry.id, status, inputs.content_hash) => None,
            Ok(_) => Some(server.name.clone()),
            Err(error) => Some(format!("{} (cannot be queried: {error})", server.name)),
        })
        .collect();
    if holders.is_empty() {
        return transition(entry, RetirementState::Gone, "no server has it", RequeueWhen::OnChange);
    }
    let reason =
        format!("waits for {} of {} servers to unload it: {}", holders.len(), servers.len(), text::list(&holders));
    transition(entry, RetirementState::Unloading, reason, RequeueWhen::Soon)
}

/// Returns whether a sidecar confirms that its server does not have the id. A server that is down has no adapters.
/// Without a sidecar, the list of vLLM decides.
fn has_unloaded(id: &AdapterId, status: &SidecarStatus, content: Option<&ContentHash>) -> bool {
    if status.readiness.reason == NO_SIDECAR {
        return status.server.is_some() && !status.is_resident(id);
    }
    let gone = status.adapter(id).is_none_or(|adapter| adapter.state == AdapterState::Gone);
    is_fresh(status, content) && (gone || status.server.is_none())
}

fn handle_relisted(entry: &RetiredAdapter, inputs: RetirementInputs<'_>) -> RetirementUpdate {
    match inputs.listing {
        Some(AdapterListing::EnsureNotExist) => {
            unload(&RetiredAdapter { state: RetirementState::Unloading, ..entry.clone() }, inputs)
        }
        Some(AdapterListing::Absent) => begin_cleanup(entry, inputs),
        _ => transition(
            entry,
            RetirementState::Relisted,
            "another writer listed it again, so the operator leaves it alone",
            RequeueWhen::OnChange,
        ),
    }
}

fn handle_gone(entry: &RetiredAdapter, inputs: RetirementInputs<'_>) -> RetirementUpdate {
    match inputs.listing {
        Some(AdapterListing::EnsureExist) => handle_relisted(entry, inputs),
        _ => transition(entry, RetirementState::Gone, "no server has it", RequeueWhen::OnChange),
    }
}
