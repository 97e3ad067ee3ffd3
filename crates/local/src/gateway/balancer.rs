//! Which server gets a request: pure over what is known of the servers and their load.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

/// What is known of one server, besides its load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerRoutingState {
    /// Whether its sidecar lets requests go there.
    pub(crate) ready: bool,
    /// Whether an adapter is on trial there: a server to avoid, since the adapter may end it.
    pub(crate) pilot: bool,
    /// The names it answers to: base models, and adapters that are resident and not on trial.
    pub(crate) models: Vec<String>,
    /// Adapters on trial there.
    pub(crate) on_trial: Vec<String>,
}

/// What is known of all servers, arranged for the choice.
#[derive(Debug, Default)]
pub(super) struct RoutingTable {
    ready: Vec<usize>,
    is_pilot: Vec<bool>,
    by_model: HashMap<String, Vec<usize>>,
    on_trial: HashMap<String, Vec<usize>>,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerRequirement<'a> {
    /// The adapter that a rule chose: no other server than one that has it will do.
    Target(&'a str),
    /// The model that the client named itself: where no server has it, any server may say so.
    Model(&'a str),
    /// No model.
    Any,
}

/// Why no server can be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoServer {
    /// None is ready.
    NotReady,
    /// Some are ready, and none of them has what the rule chose.
    NotResident,
    /// What the client named is on trial, on the only servers there are.
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

    /// How many servers are ready.
    pub(super) fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// The server for `need` with the least requests in flight; `load` is none for servers that are out. A server
    /// with an adapter on trial is the last resort. Among equals `turn` decides, a number that rises.
    pub(super) fn choose(
        &self,
        need: ServerRequirement<'_>,
        round_robin: usize,
        load: impl Fn(usize) -> Option<usize>,
    ) -> Result<usize, NoServer> {
        let least = |candidates: &[usize], refused: &[usize]| {
            let count = self.is_pilot.len();
            let able = candidates.iter().copied().filter(|index| !refused.contains(index));
            able.filter_map(|index| {
                Some((self.is_pilot[index], load(index)?, (index + count - round_robin % count) % count, index))
            })
            .min()
            .map(|(.., index)| index)
        };
        let having = |name: &str| self.by_model.get(name).map_or(&[][..], Vec::as_slice);
        let any_ready = || least(&self.ready, &[]).ok_or(NoServer::NotReady);
        match need {
            ServerRequirement::Any => any_ready(),
            ServerRequirement::Target(name) => {
                least(having(name), &[]).map_or_else(|| any_ready().and(Err(NoServer::NotResident)), Ok)
            }
            ServerRequirement::Model(name) => least(having(name), &[]).map_or_else(
                || {
                    any_ready()?;
                    let trying = self.on_trial.get(name).map_or(&[][..], Vec::as_slice);
                    least(&self.ready, trying).ok_or(NoServer::OnTrial)
                },
                Ok,
            ),
        }
    }
}
