//! The residency gate: before a target gets weight, every server of every Ready pod has it, and there is one. And its
//! opposite: which Ready servers are known to lack an adapter that has weight.
//!
//! Invariants: what could not be asked opens no gate, and is no proof of a loss either; a server that is not Ready for a
//! moment closes the gate as if it were.

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

/// How many Ready servers have an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResidencyGate {
    /// Ready servers that have it.
    pub(crate) resident: usize,
    /// Ready servers.
    pub(crate) ready: usize,
    /// Those that do not have it, and are Ready or may be so at any moment, each with the reason.
    pub(crate) missing: Vec<String>,
}

/// How long a server that cannot be asked, or that is suspect, may still come back as it was: its sidecar starts again, or
/// vLLM is silent for a moment. Whoever refuses the sidecar's key is suspect for ever.
const RECOVERY_GRACE_PERIOD: Duration = Duration::from_secs(15);

impl ResidencyGate {
    /// Looks at every server that is Ready, or may be so at any moment.
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
                let why = lacks().map(|why| format!("{} is not Ready for the moment: {why}", server.name));
                gate.missing.extend(why);
            }
        }
        gate
    }

    /// Whether the adapter may get weight.
    pub(crate) fn is_open(&self) -> bool {
        self.ready > 0 && self.missing.is_empty()
    }
}

/// Whether a server that is not Ready may be so at any moment with no more than it has now. Its sidecar says so itself
/// unless it waits for what is to serve, and has read which that is.
fn may_become_ready(server: &ObservedServer, content: Option<&ContentHash>, now: Timestamp) -> bool {
    if server.terminating {
        return false;
    }
    let for_a_moment = || server.unready_since.is_some_and(|unready| since(unready, now) < RECOVERY_GRACE_PERIOD);
    match &server.status {
        Ok(status) if status.readiness.reason == SUSPECT => for_a_moment(),
        Ok(status) if status.server.is_some() => {
            !is_fresh(status, content) || status.readiness.reason != ADAPTERS_NOT_VERIFIED
        }
        _ => for_a_moment(),
    }
}

/// Whether what a sidecar says is about the present content of the ConfigMap.
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
        Err(error) => return Some(format!("its sidecar cannot be asked ({error})")),
    };
    if status.server.is_none() {
        return Some("vLLM cannot be reached".to_owned());
    }
    if proof == ResidencyProof::Registered {
        return if status.is_resident(id) { None } else { Some("does not list it".to_owned()) };
    }
    if !is_fresh(status, content) {
        return Some(match &status.config.error {
            Some(error) => format!("its sidecar cannot take over the present adapters file ({error})"),
            // A mount with `items` hides it for ever; without it nothing that a Rollout governs can be resident.
            None if status.config.hash.is_some() && !status.config.operator_directives => format!(
                "its sidecar has not read the present adapters file yet, and has never seen the key {DIRECTIVES_KEY} \
                 beside it: mount the whole ConfigMap, without items"
            ),
            None => "its sidecar has not read the present adapters file yet".to_owned(),
        });
    }
    if status.is_verified(id) { None } else { Some(describe_state(id, status)) }
}

fn describe_state(id: &AdapterId, status: &SidecarStatus) -> String {
    let Some(adapter) = status.adapter(id) else { return "does not know it".to_owned() };
    let words = match adapter.state {
        AdapterState::Pending => "its turn comes",
        AdapterState::AwaitingAdmission => "waits for its admission",
        AdapterState::Fetching => "is fetching it",
        AdapterState::Loading => "is loading it",
        AdapterState::Loaded => "proves it",
        AdapterState::Verified => "has it",
        AdapterState::Failed => "could not load it",
        AdapterState::ServerDied => "the server died over it",
        AdapterState::Quarantined => "the server died twice over it",
        AdapterState::Rejected => "was told not to load it",
        AdapterState::SourceChanged => "has the id from another source",
        AdapterState::SourceRefused => "does not accept its source",
        AdapterState::Unloading => "is unloading it",
        AdapterState::UnloadHeld => "holds it although the file unlists it",
        AdapterState::Gone => "does not have it",
        AdapterState::Unlisted => "has it, but the file does not list it",
        AdapterState::InBothLists => "finds it in both lists of the file",
    };
    match &adapter.last_error {
        Some(problem) => format!("{words}: {}", problem.message),
        None => words.to_owned(),
    }
}

/// Ready servers that are known to lack the adapter: their sidecar answers, and requests for it would fail there.
pub(crate) fn servers_lacking<'a>(id: &AdapterId, servers: &'a [ObservedServer]) -> Vec<&'a ObservedServer> {
    let lacks =
        |server: &&ObservedServer| server.ready && server.status.as_ref().is_ok_and(|status| !serves(id, status));
    servers.iter().filter(lacks).collect()
}

/// Whether the adapter could take all requests now: some server is Ready, and each Ready one is known to have it.
pub(crate) fn could_serve(id: &AdapterId, servers: &[ObservedServer]) -> bool {
    let has = |server: &ObservedServer| server.status.as_ref().is_ok_and(|status| serves(id, status));
    let mut ready = servers.iter().filter(|server| server.ready).peekable();
    ready.peek().is_some() && ready.all(has)
}

/// Whether the server answers requests for this name: as an adapter, or as its base model.
pub(crate) fn serves(name: &AdapterId, status: &SidecarStatus) -> bool {
    let base = status.server.is_some() && status.base_models.iter().any(|base| base == name.as_str());
    base || status.is_resident(name)
}
