//! Output of `rollora status`, on one screen: header, steps, weights, servers, what the rollout waits for, and events.

use super::{
    phase_name, steps,
    style::{TextStyle, TextTable, plain_cell},
    time,
};
use jiff::Timestamp;
use rollora_api::{
    names::AdapterId,
    rollout::{
        RolloutStatus,
        spec::RouterKind,
        status::{Phase, StepState},
    },
    sidecar_status::AdapterState,
};
use rollora_local::{Overview, ServerView};

/// Number of events that are shown, so that up to ten steps and servers fit on a screen of 40 lines with them.
const MAX_SHOWN_EVENTS: usize = 6;

pub(crate) fn status(overview: &Overview, now: Timestamp, style: TextStyle) -> String {
    let status = overview.rollout.status.clone().unwrap_or_default();
    let mut sections = vec![header(overview, &status, style)];
    sections.extend(file_problems(overview, style));
    sections.push(steps::step_table(&status, now, style));
    sections.push(weights(overview, &status, style));
    sections.push(servers(overview, &status, style));
    sections.push(next_actions(&status, style));
    sections.push(recent_events(overview, now, style));
    sections.retain(|section| !section.is_empty());
    sections.join("\n")
}

fn header(overview: &Overview, status: &RolloutStatus, style: TextStyle) -> String {
    let phase = phase_name(status.phase);
    let phase = match status.phase {
        Phase::Succeeded => style.success(&format!("✔ {phase}")),
        Phase::Held | Phase::RollingBack | Phase::Paused => style.warning(&format!("▶ {phase}")),
        Phase::RolledBack | Phase::Invalid => style.error(&format!("✘ {phase}")),
        Phase::Pending | Phase::Progressing => style.active(&format!("▶ {phase}")),
    };
    let revision = &status.revision;
    let change = match (&revision.stable, &revision.desired) {
        (Some(stable), Some(desired)) if stable != desired => format!("{stable} → {desired}"),
        (_, Some(desired)) => desired.to_string(),
        (Some(stable), None) => stable.to_string(),
        (None, None) => "no adapter yet".to_owned(),
    };
    let model = style.bold(overview.rollout.spec.model.as_str());
    let paused = if overview.rollout.spec.paused { "  (spec.paused)" } else { "" };
    let location = match (&overview.listen, &overview.rollout.metadata.namespace) {
        (Some(listen), _) => format!("http://{listen}"),
        (None, Some(namespace)) => format!("namespace {namespace}"),
        (None, None) => String::new(),
    };
    format!("{model}  {phase}{paused}  {change}  {}\n", style.dim(&location))
}

/// Problems of files whose current content is not active.
fn file_problems(overview: &Overview, style: TextStyle) -> Vec<String> {
    let files = [&overview.rollout_file, &overview.adapters_file].into_iter();
    files
        .filter_map(|file| file.problem.as_ref())
        .map(|problem| format!("{} {problem}\n  The last valid content stays active.\n", style.error("✘")))
        .collect()
}

fn weights(overview: &Overview, status: &RolloutStatus, style: TextStyle) -> String {
    if overview.listen.is_none() {
        return weights_from_status(status, style);
    }
    let active = overview.rules.models.get(overview.rollout.spec.model.as_str());
    let active = active.map_or(&[][..], |rule| &rule.targets);
    let mut ids: Vec<String> = status.weights.desired.iter().map(|target| target.id.to_string()).collect();
    ids.extend(active.iter().map(|target| target.model_rewrite.clone()));
    ids.dedup();
    let mut seen = Vec::new();
    ids.retain(|id| {
        !seen.contains(id) && {
            seen.push(id.clone());
            true
        }
    });
    if ids.is_empty() {
        return String::new();
    }
    let mut table = TextTable::default();
    table.push_row(["WEIGHTS", "DESIRED", "ACTIVE"].map(|title| (title.to_owned(), style.dim(title))));
    for id in ids {
        let desired =
            status.weights.desired.iter().find(|target| target.id.as_str() == id).map_or(0, |target| target.weight);
        let target = active.iter().find(|target| target.model_rewrite == id);
        // A rule in which no target has a weight gives all of them equal shares.
        let weight = target
            .map_or("0".to_owned(), |target| target.weight.map_or("equal".to_owned(), |weight| weight.to_string()));
        let shown = if weight == desired.to_string() { weight.clone() } else { style.warning(&weight) };
        table.push_row([plain_cell(id), plain_cell(desired.to_string()), (weight, shown)]);
    }
    table.render("  ")
}

