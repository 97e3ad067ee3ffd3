//! One pod first: a governed id is loaded and proven on one server before any other may try it.
//!
//! Invariant: while a server tries an id, no other server is chosen for it, unless the first one is gone.

use crate::{observed::Server, residency::is_fresh};
use rollora_api::{
    adapters::ContentHash,
    names::AdapterId,
    operator_key::Pilot,
    sidecar_status::{AdapterState, AdapterStatus},
};

/// After so many failed attempts on the pilot an id is rejected, whatever the reason.
const ATTEMPTS: u32 = 5;

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
    /// No server can try it, in words.
    Nobody(String),
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
        None => choose(serving, servers).map_or_else(
            || Verdict::Nobody("no server is Ready".to_owned()),
            |server| Verdict::Choose(server.name.clone()),
        ),
    }
}

fn has_proven(server: &Server, id: &AdapterId, content: Option<&ContentHash>) -> bool {
    server.status.as_ref().is_ok_and(|status| is_fresh(status, content) && status.is_verified(id))
}

fn on_trial(id: &AdapterId, server: &Server, content: Option<&ContentHash>) -> Verdict {
    let name = &server.name;
    let status = match &server.status {
        Ok(status) if is_fresh(status, content) => status,
        Ok(_) => return Verdict::Trying(format!("{name} has not read the present adapters file yet")),
        Err(error) => return Verdict::Trying(format!("{name} cannot be asked ({error})")),
    };
    let Some(adapter) = status.adapter(id) else {
        return Verdict::Trying(format!("{name} has not begun to load it"));
    };
    if let Some(reason) = verdict_of_the_server(name, adapter) {
        // What is wrong with the whole server says nothing about the adapter, but for its death.
        if status.problem.is_none() || adapter.state != AdapterState::Failed {
            return Verdict::Reject(reason);
        }
    }
    if let Some(problem) = &status.problem {
        return Verdict::Trying(format!("{name} cannot load anything: {}", problem.message));
    }
    Verdict::Trying(match (adapter.state, &adapter.last_error) {
        (AdapterState::Failed, Some(error)) => format!("{name} tries again after: {}", error.message),
        (AdapterState::Loaded, _) => format!("{name} proves it with a completion"),
        (AdapterState::Loading, _) => format!("{name} is loading it"),
        _ => format!("{name} is to load it"),
    })
}

/// A server that died over `id`, in words.
pub(crate) fn death(id: &AdapterId, servers: &[Server], content: Option<&ContentHash>) -> Option<String> {
    servers.iter().find_map(|server| {
        let status = server.status.as_ref().ok().filter(|status| is_fresh(status, content))?;
        let adapter = status.adapter(id)?;
        let died = matches!(adapter.state, AdapterState::ServerDied | AdapterState::Quarantined);
        if died { verdict_of_the_server(&server.name, adapter) } else { None }
    })
}

fn verdict_of_the_server(name: &str, adapter: &AdapterStatus) -> Option<String> {
    let said = adapter.last_error.as_ref().map(|problem| problem.message.as_str());
    match adapter.state {
        AdapterState::ServerDied | AdapterState::Quarantined => {
            Some(format!("the server {name} died {}", said.unwrap_or("while loading it or at its first use")))
        }
        AdapterState::SourceChanged => {
            Some(format!("the server {name} has this id from another source: list the new weights under a new id"))
        }
        AdapterState::Failed if adapter.next_try.is_none() || adapter.attempts >= ATTEMPTS => {
            Some(format!("the server {name} could not load it: {}", said.unwrap_or("no reason was given")))
        }
        _ => None,
    }
}

/// The server that serves least, by name where several do; never the only Ready one if another can be had.
fn choose<'a>(serving: &[AdapterId], servers: &'a [Server]) -> Option<&'a Server> {
    let ready: Vec<&Server> = servers.iter().filter(|server| server.ready).collect();
    let alive = |server: &&Server| server.status.as_ref().is_ok_and(|status| status.server.is_some());
    if ready.len() == 1
        && let Some(spare) = servers.iter().filter(|server| !server.ready).filter(alive).min_by_key(|s| &s.name)
    {
        return Some(spare);
    }
    let load = |server: &Server| {
        server.status.as_ref().map_or(usize::MAX, |status| serving.iter().filter(|id| status.is_resident(id)).count())
    };
    ready.into_iter().min_by_key(|server| (load(server), &server.name))
}
