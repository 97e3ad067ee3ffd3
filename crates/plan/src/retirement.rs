//! The second of the two machines: how an adapter that lost its weight goes, one for every retired id.
//!
//! Every move that it makes is in [`map`], which is also what `ARCHITECTURE.md` shows.
//!
//! Invariants: an id is not unlisted before the routers are proven, it has been quiet, its delay is over and nobody
//! names it; the state of the traffic machine is not read.

pub(crate) mod map;
#[cfg(test)]
mod tests;

use crate::{
    observed::{Listing, Router, Server, Unseen},
    residency::is_fresh,
    text::{self, after},
    wait::{Again, Wait},
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
const SLOW: Duration = Duration::from_secs(10);

/// What this machine looks at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene<'a> {
    /// The time.
    pub(crate) now: Timestamp,
    /// `spec.cleanup`.
    pub(crate) cleanup: &'a Cleanup,
    /// `spec.paused`.
    pub(crate) paused: bool,
    /// Who else writes the adapters ConfigMap.
    pub(crate) gitops_owner: Option<&'a str>,
    /// Why the routers are not proven, where they are not.
    pub(crate) unproven: Option<&'a str>,
    /// Every server of the pool; none where they could not be listed.
    pub(crate) servers: Option<&'a [Server]>,
    /// Every server beside the pool that reads the same adapters file.
    pub(crate) sharers: Result<&'a [Server], &'a Unseen>,
    /// Every router; none where they could not be listed.
    pub(crate) routers: Option<&'a [Router]>,
    /// The hash of the present content of the ConfigMap; none where it could not be read.
    pub(crate) content: Option<&'a ContentHash>,
    /// Where the id stands in the file; none where that could not be read.
    pub(crate) listing: Option<Listing>,
    /// Whether it is on its way back.
    pub(crate) wanted: bool,
    /// Who else names the id.
    pub(crate) named_by: Option<&'a str>,
    /// The adapters file; none where it could not be read.
    pub(crate) text: Option<&'a str>,
}

impl<'a> Scene<'a> {
    /// Every server that may hold the id, or why they could not be listed.
    fn holders(&self) -> Result<Vec<&'a Server>, String> {
        let servers = self.servers.ok_or("the servers cannot be listed")?;
        let sharers =
            self.sharers.map_err(|why| format!("who else reads the adapters file cannot be listed: {why}"))?;
        Ok(servers.iter().chain(sharers).collect())
    }
}

/// One retirement after a look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Looked {
    /// Its state and reason.
    pub(crate) entry: RetiredAdapter,
    /// When to look again.
    pub(crate) again: Again,
}

impl Looked {
    /// The same as something that is waited for, or told.
    pub(crate) fn wait(&self) -> Wait {
        let message = format!("{}: {}", self.entry.id, self.entry.reason);
        Wait { reason: reason_of(self.entry.state), message, again: self.again }
    }
}

fn reason_of(state: RetirementState) -> &'static str {
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
pub(crate) struct Hindrance {
    state: RetirementState,
    reason: String,
    again: Again,
}

impl Hindrance {
    fn waits(reason: impl Into<String>, again: Again) -> Self {
        Self { state: RetirementState::Waiting, reason: reason.into(), again }
    }

    /// The same as something that `id` waits for.
    pub(crate) fn wait(self, id: &AdapterId) -> Wait {
        Wait { reason: reason_of(self.state), message: format!("{id}: {}", self.reason), again: self.again }
    }
}

/// Moves one retirement on.
pub(crate) fn advance(entry: &RetiredAdapter, scene: Scene<'_>) -> Looked {
    let looked = match entry.state {
        RetirementState::Waiting | RetirementState::StillInUse | RetirementState::Suggested | RetirementState::Kept => {
            leave(entry, scene)
        }
        // Until its entry has moved nothing has happened: what comes up meanwhile keeps it.
        RetirementState::Unlisting if scene.listing == Some(Listing::Exist) => leave(entry, scene),
        RetirementState::Unlisting => unlist(entry, scene),
        RetirementState::Unloading => unload(entry, scene),
        RetirementState::Relisted => relisted(entry, scene),
        RetirementState::Gone => gone(entry, scene),
        RetirementState::Returning if scene.wanted => {
            to(entry, RetirementState::Returning, "it is listed again", Again::OnChange)
        }
        // Whoever wanted it back has thought better of it, or it was rejected meanwhile.
        RetirementState::Returning => leave(entry, scene),
    };
    map::assert_is_on_it(Some(entry.state), Some(looked.entry.state));
    looked
}

