//! Chooses the server for a request: pure functions over the state and the load of the servers.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

/// What the gateway knows of one server, except for its load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerRoutingState {
    /// Whether its sidecar reports the server as ready for requests.
    pub(crate) ready: bool,
    /// Whether an adapter is on trial there. Such a server is avoided, since the adapter may crash it.
    pub(crate) pilot: bool,
    /// Models that it serves: base models, and resident adapters that are not on trial.
    pub(crate) models: Vec<String>,
    /// Adapters that are on trial there.
    pub(crate) on_trial: Vec<String>,
}

/// Index over the states of all servers, which are referred to by their positions.
#[derive(Debug, Default)]
pub(super) struct RoutingTable {
    ready: Vec<usize>,
    is_pilot: Vec<bool>,
    by_model: HashMap<String, Vec<usize>>,
    on_trial: HashMap<String, Vec<usize>>,
}

/// Which servers can take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerRequirement<'a> {
    /// Only servers that have this adapter, which a rule chose.
    Target(&'a str),
    /// Servers that have this model, which the client named; if none has it, any server, which then reports the error.
    Model(&'a str),
    /// Any server, since the request names no model.
    Any,
}

/// Why no server can take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoServer {
    /// No server is ready.
    NotReady,
    /// No ready server has the adapter that a rule chose.
    NotResident,
    /// The model that the client named is on trial on all ready servers.
    OnTrial,
}

impl RoutingTable {
    pub(super) fn new(servers: &[ServerRoutingState]) -> Self {
        let mut table = Self { is_pilot: servers.iter().map(|server| server.pilot).collect(), ..Self::default() };
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.ready) {
            table.ready.push(index);
            for name in &server.models {
                table.by_model.entry(name.clone()).or_default().push(index);
            }
            for name in &server.on_trial {
                table.on_trial.entry(name.clone()).or_default().push(index);
            }
        }
        table
    }

    pub(super) fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Chooses the server for `requirement` that has the fewest requests in flight. `load` returns `None` for
    /// excluded servers. A server with an adapter on trial is the last resort. `round_robin`, a rising number,
    /// decides between equal servers.
    pub(super) fn choose(
        &self,
        requirement: ServerRequirement<'_>,
        round_robin: usize,
        load: impl Fn(usize) -> Option<usize>,
    ) -> Result<usize, NoServer> {
        let least_loaded = |candidates: &[usize], excluded: &[usize]| {
            let count = self.is_pilot.len();
            let allowed = candidates.iter().copied().filter(|index| !excluded.contains(index));
            allowed
                .filter_map(|index| {
                    Some((self.is_pilot[index], load(index)?, (index + count - round_robin % count) % count, index))
                })
                .min()
                .map(|(.., index)| index)
        };
        let servers_with = |name: &str| self.by_model.get(name).map_or(&[][..], Vec::as_slice);
        let any_ready = || least_loaded(&self.ready, &[]).ok_or(NoServer::NotReady);
        match requirement {
            ServerRequirement::Any => any_ready(),
            ServerRequirement::Target(name) => {
                least_loaded(servers_with(name), &[]).map_or_else(|| any_ready().and(Err(NoServer::NotResident)), Ok)
            }
            ServerRequirement::Model(name) => least_loaded(servers_with(name), &[]).map_or_else(
                || {
                    any_ready()?;
                    let pilots = self.on_trial.get(name).map_or(&[][..], Vec::as_slice);
                    least_loaded(&self.ready, pilots).ok_or(NoServer::OnTrial)
                },
                Ok,
            ),
        }
    }
}
