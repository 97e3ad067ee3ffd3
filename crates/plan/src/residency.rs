//! The residency gate: before an adapter gets weight, at least one server must be Ready and every Ready server must
//! have the adapter. Also the opposite: which Ready servers are known to lack an adapter that has weight.
//!
//! Invariants:
//! - A server that could not be queried keeps the gate closed, and is no proof of a loss either.
//! - A server that is briefly not Ready counts for the gate like a Ready one.

#[cfg(test)]
mod tests;

use crate::{observed::ObservedServer, text::since};
use jiff::Timestamp;
use rollora_api::{
    adapters::ContentHash,
    names::{AdapterId, DIRECTIVES_KEY},
    rollout::spec::ResidencyProof,
    sidecar_status::{ADAPTERS_NOT_VERIFIED, AdapterState, SUSPECT, SidecarStatus},
};
use std::time::Duration;

/// How many Ready servers have an adapter, and which servers lack it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResidencyGate {
    /// Ready servers that have the adapter.
    pub(crate) resident: usize,
    /// All Ready servers of the pool.
    pub(crate) ready: usize,
    /// Servers that lack the adapter and are Ready or may become Ready at any time, each with the reason.
    pub(crate) missing: Vec<String>,
}

/// How long a server that cannot be queried, or that is suspect, may still recover unchanged: its sidecar restarts, or
/// vLLM does not respond for a moment. The time is limited because a server that refuses the sidecar's API key is
/// suspect permanently.
const RECOVERY_GRACE_PERIOD: Duration = Duration::from_secs(15);

impl ResidencyGate {
    /// Evaluates every server that is Ready or may become Ready at any time.
    pub(crate) fn evaluate(
        id: &AdapterId,
        proof: ResidencyProof,
        servers: &[ObservedServer],
        content: Option<&ContentHash>,
        now: Timestamp,
    ) -> Self {
        let mut gate = Self::default();
        for server in servers {
            let lacks = || missing_reason(id, proof, server, content);
            if server.ready {
                gate.ready += 1;
                match lacks() {
                    None => gate.resident += 1,
                    Some(why) => gate.missing.push(format!("{}: {why}", server.name)),
                }
            } else if may_become_ready(server, content, now) {
                let why = lacks().map(|why| format!("{} is briefly not Ready: {why}", server.name));
                gate.missing.extend(why);
            }
        }
        gate
    }

    /// Returns whether the adapter may get weight.
    pub(crate) fn is_open(&self) -> bool {
        self.ready > 0 && self.missing.is_empty()
    }
}

/// Returns whether a server that is not Ready may become Ready at any time without loading more adapters. That is so
/// unless its sidecar has read the current file and waits for the adapters that must serve.
fn may_become_ready(server: &ObservedServer, content: Option<&ContentHash>, now: Timestamp) -> bool {
    if server.terminating {
        return false;
    }
    let is_brief = || server.unready_since.is_some_and(|unready| since(unready, now) < RECOVERY_GRACE_PERIOD);
    match &server.status {
        Ok(status) if status.readiness.reason == SUSPECT => is_brief(),
        Ok(status) if status.server.is_some() => {
            !is_fresh(status, content) || status.readiness.reason != ADAPTERS_NOT_VERIFIED
        }
        _ => is_brief(),
    }
}

/// Returns whether the report of a sidecar refers to the current content of the ConfigMap.
pub(crate) fn is_fresh(status: &SidecarStatus, content: Option<&ContentHash>) -> bool {
    content.is_some() && status.config.hash.as_ref() == content
}

fn missing_reason(
    id: &AdapterId,
    proof: ResidencyProof,
    server: &ObservedServer,
    content: Option<&ContentHash>,
) -> Option<String> {
    let status = match &server.status {
        Ok(status) => status,
        Err(error) => return Some(format!("its sidecar cannot be queried ({error})")),
    };
    if status.server.is_none() {
        return Some("vLLM cannot be reached".to_owned());
    }
    if proof == ResidencyProof::Registered {
        return if status.is_resident(id) { None } else { Some("vLLM does not list it".to_owned()) };
    }
    if !is_fresh(status, content) {
        return Some(match &status.config.error {
            Some(error) => format!("its sidecar cannot apply the current adapters file ({error})"),
            // A mount with `items` hides the key permanently, and without it no governed adapter can be resident.
            None if status.config.hash.is_some() && !status.config.operator_directives => format!(
                "its sidecar has not read the current adapters file yet, and has never found the key {DIRECTIVES_KEY} \
                 next to it: mount the whole ConfigMap, without items"
            ),
            None => "its sidecar has not read the current adapters file yet".to_owned(),
        });
    }
    if status.is_verified(id) { None } else { Some(describe_state(id, status)) }
}

fn describe_state(id: &AdapterId, status: &SidecarStatus) -> String {
    let Some(adapter) = status.adapter(id) else { return "its sidecar does not know the id".to_owned() };
    let message = match adapter.state {
        AdapterState::Pending => "will load it after other adapters",
        AdapterState::AwaitingAdmission => "waits for its admission by the operator",
        AdapterState::Fetching => "is fetching it",
        AdapterState::Loading => "is loading it",
        AdapterState::Loaded => "is verifying it with a completion",
        AdapterState::Verified => "has it",
        AdapterState::Failed => "could not load it",
        AdapterState::ServerDied => "the server died while loading it or at its first use",
        AdapterState::Quarantined => "the server died twice while loading it or at its first use",
        AdapterState::Rejected => "must not load it, because it was rejected",
        AdapterState::SourceChanged => "has the id from another source",
        AdapterState::SourceRefused => "does not accept its source",
        AdapterState::Unloading => "is unloading it",
        AdapterState::UnloadHeld => "keeps it loaded, although it is under ensureNotExist",
        AdapterState::Gone => "does not have it",
        AdapterState::Unlisted => "has it, but the file does not list it",
        AdapterState::InBothLists => "finds it in both lists of the adapters file",
    };
    match &adapter.last_error {
        Some(problem) => format!("{message}: {}", problem.message),
        None => message.to_owned(),
    }
}

/// Returns Ready servers that are known to lack the adapter: their sidecar responds, and requests for it would fail.
pub(crate) fn servers_lacking<'a>(id: &AdapterId, servers: &'a [ObservedServer]) -> Vec<&'a ObservedServer> {
    let lacks =
        |server: &&ObservedServer| server.ready && server.status.as_ref().is_ok_and(|status| !serves(id, status));
    servers.iter().filter(lacks).collect()
}

/// Returns whether the adapter could take all requests now: a server is Ready, and each Ready one is known to have it.
pub(crate) fn could_serve(id: &AdapterId, servers: &[ObservedServer]) -> bool {
    let has = |server: &ObservedServer| server.status.as_ref().is_ok_and(|status| serves(id, status));
    let mut ready = servers.iter().filter(|server| server.ready).peekable();
    ready.peek().is_some() && ready.all(has)
}

/// Returns whether the server serves this name, as an adapter or as its base model.
pub(crate) fn serves(name: &AdapterId, status: &SidecarStatus) -> bool {
    let base = status.server.is_some() && status.base_models.iter().any(|base| base == name.as_str());
    base || status.is_resident(name)
}
