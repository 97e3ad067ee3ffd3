//! One pod first: a governed id is loaded and proven on one server before any other may try it.
//!
//! Invariant: while a server tries an id, or has tried it and told of it, no other server is chosen for it, unless the
//! first one is gone.

#[cfg(test)]
mod tests;

use crate::{observed::Server, residency::is_fresh};
use rollora_api::{
    adapters::ContentHash,
    names::AdapterId,
    operator_directives::Pilot,
    sidecar_status::{AdapterState, AdapterStatus, SidecarStatus},
};

/// After so many failed attempts on the pilot an id is rejected, whatever the reason.
const ATTEMPTS: u32 = 5;
/// The same where the adapter is not found, or not to be had: long enough for files that are still being copied.
const ATTEMPTS_TO_FIND: u32 = 3;

/// What is to be done about an id that is not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is proven on this server: every server may load it.
    Admit(String),
    /// This server shall try it.
    Choose(String),
    /// The pilot is at it, in words.
    Trying(String),
    /// It is not to be loaded anywhere; why, in words.
    Reject(String),
    /// No server is Ready to try it.
    Nobody,
}

/// Looks at the trial of `id`. `serving` are the ids that carry traffic.
pub(crate) fn judge(
    id: &AdapterId,
    pilot: Option<&Pilot>,
    serving: &[AdapterId],
    servers: &[Server],
    content: Option<&ContentHash>,
) -> Verdict {
    if let Some(server) = servers.iter().find(|server| has_proven(server, id, content)) {
        return Verdict::Admit(server.name.clone());
    }
    let trying = pilot.filter(|pilot| pilot.id == *id);
    match trying.and_then(|pilot| servers.iter().find(|server| server.name == pilot.pod)) {
        Some(server) => on_trial(id, server, content),
        None => {
            choose(id, serving, servers).map_or_else(|| Verdict::Nobody, |server| Verdict::Choose(server.name.clone()))
        }
    }
}

/// A server that died twice over an id that was proven on its pilot, in words. Once may have another cause, and its
/// sidecar tries again.
pub(crate) fn death(id: &AdapterId, servers: &[Server], content: Option<&ContentHash>) -> Option<String> {
    servers.iter().find_map(|server| {
        let adapter = fresh(server, content)?.adapter(id)?;
        (adapter.state == AdapterState::Quarantined).then(|| died(&server.name))
    })
}

fn fresh<'a>(server: &'a Server, content: Option<&ContentHash>) -> Option<&'a SidecarStatus> {
    server.status.as_ref().ok().map(|status| &**status).filter(|status| is_fresh(status, content))
}

fn has_proven(server: &Server, id: &AdapterId, content: Option<&ContentHash>) -> bool {
    fresh(server, content).is_some_and(|status| status.is_verified(id))
}

fn on_trial(id: &AdapterId, server: &Server, content: Option<&ContentHash>) -> Verdict {
    let name = &server.name;
    let status = match &server.status {
        Ok(status) if is_fresh(status, content) => status,
        Ok(_) => return Verdict::Trying(format!("{name} has not read the present adapters file yet")),
        Err(error) => return Verdict::Trying(format!("{name} cannot be asked ({error})")),
    };
    let adapter = status.adapter(id);
    if let Some(reason) = adapter.and_then(|adapter| fault(name, adapter, status)) {
        return Verdict::Reject(reason);
    }
    let state = adapter.map(|adapter| adapter.state);
    // While it loads, what is wrong with the server may be this very load: from a hub it keeps the engine from answering.
    if let Some(problem) = status.problem.as_ref().filter(|_| state != Some(AdapterState::Loading)) {
        return Verdict::Trying(format!("{name} cannot load anything: {}", problem.message));
    }
    let error = adapter.and_then(|adapter| adapter.last_error.as_ref());
    Verdict::Trying(match (state, error) {
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
fn fault(name: &str, adapter: &AdapterStatus, status: &SidecarStatus) -> Option<String> {
    match (adapter.state, &adapter.last_error) {
        // A death after which the sidecar tries again by itself had another cause.
        (AdapterState::ServerDied, _) if adapter.next_try.is_none() => Some(died(name)),
        (AdapterState::Quarantined, _) => Some(died(name)),
        (AdapterState::SourceChanged, _) => {
            Some(format!("the server {name} has this id from another source: list the new weights under a new id"))
        }
        // Every sidecar was told the same: no other server would take it.
        (AdapterState::SourceRefused, Some(error)) => Some(format!("the server {name}: {}", error.message)),
        // What is wrong with the server as a whole says nothing about the adapter.
        (AdapterState::Failed, Some(error)) if status.problem.is_none() => {
            let to_find =
                matches!(error.reason.as_str(), "AdapterNotFound" | "HubNotFound" | "HubUnauthorized" | "TooLarge");
            let limit = if to_find { ATTEMPTS_TO_FIND } else { ATTEMPTS };
            let tired = adapter.attempts >= limit && !error.is_infrastructure_error();
            let hopeless = error.is_adapter_error() || tired;
            hopeless.then(|| format!("the server {name} could not load it: {}", error.message))
        }
        _ => None,
    }
}

fn died(name: &str) -> String {
    format!("the server {name} died while loading it or at its first use")
}

/// The server that has tried it before, if one has: what hurt it once shall hurt no other. Else the one that serves
/// least, by name where several do; never the only Ready one if another can be had.
fn choose<'a>(id: &AdapterId, serving: &[AdapterId], servers: &'a [Server]) -> Option<&'a Server> {
    let by_name = |server: &&Server| server.name.clone();
    if let Some(server) = servers.iter().filter(|server| has_tried(server, id)).min_by_key(by_name) {
        return Some(server);
    }
    let ready: Vec<&Server> = servers.iter().filter(|server| server.ready).collect();
    let alive = |server: &&Server| server.status.as_ref().is_ok_and(|status| status.server.is_some());
    let spare = servers.iter().filter(|server| !server.ready).filter(alive).min_by_key(by_name);
    if ready.len() == 1 && spare.is_some() {
        return spare;
    }
    let load = |server: &Server| {
        server.status.as_ref().map_or(usize::MAX, |status| serving.iter().filter(|id| status.is_resident(id)).count())
    };
    ready.into_iter().min_by_key(|server| (load(server), &server.name))
}

fn has_tried(server: &Server, id: &AdapterId) -> bool {
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