fn to(entry: &RetiredAdapter, state: RetirementState, reason: impl Into<String>, again: Again) -> Looked {
    Looked { entry: RetiredAdapter { state, reason: reason.into(), ..entry.clone() }, again }
}

fn leave(entry: &RetiredAdapter, scene: Scene<'_>) -> Looked {
    if let Some(hindrance) = hindrance(&entry.id, entry.since, scene.cleanup.delay.get(), scene) {
        return to(entry, hindrance.state, hindrance.reason, hindrance.again);
    }
    let id = &entry.id;
    match scene.listing {
        None => return to(entry, RetirementState::Waiting, "the adapters file cannot be read", Again::Soon),
        Some(Listing::NotExist) => {
            return to(entry, RetirementState::Unloading, "the file unlists it", Again::Soon);
        }
        Some(Listing::Absent) => {
            let reason = format!("the file does not list it, so it stays loaded: put {id} under ensureNotExist");
            return to(entry, RetirementState::Kept, reason, Again::OnChange);
        }
        Some(Listing::Both) => {
            let reason = format!("{id} is in both lists of the file: remove it from ensureExist");
            return to(entry, RetirementState::Suggested, reason, Again::OnChange);
        }
        Some(Listing::Exist) => {}
    }
    match (scene.cleanup.policy, scene.gitops_owner) {
        (CleanupPolicy::Keep, _) => to(entry, RetirementState::Kept, "cleanup.policy is Keep", Again::OnChange),
        (CleanupPolicy::Suggest, _) => suggest(entry, "cleanup.policy is Suggest"),
        (CleanupPolicy::Unload, Some(owner)) => suggest(entry, &format!("{owner} owns the adapters file")),
        (CleanupPolicy::Unload, None) => unlist(entry, scene),
    }
}

fn suggest(entry: &RetiredAdapter, why: &str) -> Looked {
    let reason = format!("{why}: move the entry of {} from ensureExist to ensureNotExist", entry.id);
    to(entry, RetirementState::Suggested, reason, Again::OnChange)
}

/// Why an id that lost its weight at `since` may not be unloaded yet. The order is that of the cleanup: routers,
/// quiet, delay, references.
pub(crate) fn hindrance(id: &AdapterId, since: Timestamp, delay: Duration, scene: Scene<'_>) -> Option<Hindrance> {
    if let Some(why) = scene.unproven {
        return Some(Hindrance::waits(why, Again::Soon));
    }
    if let Some(hindrance) = noise(id, since, scene) {
        return Some(hindrance);
    }
    let end = after(since, delay);
    if scene.now < end {
        let reason = format!("stays for a delay of {}, until {}", text::span(delay), text::time(end));
        return Some(Hindrance::waits(reason, Again::At(end)));
    }
    if scene.paused {
        return Some(Hindrance::waits("spec.paused is true", Again::OnChange));
    }
    scene.named_by.map(|who| Hindrance {
        state: RetirementState::StillInUse,
        reason: format!("{who} names it"),
        again: Again::At(after(scene.now, SLOW)),
    })
}

