//! Why it does not move: files, conditions, servers, adapters, in words, and what to do.

use super::{phase_name, status::suggested_command, style::TextStyle, time};
use jiff::Timestamp;
use rollora_api::{
    condition::{Condition, ConditionStatus, condition_type},
    rollout::RolloutStatus,
    sidecar_status::{AdapterState, AdapterStatus},
};
use rollora_local::{Overview, ServerView};

/// How many warnings are shown.
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
        (
            "On the way out",
            status.retired.iter().map(|retired| format!("{}: {}", retired.id, retired.reason)).collect(),
        ),
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

/// What hinders servers; where they cannot be asked from here, as the operator heard it.
fn server_problems(overview: &Overview, status: &RolloutStatus, now: Timestamp) -> Vec<String> {
    if overview.listen.is_none() {
        return status.residency.missing.clone();
    }
    overview.servers.iter().flat_map(|server| server_lines(server, status, now)).collect()
}

fn file_problems(overview: &Overview) -> Vec<String> {
    let problems = [&overview.rollout_file, &overview.adapters_file].map(|file| file.problem.clone());
    let known = |problem: String| format!("{problem}; what was in force before stays in force");
    problems.into_iter().flatten().map(known).collect()
}

/// Conditions that are not as one would wish.
fn unmet_conditions(status: &RolloutStatus, now: Timestamp) -> Vec<String> {
    let unwanted = |condition: &&Condition| match condition.type_.as_str() {
        condition_type::STALLED | condition_type::PROGRESSING => condition.status == ConditionStatus::True,
        _ => condition.status != ConditionStatus::True,
    };
    let say = |condition: &Condition| {
        let since = time::format_elapsed(condition.last_transition_time, now);
        let holds = match condition.status {
            ConditionStatus::True => "",
            ConditionStatus::False => "not ",
            ConditionStatus::Unknown => "unknown whether ",
        };
        let message = if condition.message.is_empty() { &condition.reason } else { &condition.message };
        format!("{holds}{} for {since} ({}): {message}", condition.type_, condition.reason)
    };
    status.conditions.iter().filter(unwanted).map(say).collect()
}

fn server_lines(server: &ServerView, status: &RolloutStatus, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    let about = &server.status;
    if let Some(problem) = &about.problem {
        lines.push(format!("{}: {}", server.name, problem.message));
    } else if !server.ready {
        lines.push(format!("{}: not ready: {}", server.name, about.readiness.message));
    }
    if let Some(error) = &about.config.error {
        lines.push(format!("{}: {error}", server.name));
    }
    // Of a server that is away only what it died over is known for sure.
    let known = |adapter: &&AdapterStatus| about.server.is_some() || adapter.state == AdapterState::ServerDied;
    for adapter in about.adapters.iter().filter(known) {
        let interesting =
            [&status.revision.stable, &status.revision.desired].into_iter().flatten().any(|id| *id == adapter.id);
        if let Some(said) = adapter_problem(adapter, interesting, now) {
            lines.push(format!("{}: {} {said}", server.name, adapter.id));
        }
    }
    lines
}

/// What hinders an adapter; nothing where nothing does.
fn adapter_problem(adapter: &AdapterStatus, interesting: bool, now: Timestamp) -> Option<String> {
    let error = adapter.last_error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    let again =
        adapter.next_try.filter(|at| *at > now).map(|at| format!("; next try in {}", time::format_elapsed(now, at)));
    let again = again.unwrap_or_default();
    let attempts = match adapter.attempts {
        0 | 1 => String::new(),
        attempts => format!(" after {attempts} attempts"),
    };
    let said = match adapter.state {
        AdapterState::Failed => format!("could not be loaded{attempts}{error}{again}"),
        AdapterState::ServerDied => format!("ended the server{error}"),
        AdapterState::Quarantined => format!("ended the server twice and is not tried there again{error}"),
        AdapterState::Rejected if interesting => format!("is rejected{error}"),
        AdapterState::SourceChanged => {
            "is loaded from another source than the file says: list the new weights under a new id".to_owned()
        }
        AdapterState::InBothLists => "is in both lists: take it out of one of them".to_owned(),
        AdapterState::SourceRefused => format!("is not accepted{error}"),
        AdapterState::Fetching if interesting => format!("is being fetched{error}"),
        AdapterState::Loading if interesting => format!("is being loaded{error}"),
        AdapterState::Pending if interesting => format!("waits for its turn{error}{again}"),
        AdapterState::AwaitingAdmission if interesting => "waits until the pilot server has proven it".to_owned(),
        AdapterState::Loaded if interesting => format!("is loaded and not proven yet{error}"),
        AdapterState::Unloading => "is being unloaded when its use ends".to_owned(),
        _ => return None,
    };
    Some(said)
}

fn recent_warnings(overview: &Overview, now: Timestamp) -> Vec<String> {
    let warnings = overview.events.iter().rev().filter(|event| event.warning).take(MAX_WARNINGS);
    let mut lines: Vec<String> =
        warnings.map(|event| format!("{} ago: {}", time::format_elapsed(event.at, now), event.message)).collect();
    lines.reverse();
    lines
}
