//! Which server gets a request: pure over what is known of the servers and their load.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

/// What is known of one server, besides its load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerFacts {
    /// Whether its sidecar lets requests go there.
    pub(crate) ready: bool,
    /// Whether an adapter is on trial there: a server to avoid, since the adapter may end it.
    pub(crate) pilot: bool,
    /// The names it answers to: base models, and adapters that are resident and not on trial.
    pub(crate) names: Vec<String>,
    /// Adapters on trial there.
    pub(crate) on_trial: Vec<String>,
}

/// What is known of all servers, arranged for the choice.
#[derive(Debug, Default)]
pub(super) struct Table {
    ready: Vec<usize>,
    pilot: Vec<bool>,
    having: HashMap<String, Vec<usize>>,
    trying: HashMap<String, Vec<usize>>,
}

/// What a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need<'a> {
    /// The adapter that a rule chose: no other server than one that has it will do.
    Target(&'a str),
    /// The model that the client named itself: where no server has it, any server may say so.
    Named(&'a str),
    /// No model.
    Nothing,
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

impl Table {
    pub(super) fn new(servers: &[ServerFacts]) -> Self {
        let mut table = Self { pilot: servers.iter().map(|server| server.pilot).collect(), ..Self::default() };
        for (index, server) in servers.iter().enumerate().filter(|(_, server)| server.ready) {
            table.ready.push(index);
            for name in &server.names {
                table.having.entry(name.clone()).or_default().push(index);
            }
            for name in &server.on_trial {
                table.trying.entry(name.clone()).or_default().push(index);
            }
        }
        table
    }

    /// How many servers are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The server for `need` with the least requests in flight; `load` is none for servers that are out. A server
    /// with an adapter on trial is the last resort. Among equals `turn` decides, a number that rises.
    pub(super) fn choose(
        &self,
        need: Need<'_>,
        turn: usize,
        load: impl Fn(usize) -> Option<usize>,
    ) -> Result<usize, NoServer> {
        let least = |candidates: &[usize], refused: &[usize]| {
            let count = self.pilot.len();
            let able = candidates.iter().copied().filter(|index| !refused.contains(index));
            able.filter_map(|index| {
                Some((self.pilot[index], load(index)?, (index + count - turn % count) % count, index))
            })
            .min()
            .map(|(.., index)| index)
        };
        let having = |name: &str| self.having.get(name).map_or(&[][..], Vec::as_slice);
        let any_ready = || least(&self.ready, &[]).ok_or(NoServer::NotReady);
        match need {
            Need::Nothing => any_ready(),
            Need::Target(name) => {
                least(having(name), &[]).map_or_else(|| any_ready().and(Err(NoServer::NotResident)), Ok)
            }
            Need::Named(name) => least(having(name), &[]).map_or_else(
                || {
                    any_ready()?;
                    let trying = self.trying.get(name).map_or(&[][..], Vec::as_slice);
                    least(&self.ready, trying).ok_or(NoServer::OnTrial)
                },
                Ok,
            ),
        }
    }
}