/// Use within `quietFor`, or nobody who could tell.
fn noise(id: &AdapterId, since: Timestamp, scene: Scene<'_>) -> Option<Hindrance> {
    let listed =
        scene.holders().and_then(|servers| Ok((servers, scene.routers.ok_or("the routers cannot be listed")?)));
    let (servers, routers) = match listed {
        Ok(listed) => listed,
        Err(why) => return Some(Hindrance::waits(format!("nobody knows who uses it: {why}"), Again::Soon)),
    };
    let mut times: Vec<(Timestamp, &str)> = vec![(since, "")];
    for server in &servers {
        match &server.status {
            Ok(status) => times.extend(
                status.adapter(id).and_then(|adapter| adapter.last_used).map(|used| (used, server.name.as_str())),
            ),
            Err(error) => {
                let reason = format!("waits for {}: its sidecar cannot be asked ({error})", server.name);
                return Some(Hindrance::waits(reason, Again::Soon));
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
        return unread(&servers, quiet).map(|reason| Hindrance { state, reason, again: Again::Soon });
    }
    let needed = text::span(scene.cleanup.quiet_for.get());
    if at.is_empty() {
        let reason = format!("must be quiet for {needed}, until {}", text::time(quiet));
        return Some(Hindrance::waits(reason, Again::At(quiet)));
    }
    let reason = format!("was used at {} ({at}) and must be quiet for {needed}", text::time(used));
    Some(Hindrance { state: RetirementState::StillInUse, reason, again: Again::At(quiet) })
}

/// A server whose uses were read last before the quiet was over: who has used it since is not known. One that does not tell
/// when it was read says all that it ever will.
fn unread(servers: &[&Server], quiet: Timestamp) -> Option<String> {
    let read = |server: &&Server| Some((server.name.clone(), server.status.as_ref().ok()?.usage_read_at?));
    let (name, read) = servers.iter().filter_map(read).find(|(_, read)| *read < quiet)?;
    Some(format!("must be quiet until {}, and the uses of {name} were read at {}", text::time(quiet), text::time(read)))
}

fn unlist(entry: &RetiredAdapter, scene: Scene<'_>) -> Looked {
    match scene.listing {
        Some(Listing::NotExist) => unload(entry, scene),
        Some(Listing::Exist) => match scene.text.map(|text| edit::unlist(text, &entry.id)) {
            Some(Err(error)) => suggest(entry, &format!("its entry cannot be moved ({error})")),
            _ => to(entry, RetirementState::Unlisting, "its entry moves to ensureNotExist", Again::Soon),
        },
        Some(Listing::Absent | Listing::Both) => leave(entry, scene),
        None => to(entry, RetirementState::Unlisting, "the adapters file cannot be read", Again::Soon),
    }
}

fn unload(entry: &RetiredAdapter, scene: Scene<'_>) -> Looked {
    match scene.listing {
        Some(Listing::Exist) => return relisted(entry, scene),
        Some(Listing::Absent) => return leave(entry, scene),
        Some(Listing::NotExist | Listing::Both) | None => {}
    }
    let servers = match scene.holders() {
        Ok(servers) => servers,
        Err(why) => return to(entry, RetirementState::Unloading, why, Again::Soon),
    };
    let holding: Vec<String> = servers
        .iter()
        .filter_map(|server| match &server.status {
            Ok(status) if has_let_go(&entry.id, status, scene.content) => None,
            Ok(_) => Some(server.name.clone()),
            Err(error) => Some(format!("{} (cannot be asked: {error})", server.name)),
        })
        .collect();
    if holding.is_empty() {
        return to(entry, RetirementState::Gone, "no server has it", Again::OnChange);
    }
    let reason =
        format!("waits for {} of {} servers to unload it: {}", holding.len(), servers.len(), text::list(&holding));
    to(entry, RetirementState::Unloading, reason, Again::Soon)
}

/// Whether a sidecar confirms that its server does not have the id. A server that is down has nothing. Where there is no
/// sidecar, what vLLM lists is all there is.
fn has_let_go(id: &AdapterId, status: &SidecarStatus, content: Option<&ContentHash>) -> bool {
    if status.readiness.reason == NO_SIDECAR {
        return status.server.is_some() && !status.is_resident(id);
    }
    let gone = status.adapter(id).is_none_or(|adapter| adapter.state == AdapterState::Gone);
    is_fresh(status, content) && (gone || status.server.is_none())
}

fn relisted(entry: &RetiredAdapter, scene: Scene<'_>) -> Looked {
    match scene.listing {
        Some(Listing::NotExist) => {
            unload(&RetiredAdapter { state: RetirementState::Unloading, ..entry.clone() }, scene)
        }
        Some(Listing::Absent) => leave(entry, scene),
        _ => to(entry, RetirementState::Relisted, "somebody listed it again: it is theirs", Again::OnChange),
    }
}

fn gone(entry: &RetiredAdapter, scene: Scene<'_>) -> Looked {
    match scene.listing {
        Some(Listing::Exist) => relisted(entry, scene),
        _ => to(entry, RetirementState::Gone, "no server has it", Again::OnChange),
    }
}
