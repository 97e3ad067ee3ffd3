//! The desired state of each sidecar: the adapters file, and the operator directives as far as they may reach that
//! server now.
//!
//! A trial may crash the pilot server. Therefore the directive that lets a pilot load an adapter reaches its sidecar
//! only when the server has no request in flight; meanwhile the gateway sends requests to other servers. The directive
//! is not held back if no other server can take requests, nor for longer than [`MAX_DRAIN`].

#[cfg(test)]
mod tests;

use crate::{gateway::ServerRoutingState, snapshot::StoreSnapshot};
use jiff::{SignedDuration, Timestamp};
use rollora_api::{
    adapters::DesiredAdapters, names::AdapterId, operator_directives::OperatorDirectives, sidecar_status::SidecarStatus,
};

/// Maximum time that a trial waits for requests in flight to end.
pub(crate) const MAX_DRAIN: SignedDuration = SignedDuration::from_secs(60);

/// Returns the ids that `server` must try as pilot and has not verified yet.
pub(crate) fn pending_trials(
    directives: Option<&OperatorDirectives>,
    server: &str,
    status: &SidecarStatus,
) -> Vec<String> {
    let trials = directives.into_iter().flat_map(|directives| directives.pilot_ids(server));
    trials.filter(|id| !status.is_verified(id)).map(AdapterId::to_string).collect()
}

pub(crate) fn routing_state(
    directives: Option<&OperatorDirectives>,
    server: &str,
    status: &SidecarStatus,
) -> ServerRoutingState {
    let on_trial = pending_trials(directives, server, status);
    let resident = status.adapters.iter().filter(|adapter| adapter.state.is_resident());
    let resident = resident.map(|adapter| adapter.id.to_string()).filter(|id| !on_trial.contains(id));
    ServerRoutingState {
        ready: status.server.is_some() && status.readiness.ready,
        pilot: !on_trial.is_empty(),
        models: status.base_models.iter().cloned().chain(resident).collect(),
        on_trial,
    }
}

/// State of the trials on one server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum TrialState {
    /// No adapter is on trial.
    #[default]
    Inactive,
    /// The trial waits until requests in flight have ended.
    Draining {
        /// Start of the wait.
        since: Timestamp,
    },
    /// The sidecar may load these ids.
    Started(Vec<String>),
}

impl TrialState {
    /// Moves to the next state. `on_trial` are the ids to try, `others` is the number of other servers that can take
    /// requests.
    pub(crate) fn advance(&mut self, on_trial: &[String], in_flight: usize, others: usize, now: Timestamp) {
        let since = match self {
            _ if on_trial.is_empty() => {
                *self = Self::Inactive;
                return;
            }
            Self::Started(started) if on_trial.iter().all(|id| started.contains(id)) => return,
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

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self, Self::Draining { .. })
    }

    /// Whether the sidecar may load the adapters on trial.
    pub(crate) fn is_allowed(&self) -> bool {
        !self.is_draining()
    }

    /// End of the wait for requests in flight. `None` if nothing is waited for.
    pub(crate) fn deadline(&self) -> Option<Timestamp> {
        match self {
            Self::Draining { since } => Some(*since + MAX_DRAIN),
            _ => None,
        }
    }
}

/// Builds the desired state for the sidecar of `server`, with or without the directives for it as pilot.
pub(crate) fn desired_adapters(snapshot: &StoreSnapshot, server: &str, include_pilots: bool) -> DesiredAdapters {
    let mut directives = snapshot.directives.parsed.as_deref().cloned().unwrap_or_else(|| initial_directives(snapshot));
    if !include_pilots {
        directives.pilots.retain(|pilot| pilot.pod != server);
    }
    DesiredAdapters {
        file: snapshot.adapters.file.as_ref().clone(),
        directives: Some(directives),
        hash: snapshot.hash(),
    }
}

/// Directives before the operator has written any. Without them, every server would immediately load an adapter that a
/// pilot must try first.
fn initial_directives(snapshot: &StoreSnapshot) -> OperatorDirectives {
    let managed = snapshot.rollout.spec.adapter.managed_pattern().map(str::to_owned).into_iter().collect();
    OperatorDirectives { managed, ..OperatorDirectives::default() }
}
