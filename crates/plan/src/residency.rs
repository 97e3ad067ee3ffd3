//! The residency gate: before a target gets weight, every server of every Ready pod has it, and there is one. And its
//! opposite: which Ready servers are known to lack an adapter that has weight.
//!
//! Invariant: what could not be asked opens no gate, and is no proof of a loss either.

#[cfg(test)]
mod tests;

use crate::observed::Server;
use rollora_api::{
    adapters::ContentHash,
    names::AdapterId,
    rollout::spec::ResidencyProof,
    sidecar_status::{AdapterState, SidecarStatus},
};

/// How many Ready servers have an adapter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Gate {
    /// Ready servers that have it.
    pub(crate) resident: usize,
    /// Ready servers.
    pub(crate) ready: usize,
    /// The others, each with the reason.
    pub(crate) missing: Vec<String>,
}

impl Gate {
    /// Looks at every Ready server.
    pub(crate) fn look(
        id: &AdapterId,
        proof: ResidencyProof,
        servers: &[Server],
        content: Option<&ContentHash>,
    ) -> Self {
        let mut gate = Self::default();
        for server in servers.iter().filter(|server| server.ready) {
            gate.ready += 1;
            match lacks(id, proof, server, content) {
                None => gate.resident += 1,
                Some(why) => gate.missing.push(format!("{}: {why}", server.name)),
            }
        }
        gate
    }

    /// Whether the adapter may get weight.
    pub(crate) fn is_open(&self) -> bool {
        self.ready > 0 && self.missing.is_empty()
    }
}

/// Whether what a sidecar says is about the present content of the ConfigMap.
pub(crate) fn is_fresh(status: &SidecarStatus, content: Option<&ContentHash>) -> bool {
    content.is_some() && status.config.hash.as_ref() == content
}

fn lacks(id: &AdapterId, proof: ResidencyProof, server: &Server, content: Option<&ContentHash>) -> Option<String> {
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
            None => "its sidecar has not read the present adapters file yet".to_owned(),
        });
    }
    if status.is_verified(id) { None } else { Some(state_in_words(id, status)) }
}

fn state_in_words(id: &AdapterId, status: &SidecarStatus) -> String {
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
pub(crate) fn lacking<'a>(id: &AdapterId, servers: &'a [Server]) -> Vec<&'a Server> {
    let lacks = |server: &&Server| server.ready && server.status.as_ref().is_ok_and(|status| !answers(id, status));
    servers.iter().filter(lacks).collect()
}

/// Whether the adapter could take all requests now: some server is Ready, and each Ready one is known to have it.
pub(crate) fn could_serve(id: &AdapterId, servers: &[Server]) -> bool {
    let has = |server: &Server| server.status.as_ref().is_ok_and(|status| answers(id, status));
    let mut ready = servers.iter().filter(|server| server.ready).peekable();
    ready.peek().is_some() && ready.all(has)
}

/// Whether the server answers requests for this name: as an adapter, or as its base model.
pub(crate) fn answers(name: &AdapterId, status: &SidecarStatus) -> bool {
    let base = status.server.is_some() && status.base_models.iter().any(|base| base == name.as_str());
    base || status.is_resident(name)
}
