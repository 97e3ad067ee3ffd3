//! One pod first: a governed id is loaded and proven on one server before any other may try it.
//!
//! Invariant: while a server tries an id, or has tried it and told of it, no other server is chosen for it, unless the
//! first one is gone.

#[cfg(test)]
mod tests;

use crate::{observed::ObservedServer, residency::is_fresh};
use rollora_api::{
    adapters::ContentHash,
    names::AdapterId,
    operator_directives::Pilot,
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};

/// After so many failed attempts on the pilot an id is rejected, whatever the reason.
const MAX_ATTEMPTS: u32 = 5;
/// The same where the adapter is not found, or not to be had: long enough for files that are still being copied.
const MAX_ATTEMPTS_NOT_FOUND: u32 = 3;

/// What is to be done about an id that is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PilotDecision {
    /// It is proven on this server: every server may load it.
    Admit(String),
    /// This server shall try it.
    Choose(String),
    /// The pilot is at it, in words.
    Trying(String),
    /// It is not to be loaded anywhere; why, in words.
    Reject(String),
    /// No server is Ready to try it.
    NoReadyServer,
}

/// Looks at the trial of `id`. `serving` are the ids that carry traffic.
pub(crate) fn evaluate(
    id: &AdapterId,
    pilot: Option<&Pilot>,
    serving: &[AdapterId],
    servers: &[ObservedServer],
    content: Option<&ContentHash>,
) -> PilotDecision {
    if let Some(server) = servers.iter().find(|server| has_proven(server, id, content)) {
        return PilotDecision::Admit(server.name.clone());
    }
    let trying = pilot.filter(|pilot| pilot.id == *id);
    match trying.and_then(|pilot| servers.iter().find(|server| server.name == pilot.pod)) {
        Some(server) => evaluate_trial(id, server, content),
        None => choose_server(id, serving, servers)
            .map_or_else(|| PilotDecision::NoReadyServer, |server| PilotDecision::Choose(server.name.clone())),
    }
}

/// A server that died twice over an id that was proven on its pilot, in words. Once may have another cause, and its
/// sidecar tries again.
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

fn has_proven(server: &ObservedServer, id: &AdapterId, content: Option<&ContentHash>) -> bool {
    fresh_status(server, content).is_some_and(|status| status.is_verified(id))
}

fn evaluate_trial(id: &AdapterId, server: &ObservedServer, content: Option<&ContentHash>) -> PilotDecision {
    let name = &server.name;
    let status = match &server.status {
        Ok(status) if is_fresh(status, content) => status,
        Ok(_) => return PilotDecision::Trying(format!("{name} has not read the present adapters file yet")),
        Err(error) => return PilotDecision::Trying(format!("{name} cannot be asked ({error})")),
    };
    let adapter = status.adapter(id);
    if let Some(reason) = adapter.and_then(|adapter| rejection_reason(name, adapter, status)) {
        return PilotDecision::Reject(reason);
    }
    let state = adapter.map(|adapter| adapter.state);
    // While it loads, what is wrong with the server may be this very load: from a hub it keeps the engine from answering.
    if let Some(problem) = status.problem.as_ref().filter(|_| state != Some(AdapterState::Loading)) {
        return PilotDecision::Trying(format!("{name} cannot load anything: {}", problem.message));
    }
    let error = adapter.and_then(|adapter| adapter.last_error.as_ref());
    PilotDecision::Trying(match (state, error) {
        (Some(AdapterState::Failed | AdapterState::ServerDied), Some(error)) => {
            format!("{name} tries again after: {}", error.message)
        }
        (Some(AdapterState::Loaded), _) => format!("{name} proves it with a completion"),
        (Some(AdapterState::Loading), _) => format!("{name} is loading it"),
        (Some(AdapterState::Fetching), _) => format!("{name} is fetching it"),
        _ => format!("{name} is to load it"),
    })
}

/// Why the adapter is to blame for what its pilot reports, where it is.
fn rejection_reason(name: &str, adapter: &AdapterStatus, status: &SidecarStatus) -> Option<String> {
    match (adapter.state, &adapter.last_error) {
        // A death after which the sidecar tries again by itself had another cause.
        (AdapterState::ServerDied, _) if adapter.next_try.is_none() => Some(crash_reason(name)),
        (AdapterState::Quarantined, _) => Some(crash_reason(name)),
        (AdapterState::SourceChanged, _) => {
            Some(format!("the server {name} has this id from another source: list the new weights under a new id"))
        }
        // Every sidecar was told the same: no other server would take it.
        (AdapterState::SourceRefused, Some(error)) => Some(format!("the server {name}: {}", error.message)),
        // What is wrong with the server as a whole says nothing about the adapter.
        (AdapterState::Failed, Some(error)) if status.problem.is_none() => {
            let to_find =
                matches!(error.reason.as_str(), "AdapterNotFound" | "HubNotFound" | "HubUnauthorized" | "TooLarge");
            let limit = if to_find { MAX_ATTEMPTS_NOT_FOUND } else { MAX_ATTEMPTS };
            let tired = adapter.attempts >= limit && !error.is_infrastructure_error();
            let hopeless = error.is_adapter_error() || tired;
            hopeless.then(|| format!("the server {name} could not load it: {}", error.message))
        }
        _ => None,
    }
}

fn crash_reason(name: &str) -> String {
    format!("the server {name} died while loading it or at its first use")
}

/// The server that has tried it before, if one has: what hurt it once shall hurt no other. Else the one that serves
/// least, by name where several do; never the only Ready one if another can be had.
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
