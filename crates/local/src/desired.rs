//! What each sidecar has to make true: the adapters file, and the operator's key in so far as it may reach that
//! server now.
//!
//! A trial may end the server that tries. So the entry that lets a server try an adapter reaches its sidecar only when
//! no request is in flight there, while the gateway sends requests to others; and it is not kept back where there is
//! nobody else to send them to, nor for longer than [`MAX_QUIETING`].

#[cfg(test)]
mod tests;

use crate::{gateway::ServerRoutingState, snapshot::StoreSnapshot};
use jiff::{SignedDuration, Timestamp};
use rollora_api::{
    adapters::DesiredAdapters, names::AdapterId, operator_directives::OperatorDirectives, sidecar_status::SidecarStatus,
};

/// For how long a trial waits for the end of requests at most.
pub(crate) const MAX_DRAIN: SignedDuration = SignedDuration::from_secs(60);

/// Adapters that `server` is to try and has not proven yet.
pub(crate) fn pending_trials(key: Option<&OperatorDirectives>, server: &str, status: &SidecarStatus) -> Vec<String> {
    let trials = key.into_iter().flat_map(|key| key.pilot_ids(server));
    trials.filter(|id| !status.is_verified(id)).map(AdapterId::to_string).collect()
}

/// What the gateway has to know of a server.
pub(crate) fn routing_state(
    key: Option<&OperatorDirectives>,
    server: &str,
    status: &SidecarStatus,
) -> ServerRoutingState {
    let on_trial = pending_trials(key, server, status);
    let resident = status.adapters.iter().filter(|adapter| adapter.state.is_resident());
    let resident = resident.map(|adapter| adapter.id.to_string()).filter(|id| !on_trial.contains(id));
    ServerRoutingState {
        ready: status.server.is_some() && status.readiness.ready,
        pilot: !on_trial.is_empty(),
        models: status.base_models.iter().cloned().chain(resident).collect(),
        on_trial,
    }
}

/// How far the trials on one server are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum TrialState {
    /// Nothing is to be tried.
    #[default]
    Inactive,
    /// Requests in flight are waited for.
    Draining {
        /// Since when.
        since: Timestamp,
    },
    /// The sidecar may try these.
    Started(Vec<String>),
}

impl TrialState {
    /// What becomes of it: `on_trial` is what is to be tried, `others` the number of servers that requests can go to
    /// instead.
    pub(crate) fn advance(&mut self, on_trial: &[String], in_flight: usize, others: usize, now: Timestamp) {
        let since = match self {
            _ if on_trial.is_empty() => {
                *self = Self::Inactive;
                return;
            }
            Self::Started(begun) if on_trial.iter().all(|id| begun.contains(id)) => return,
            Self::Draining { since } => *since,
            _ => now,
        };
        let waited_enough = now.duration_since(since) >= MAX_DRAIN;
        *self = if in_flight == 0 || others == 0 || waited_enough {
            Self::Started(on_trial.to_vec())
        } else {
            Self::Draining { since }
        };
    }

    /// Whether requests in flight are waited for.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    /// Whether the sidecar may try.
    pub(crate) fn is_allowed(&self) -> bool {
        !self.is_draining()
    }

    /// Until when requests are waited for.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Draining { since } => Some(*since + MAX_DRAIN),
            _ => None,
        }
    }
}

/// What the sidecar of `server` has to make true; `trials` says whether entries for it as a pilot reach it already.
pub(crate) fn desired_adapters(documents: &StoreSnapshot, server: &str, trials: bool) -> DesiredAdapters {
    let mut key = documents.directives.parsed.as_deref().cloned().unwrap_or_else(|| initial_directives(documents));
    if !trials {
        key.pilots.retain(|pilot| pilot.pod != server);
    }
    DesiredAdapters { file: documents.adapters.file.as_ref().clone(), directives: Some(key), hash: documents.hash() }
}

/// What holds before the operator wrote its key for the first time: without it, every server would load at once what
/// one of them has to try first.
fn initial_directives(documents: &StoreSnapshot) -> OperatorDirectives {
    let managed = documents.rollout.spec.adapter.managed_pattern().map(str::to_owned).into_iter().collect();
    OperatorDirectives { managed, ..OperatorDirectives::default() }
}
