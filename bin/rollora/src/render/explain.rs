//! Output of `rollora explain`: why the rollout does not progress, by files, conditions, servers and adapters.

use super::{phase_name, status::suggested_command, style::TextStyle, time};
use jiff::Timestamp;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type},
    rollout::RolloutStatus,
    sidecar_status::{AdapterState, AdapterStatus},
};
use rollora_local::{Overview, ServerView};

/// Number of warnings that are shown, the last ones.
const MAX_WARNINGS: usize = 5;

pub(crate) fn explain(overview: &Overview, now: Timestamp, style: TextStyle) -> String {
    let status = overview.rollout.status.clone().unwrap_or_default();
    let mut lines = vec![format!(
        "{}: {}{}",
        style.bold(overview.rollout.spec.model.as_str()),
        phase_name(status.phase),
        if status.message.is_empty() { String::new() } else { format!("; {}", status.message) },
    )];
    let sections = [
        ("Files", file_problems(overview)),
        ("Conditions", unmet_conditions(&status, now)),
        ("Servers", server_problems(overview, &status, now)),
        ("Rejected", status.rejected.iter().map(|rejected| format!("{}: {}", rejected.id, rejected.reason)).collect()),
        ("Retired", status.retired.iter().map(|retired| format!("{}: {}", retired.id, retired.reason)).collect()),
        ("Warnings", recent_warnings(overview, now)),
    ];
    for (title, section) in sections {
        if !section.is_empty() {
            lines.push(String::new());
            lines.push(style.bold(title));
            lines.extend(section.into_iter().map(|line| format!("  {line}")));
        }
    }
    if let Some(next) = suggested_command(&status) {
        lines.push(String::new());
        lines.push(format!("Next: {next}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Problems of servers. On a cluster, they are known from the status only.
fn server_problems(overview: &Overview, status: &RolloutStatus, now: Timestamp) -> Vec<String> {
    if overview.listen.is_none() {
        return status.residency.missing.clone();
    }
    overview.servers.iter().flat_map(|server| server_lines(server, status, now)).collect()
}

fn file_problems(overview: &Overview) -> Vec<String> {
    let problems = [&overview.rollout_file, &overview.adapters_file].map(|file| file.problem.clone());
    let describe = |problem: String| format!("{problem}; the last valid content stays active");
    problems.into_iter().flatten().map(describe).collect()
}

/// Conditions with another status than the one of a healthy rollout.
fn unmet_conditions(status: &RolloutStatus, now: Timestamp) -> Vec<String> {
    let is_unmet = |condition: &&Condition| match condition.type_.as_str() {
        condition_type::STALLED | condition_type::PROGRESSING => condition.status == ConditionStatus::True,
        _ => condition.status != ConditionStatus::True,
    };
    let describe = |condition: &Condition| {
        let since = time::format_elapsed(condition.last_transition_time, now);
        let prefix = match condition.status {
            ConditionStatus::True => "",
            ConditionStatus::False => "not ",
            ConditionStatus::Unknown => "unknown whether ",
        };
        let message = if condition.message.is_empty() { &condition.reason } else { &condition.message };
        format!("{prefix}{} for {since} ({}): {message}", condition.type_, condition.reason)
    };
    status.conditions.iter().filter(is_unmet).map(describe).collect()
}

fn server_lines(server: &ServerView, status: &RolloutStatus, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let report = &server.status;
    if let Some(problem) = &report.problem {
        lines.push(format!("{}: {}", server.name, problem.message));
    } else if !server.ready {
        lines.push(format!("{}: not ready: {}", server.name, report.readiness.message));
    }
    if let Some(error) = &report.config.error {
        lines.push(format!("{}: {error}", server.name));
    }
    // If a server is down, only the adapters that crashed it are known for sure.
    let known = |adapter: &&AdapterStatus| report.server.is_some() || adapter.state == AdapterState::ServerDied;
    for adapter in report.adapters.iter().filter(known) {
        let relevant =
            [&status.revision.stable, &status.revision.desired].into_iter().flatten().any(|id| *id == adapter.id);
        if let Some(problem) = adapter_problem(adapter, relevant, now) {
            lines.push(format!("{}: {} {problem}", server.name, adapter.id));
        }
    }
    lines
}

/// Problem of an adapter on a server. `None` if there is none, or if it does not concern an adapter of the rollout.
fn adapter_problem(adapter: &AdapterStatus, relevant: bool, now: Timestamp) -> Option<String> {
    let error = adapter.last_error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    let next_try =
        adapter.next_try.filter(|at| *at > now).map(|at| format!("; next try in {}", time::format_elapsed(now, at)));
    let next_try = next_try.unwrap_or_default();
    let attempts = match adapter.attempts {
        0 | 1 => String::new(),
        attempts => format!(" after {attempts} attempts"),
    };
    let problem = match adapter.state {
        AdapterState::Failed => format!("could not be loaded{attempts}{error}{next_try}"),
        AdapterState::ServerDied => format!("crashed the server{error}"),
        AdapterState::Quarantined => format!("crashed the server twice and is not loaded there again{error}"),
        AdapterState::Rejected if relevant => format!("is rejected{error}"),
        AdapterState::SourceChanged => {
            "is loaded from another source than the one in the file: list the new weights under a new id".to_owned()
        }
        AdapterState::InBothLists => "is in both lists: remove it from one of them".to_owned(),
        AdapterState::SourceRefused => format!("has a source that is not allowed{error}"),
        AdapterState::Fetching if relevant => format!("is being fetched{error}"),
        AdapterState::Loading if relevant => format!("is being loaded{error}"),
        AdapterState::Pending if relevant => format!("is queued{error}{next_try}"),
        AdapterState::AwaitingAdmission if relevant => "waits until the pilot server has verified it".to_owned(),
        AdapterState::Loaded if relevant => format!("is loaded but not verified yet{error}"),
        AdapterState::Unloading => "is unloaded once its requests have ended".to_owned(),
        _ => return None,
    };
    Some(problem)
}

fn recent_warnings(overview: &Overview, now: Timestamp) -> Vec<String> {
    let warnings = overview.events.iter().rev().filter(|event| event.warning).take(MAX_WARNINGS);
    let mut lines: Vec<String> =
        warnings.map(|event| format!("{} ago: {}", time::format_elapsed(event.at, now), event.message)).collect();
    lines.reverse();
    lines
}