/// The desired weights, and the number of routers that apply them according to the operator. Used on a cluster, where
/// the CLI does not query routers.
fn weights_from_status(status: &RolloutStatus, style: TextStyle) -> String {
    if status.weights.desired.is_empty() {
        return String::new();
    }
    let mut table = TextTable::default();
    table.push_row(["WEIGHTS", "SET"].map(|title| (title.to_owned(), style.dim(title))));
    for target in &status.weights.desired {
        table.push_row([plain_cell(target.id.to_string()), plain_cell(target.weight.to_string())]);
    }
    let routers = &status.routers;
    let text = format!("active at {} of {} routers", routers.proven, routers.total);
    let shown = if routers.proven == routers.total { text } else { style.warning(&text) };
    match routers.kind {
        RouterKind::ExtProc => format!("{}  {shown}\n", table.render("  ")),
        // An endpoint picker does not report its rules.
        RouterKind::EndpointPicker => table.render("  "),
    }
}

/// The number of servers that have the adapter, and which lack it, according to the operator. Used on a cluster, where
/// the CLI does not query servers.
fn residency_from_status(status: &RolloutStatus, style: TextStyle) -> String {
    let Some(desired) = &status.revision.desired else { return String::new() };
    let residency = &status.residency;
    let text = format!("  {desired} is on {} of {} Ready servers\n", residency.resident, residency.ready);
    let missing = residency.missing.iter().map(|line| format!("    {} {line}\n", style.warning("✘")));
    std::iter::once(text).chain(missing).collect()
}

fn servers(overview: &Overview, status: &RolloutStatus, style: TextStyle) -> String {
    if overview.listen.is_none() {
        return residency_from_status(status, style);
    }
    let ids = shown_adapters(overview, status);
    let mut table = TextTable::default();
    let titles = ["SERVERS", "", "IN FLIGHT"].into_iter().map(str::to_owned).chain(ids.iter().map(ToString::to_string));
    table.push_row(titles.map(|title| (title.clone(), style.dim(&title))));
    for server in &overview.servers {
        let readiness = readiness_cell(server, style);
        let cells = [plain_cell(server.name.clone()), readiness, plain_cell(server.in_flight.to_string())];
        table.push_row(cells.into_iter().chain(ids.iter().map(|id| adapter_cell(server, id, style))));
    }
    table.render("  ")
}

