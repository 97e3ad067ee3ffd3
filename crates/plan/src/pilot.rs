//! The pilot: a governed id is loaded and verified on one server before any other server may load it.
//!
//! Invariant: while a server tries an id, or reports that it has tried it, no other server is chosen, unless the first
//! one is gone.

#[cfg(test)]
mod tests;

use crate::{observed::ObservedServer, residency::is_fresh};
use rollora_api::{
    adapters::ContentHash,
    names::AdapterId,
    operator_directives::Pilot,
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};

/// Failed attempts on the pilot after which an id is rejected, whatever the reason.
const MAX_ATTEMPTS: u32 = 5;
/// Failed attempts after which an id is rejected if its adapter is not found or not accessible. More than one, because
/// a copy of the files may still be in progress.
const MAX_ATTEMPTS_NOT_FOUND: u32 = 3;

/// The decision about an id that is not admitted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PilotDecision {
    /// The id is verified on this server: every server may load it.
    Admit(String),
    /// This server becomes the pilot.
    Choose(String),
    /// The pilot is trying the id; the message describes the progress.
    Trying(String),
    /// The id must not be loaded anywhere; the message says why.
    Reject(String),
    /// No server is Ready, so none can be the pilot.
    NoReadyServer,
}

/// Evaluates the trial of `id`. `serving` are the ids that have weight.
pub(crate) fn evaluate(
    id: &AdapterId,
    pilot: Option<&Pilot>,
    serving: &[AdapterId],
    servers: &[ObservedServer],
    content: Option<&ContentHash>,
) -> PilotDecision {
    if let Some(server) = servers.iter().find(|server| has_verified(server, id, content)) {
        return PilotDecision::Admit(server.name.clone());
    }
    let current = pilot.filter(|pilot| pilot.id == *id);
    match current.and_then(|pilot| servers.iter().find(|server| server.name == pilot.pod)) {
        Some(server) => evaluate_trial(id, server, content),
        None => choose_server(id, serving, servers)
            .map_or_else(|| PilotDecision::NoReadyServer, |server| PilotDecision::Choose(server.name.clone())),
    }
}

/// Returns a reason that names a server that died twice because of an id that was verified on its pilot. A single death
/// may have another cause, and the sidecar tries again.
pub(crate) fn quarantine_reason(
    id: &AdapterId,
    servers: &[ObservedServer],
    content: Option<&ContentHash>,
) -> Option<String> {
    servers.iter().find_map(|server| {
        let adapter = fresh_status(server, content)?.adapter(id)?;
        (adapter.state == AdapterState::Quarantined).then(|| crash_reason(&server.name))
    })
}

fn fresh_status<'a>(server: &'a ObservedServer, content: Option<&ContentHash>) -> Option<&'a SidecarStatus> {
    server.status.as_ref().ok().map(|status| &**status).filter(|status| is_fresh(status, content))
}

fn has_verified(server: &ObservedServer, id: &AdapterId, content: Option<&ContentHash>) -> bool {
    fresh_status(server, content).is_some_and(|status| status.is_verified(id))
}

fn evaluate_trial(id: &AdapterId, server: &ObservedServer, content: Option<&ContentHash>) -> PilotDecision {
    let name = &server.name;
    let status = match &server.status {
        Ok(status) if is_fresh(status, content) => status,
        Ok(_) => return PilotDecision::Trying(format!("{name} has not read the current adapters file yet")),
        Err(error) => return PilotDecision::Trying(format!("{name} cannot be queried ({error})")),
    };
    let adapter = status.adapter(id);
    if let Some(reason) = adapter.and_then(|adapter| rejection_reason(name, adapter, status)) {
        return PilotDecision::Reject(reason);
    }
    let state = adapter.map(|adapter| adapter.state);
    // While the id loads, the server's problem may be this load itself: a download from a hub blocks the engine.
    if let Some(problem) = status.problem.as_ref().filter(|_| state != Some(AdapterState::Loading)) {
        return PilotDecision::Trying(format!("{name} cannot load any adapter: {}", problem.message));
    }
    let error = adapter.and_then(|adapter| adapter.last_error.as_ref());
    PilotDecision::Trying(match (state, error) {
        (Some(AdapterState::Failed | AdapterState::ServerDied), Some(error)) => {
            format!("{name} will try again after this error: {}", error.message)
        }
        (Some(AdapterState::Loaded), _) => format!("{name} is verifying it with a completion"),
        (Some(AdapterState::Loading), _) => format!("{name} is loading it"),
        (Some(AdapterState::Fetching), _) => format!("{name} is fetching it"),
        _ => format!("{name} has not begun to load it yet"),
    })
}

