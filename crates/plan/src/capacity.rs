//! Checks whether all adapters in use fit on the GPU of each server. vLLM never refuses an adapter that exceeds
//! `max_loras`: it swaps adapters between requests, and gets slow.
//!
//! Invariant: a lack of capacity blocks nothing. It is reported, and traffic continues.

#[cfg(test)]
mod tests;

use crate::{observed::ObservedServer, text};
use rollora_api::{names::AdapterId, operator_directives::OperatorDirectives, sidecar_status::NO_SIDECAR};

/// Whether the servers of a pool have enough slots for the adapters in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// No server reports its slots.
    Unknown,
    /// Every server that reports its slots has enough of them.
    Fits {
        /// The lowest `max_loras` of all servers.
        slots: u32,
    },
    /// Some server has fewer slots than needed; the message names it and says what to do.
    TooSmall(String),
}

/// Compares the slots of every Ready server with the ids that serve and those that it is the pilot of. `ours` are the
/// versions of the evaluated Rollout.
pub(crate) fn evaluate(directives: &OperatorDirectives, servers: &[ObservedServer], ours: &[&AdapterId]) -> Capacity {
    let mut fits = Capacity::Unknown;
    let mut too_small: Vec<(&str, u32, usize)> = Vec::new();
    for server in servers.iter().filter(|server| server.ready) {
        let Some(slots) = server.status.as_ref().ok().and_then(|status| status.max_loras) else { continue };
        let needed = required_slots(directives, server);
        if needed > usize::try_from(slots).unwrap_or(usize::MAX) {
            too_small.push((&server.name, slots, needed));
        }
        fits = match fits {
            Capacity::Fits { slots: least } => Capacity::Fits { slots: least.min(slots) },
            _ => Capacity::Fits { slots },
        };
    }
    let Some((_, slots, needed)) = too_small.iter().min_by_key(|(_, slots, needed)| (*slots, usize::MAX - needed))
    else {
        return fits;
    };
    let names: Vec<&str> = too_small.iter().map(|(name, ..)| *name).collect();
    let mut both: Vec<&str> = ours.iter().map(|id| id.as_str()).collect();
    both.dedup();
    Capacity::TooSmall(format!(
        "{}: max_loras is {slots}, and {needed} adapters are in use{}: vLLM swaps them between requests and gets \
         slow; start vLLM with --max-loras {needed}, or serve fewer adapters",
        text::list(&names),
        if both.len() > 1 { format!(" ({} among them)", both.join(" and ")) } else { String::new() },
    ))
}

/// Returns whether servers with a sidecar do not report their slots yet: vLLM does so only after an adapter has served
/// a request.
pub(crate) fn is_unreported(servers: &[ObservedServer]) -> bool {
    let statuses = servers.iter().filter(|server| server.ready).filter_map(|server| server.status.as_ref().ok());
    let mut reporting = statuses.filter(|status| status.readiness.reason != NO_SIDECAR).peekable();
    reporting.peek().is_some() && reporting.all(|status| status.max_loras.is_none())
}

/// Returns how many slots this server needs.
fn required_slots(directives: &OperatorDirectives, server: &ObservedServer) -> usize {
    let mut ids: Vec<&AdapterId> = directives.serving.iter().chain(directives.pilot_ids(&server.name)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}
