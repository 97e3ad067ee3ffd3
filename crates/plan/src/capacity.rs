//! Whether every adapter that is in use can be on the GPU at once. vLLM never refuses one too many: it swaps adapters in
//! and out between requests, and gets slow.
//!
//! Invariant: this blocks nothing. It is said, and traffic goes on.

#[cfg(test)]
mod tests;

use crate::{observed::ObservedServer, text};
use rollora_api::{names::AdapterId, operator_directives::OperatorDirectives, sidecar_status::NO_SIDECAR};

/// What the servers of a pool can hold at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Capacity {
    /// No server says how much it can hold.
    Unknown,
    /// Every server that says so has room.
    Fits {
        /// The least room that a server has, `max_loras`.
        slots: u32,
    },
    /// Some server has less room than is needed; what is so, and what to do, in words.
    TooSmall(String),
}

/// Looks at every Ready server. What it needs room for are the ids that serve, and the one that it is the pilot for.
/// `ours` are the versions of the Rollout that asks.
pub(crate) fn evaluate(key: &OperatorDirectives, servers: &[ObservedServer], ours: &[&AdapterId]) -> Capacity {
    let mut fits = Capacity::Unknown;
    let mut small: Vec<(&str, u32, usize)> = Vec::new();
    for server in servers.iter().filter(|server| server.ready) {
        let Some(slots) = server.status.as_ref().ok().and_then(|status| status.max_loras) else { continue };
        let needed = required_slots(key, server);
        if needed > usize::try_from(slots).unwrap_or(usize::MAX) {
            small.push((&server.name, slots, needed));
        }
        fits = match fits {
            Capacity::Fits { slots: least } => Capacity::Fits { slots: least.min(slots) },
            _ => Capacity::Fits { slots },
        };
    }
    let Some((_, slots, needed)) = small.iter().min_by_key(|(_, slots, needed)| (*slots, usize::MAX - needed)) else {
        return fits;
    };
    let names: Vec<&str> = small.iter().map(|(name, ..)| *name).collect();
    let mut both: Vec<&str> = ours.iter().map(|id| id.as_str()).collect();
    both.dedup();
    Capacity::TooSmall(format!(
        "{}: max_loras is {slots}, and {needed} adapters are in use{}: vLLM refuses none, but swaps them between requests \
         and gets slow; start vLLM with --max-loras {needed}, or let fewer serve",
        text::list(&names),
        if both.len() > 1 { format!(" ({} among them)", both.join(" and ")) } else { String::new() },
    ))
}

/// Whether servers that could tell have not told yet how much room they have: vLLM does when an adapter has answered.
pub(crate) fn is_unreported(servers: &[ObservedServer]) -> bool {
    let statuses = servers.iter().filter(|server| server.ready).filter_map(|server| server.status.as_ref().ok());
    let mut telling = statuses.filter(|status| status.readiness.reason != NO_SIDECAR).peekable();
    telling.peek().is_some() && telling.all(|status| status.max_loras.is_none())
}

/// How many adapters this server needs room for.
fn required_slots(key: &OperatorDirectives, server: &ObservedServer) -> usize {
    let mut ids: Vec<&AdapterId> = key.serving.iter().chain(key.pilot_ids(&server.name)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}
