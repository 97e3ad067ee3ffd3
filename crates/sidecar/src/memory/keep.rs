//! What is worth keeping over a restart of the sidecar beside a server that goes on: which process it was, whether it
//! was ready, what was proven there, and over what it died.
//!
//! Everything in it is looked at with suspicion when it comes back: what was ready and verified counts for the same
//! process of the server only, and what is said of an adapter only for the same source.

use super::{Adapter, CallKind, Hold, Known, Memory};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    sidecar_status::{ReportedError, ServerIdentity},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Kept {
    /// The process of the server.
    pub server: Option<KeptServer>,
    /// Adapters of which there is something to say.
    pub adapters: BTreeMap<AdapterId, KeptAdapter>,
}

/// One process of the server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptServer {
    /// Which.
    pub identity: ServerIdentity,
    /// When it was first seen.
    pub since: Timestamp,
    /// Whether it was ready once.
    pub was_ready: bool,
}

/// One adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptAdapter {
    /// The source that this is about.
    pub source: String,
    /// Whether the process of the server answered with it.
    #[serde(default)]
    pub verified: bool,
    /// The source with which it was once verified here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<String>,
    /// How often the server ended over it since.
    #[serde(default)]
    pub deaths: u32,
    /// Why it is not tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// A load or a first use that nobody saw the end of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<CallKind>,
    /// What went wrong, where it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<ReportedError>,
}

impl KeptAdapter {
    fn of(adapter: &Adapter) -> Option<Self> {
        let wish = adapter.wish.as_ref()?;
        let under_way = adapter.in_flight.as_ref().map(|call| call.kind).or(adapter.doubt);
        let kept = Self {
            source: wish.source.clone(),
            verified: adapter.verified,
            proven: adapter.proven.clone(),
            deaths: adapter.deaths,
            hold: adapter.hold,
            under_way: under_way.filter(|kind| *kind != CallKind::Unload),
            last_error: adapter.last_error.clone().filter(|_| adapter.hold.is_some()),
        };
        let says_something =
            kept.proven.is_some() || kept.deaths > 0 || kept.hold.is_some() || kept.under_way.is_some();
        says_something.then_some(kept)
    }
}

impl Memory {
    /// What to keep now. What came back and has found no wish yet is kept on.
    pub fn to_keep(&self) -> Kept {
        let server = self.known.as_ref().filter(|known| known.dying_until.is_none()).map(|known| KeptServer {
            identity: known.identity.clone(),
            since: known.since,
            was_ready: known.was_ready,
        });
        let mut adapters = self.recalled.clone();
        adapters.extend(self.adapters.iter().filter_map(|(id, adapter)| Some((id.clone(), KeptAdapter::of(adapter)?))));
        Kept { server, adapters }
    }

    /// Takes back what an earlier run kept, before anything else is known. Of another endpoint nothing is taken.
    pub fn recall(&mut self, kept: Kept) {
        let Some(server) = kept.server.filter(|server| server.identity.endpoint == self.endpoint) else { return };
        let KeptServer { identity, since, was_ready } = server;
        self.known = Some(Known { identity, since, was_ready, dying_until: None });
        self.recalled = kept.adapters;
    }

    /// Gives the adapters that the first file names what was kept of them; the rest is forgotten.
    pub(super) fn recall_adapters(&mut self) {
        for (id, kept) in std::mem::take(&mut self.recalled) {
            let adapter = self.adapters.get_mut(&id);
            let about = |adapter: &&mut Adapter| adapter.wish.as_ref().is_some_and(|wish| wish.source == kept.source);
            if let Some(adapter) = adapter.filter(about) {
                adapter.recall(kept);
            }
        }
    }

    /// The process that what was kept speaks of has ended.
    pub(super) fn recalled_ended(&mut self) {
        for kept in self.recalled.values_mut() {
            kept.verified = false;
        }
    }
}

impl Adapter {
    pub(super) fn recall(&mut self, kept: KeptAdapter) {
        // A call that nobody saw the end of is in doubt: the list of models tells, or another process of the server.
        let KeptAdapter { source: _, verified, proven, deaths, hold, under_way, last_error } = kept;
        self.verified = verified;
        self.proven = proven;
        self.deaths = deaths;
        self.hold = hold;
        self.doubt = under_way;
        self.needs_person = hold == Some(Hold::Quarantine);
        self.attempts = u32::from(hold.is_some());
        self.last_error = last_error;
    }
}

#[cfg(test)]
mod tests;