/// Stable, desired and then retired adapters; four columns fit on a screen.
fn shown_adapters(overview: &Overview, status: &RolloutStatus) -> Vec<AdapterId> {
    let revision = [&status.revision.stable, &status.revision.desired].into_iter().flatten().cloned();
    let retired = status.retired.iter().map(|retired| retired.id.clone());
    let mut ids: Vec<AdapterId> = Vec::new();
    for id in revision.chain(retired) {
        if !ids.contains(&id) && ids.len() < 4 {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        let known = overview.servers.iter().flat_map(|server| &server.status.adapters);
        for adapter in known {
            if !ids.contains(&adapter.id) && ids.len() < 4 {
                ids.push(adapter.id.clone());
            }
        }
    }
    ids
}

fn readiness_cell(server: &ServerView, style: TextStyle) -> (String, String) {
    if server.ready {
        let text = if server.pilot { "✔ ready, pilot" } else { "✔ ready" };
        (text.to_owned(), style.success(text))
    } else {
        let reason = match &server.status.problem {
            Some(problem) => &problem.reason,
            None => &server.status.readiness.reason,
        };
        let text = format!("✘ {reason}");
        (text.clone(), style.error(&text))
    }
}

fn adapter_cell(server: &ServerView, id: &AdapterId, style: TextStyle) -> (String, String) {
    let Some(adapter) = server.status.adapter(id).filter(|_| server.status.server.is_some()) else {
        return ("·".to_owned(), style.dim("·"));
    };
    let (mark, label) = match adapter.state {
        AdapterState::Verified => ("✔", "verified"),
        AdapterState::Loaded => ("▶", "loaded, not verified"),
        AdapterState::Fetching => ("▶", "fetching"),
        AdapterState::Loading => ("▶", "loading"),
        AdapterState::Pending => ("○", "queued"),
        AdapterState::AwaitingAdmission => ("○", "not admitted yet"),
        AdapterState::Unloading => ("▶", "unloading"),
        AdapterState::UnloadHeld => ("✔", "serving, unload held"),
        AdapterState::Gone => ("·", "unloaded"),
        AdapterState::Unlisted => ("✔", "unlisted"),
        AdapterState::InBothLists => ("✘", "in both lists"),
        AdapterState::SourceChanged => ("✘", "source changed"),
        AdapterState::Failed => ("✘", "failed"),
        AdapterState::ServerDied => ("✘", "crashed the server"),
        AdapterState::Quarantined => ("✘", "quarantined"),
        AdapterState::Rejected => ("✘", "rejected"),
        AdapterState::SourceRefused => ("✘", "source not allowed"),
    };
    let text = format!("{mark} {label}");
    let shown = match mark {
        "✔" => style.success(&text),
        "▶" => style.active(&text),
        "✘" => style.error(&text),
        _ => style.dim(&text),
    };
    (text, shown)
}

/// What the rollout waits for, and the command that a person may want next.
fn next_actions(status: &RolloutStatus, style: TextStyle) -> String {
    let mut lines = Vec::new();
    if !status.message.is_empty() {
        lines.push(style.bold(&status.message));
    }
    // Reasons that the message contains already are not repeated.
    let new = |reason: &&str| !reason.is_empty() && !status.message.contains(*reason);
    for retired in &status.retired {
        lines.extend(Some(retired.reason.as_str()).filter(new).map(|reason| format!("{}: {reason}", retired.id)));
    }
    for rejected in &status.rejected {
        let reason = Some(rejected.reason.as_str()).filter(new);
        lines.extend(reason.map(|reason| style.error(&format!("{}: rejected: {reason}", rejected.id))));
    }
    lines.extend(suggested_command(status).map(|next| format!("next: {}", style.bold(next))));
    lines.iter().flat_map(|line| ["  ", line, "\n"]).collect()
}

/// Suggests a command for the current state. `None` if there is nothing to do.
pub(super) fn suggested_command(status: &RolloutStatus) -> Option<&'static str> {
    let step = status.step.as_ref();
    let pause = step.filter(|step| step.state == StepState::Pausing && status.phase == Phase::Paused);
    let open = pause.and_then(|at| status.steps.get(usize::try_from(at.index).ok()?)?.pause.as_ref());
    match (status.phase, open) {
        (_, Some(pause)) if pause.duration.is_none() => Some("rollora promote, or rollora abort"),
        (Phase::Held, _) => Some("rollora explain"),
        (Phase::RolledBack, _) => Some("list another version, or rollora retry"),
        _ => None,
    }
}

fn recent_events(overview: &Overview, now: Timestamp, style: TextStyle) -> String {
    let mut table = TextTable::default();
    let from = overview.events.len().saturating_sub(MAX_SHOWN_EVENTS);
    for event in overview.events.iter().skip(from) {
        let ago = format!("{} ago", time::format_elapsed(event.at, now));
        let mark = if event.warning { ("!".to_owned(), style.warning("!")) } else { plain_cell(" ") };
        let times = if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() };
        table.push_row([(ago.clone(), style.dim(&ago)), mark, plain_cell(format!("{}{times}", event.message))]);
    }
    table.render("  ")
}