/// Returns why the adapter must be rejected; `None` if it is not the cause of what its pilot reports.
fn rejection_reason(name: &str, adapter: &AdapterStatus, status: &SidecarStatus) -> Option<String> {
    match (adapter.state, &adapter.last_error) {
        // If the sidecar tries again by itself, the death had another cause.
        (AdapterState::ServerDied, _) if adapter.next_try.is_none() => Some(crash_reason(name)),
        (AdapterState::Quarantined, _) => Some(crash_reason(name)),
        (AdapterState::SourceChanged, _) => Some(format!(
            "the server {name} has loaded this id from another source: list the new weights under a new id"
        )),
        // All sidecars have the same source policy, so no other server would accept it.
        (AdapterState::SourceRefused, Some(error)) => {
            Some(format!("the server {name} refuses its source: {}", error.message))
        }
        // A problem of the whole server says nothing about the adapter.
        (AdapterState::Failed, Some(error)) if status.problem.is_none() => {
            let is_missing =
                matches!(error.reason.as_str(), "AdapterNotFound" | "HubNotFound" | "HubUnauthorized" | "TooLarge");
            let limit = if is_missing { MAX_ATTEMPTS_NOT_FOUND } else { MAX_ATTEMPTS };
            let is_exhausted = adapter.attempts >= limit && !error.is_infrastructure_error();
            let is_permanent = error.is_adapter_error() || is_exhausted;
            is_permanent.then(|| format!("the server {name} could not load it: {}", error.message))
        }
        _ => None,
    }
}

fn crash_reason(name: &str) -> String {
    format!("the server {name} died while loading it or at its first use")
}

/// Chooses the pilot: a server that has tried the id before, so that the id cannot harm another server. If there is
/// none, the server with the fewest serving adapters, and among equals the first by name. The only Ready server is not
/// chosen if another one is alive.
fn choose_server<'a>(
    id: &AdapterId,
    serving: &[AdapterId],
    servers: &'a [ObservedServer],
) -> Option<&'a ObservedServer> {
    let by_name = |server: &&ObservedServer| server.name.clone();
    if let Some(server) = servers.iter().filter(|server| has_tried(server, id)).min_by_key(by_name) {
        return Some(server);
    }
    let ready: Vec<&ObservedServer> = servers.iter().filter(|server| server.ready).collect();
    let alive = |server: &&ObservedServer| server.status.as_ref().is_ok_and(|status| status.server.is_some());
    let spare = servers.iter().filter(|server| !server.ready).filter(alive).min_by_key(by_name);
    if ready.len() == 1 && spare.is_some() {
        return spare;
    }
    let load = |server: &ObservedServer| {
        server.status.as_ref().map_or(usize::MAX, |status| serving.iter().filter(|id| status.is_resident(id)).count())
    };
    ready.into_iter().min_by_key(|server| (load(server), &server.name))
}

fn has_tried(server: &ObservedServer, id: &AdapterId) -> bool {
    let state = server.status.as_ref().ok().and_then(|status| status.adapter(id)).map(|adapter| adapter.state);
    matches!(
        state,
        Some(
            AdapterState::Fetching
                | AdapterState::Loading
                | AdapterState::Loaded
                | AdapterState::Verified
                | AdapterState::Failed
                | AdapterState::ServerDied
                | AdapterState::Quarantined
                | AdapterState::SourceRefused
        )
    )
}
