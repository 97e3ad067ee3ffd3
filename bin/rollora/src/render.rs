//! What people are shown, as text: pure over an [`Overview`] and the time.

mod explain;
mod status;
mod steps;
mod style;
#[cfg(test)]
mod tests;
mod time;

pub(crate) use explain::explain;
pub(crate) use status::status;
pub(crate) use style::TextStyle;

use rollora_api::rollout::{Intent, IntentKind, RolloutStatus, status::Phase};
use rollora_local::Overview;
use style::{TextTable, plain_cell};

/// Draws `screen` over the last one: the cursor goes home, each line is cleared behind its text, and what is below is
/// cleared. Nothing flickers, and what was on the terminal before stays in its history.
pub(crate) fn redraw(screen: &str) -> String {
    format!("\x1b[H{}\x1b[J", screen.replace('\n', "\x1b[K\n"))
}

/// A header and one line.
pub(crate) fn summary(overview: &Overview) -> String {
    let rollout = &overview.rollout;
    let status = rollout.status.clone().unwrap_or_default();
    let id = |id: &Option<_>| id.as_ref().map_or("-".to_owned(), ToString::to_string);
    let cells = [
        ("NAME", rollout.metadata.name.clone()),
        ("MODEL", rollout.spec.model.to_string()),
        ("PHASE", format!("{:?}", status.phase)),
        ("STEP", steps::step_position(&status)),
        ("WEIGHT", format_weights(&status)),
        ("STABLE", id(&status.revision.stable)),
        ("DESIRED", id(&status.revision.desired)),
    ];
    let mut table = TextTable::default();
    table.push_row(cells.iter().map(|(title, _)| plain_cell(*title)));
    table.push_row(cells.iter().map(|(_, cell)| plain_cell(cell.clone())));
    table.render("")
}

/// One line for logs: where it stands and what it waits for.
pub(crate) fn progress_line(overview: &Overview) -> String {
    let status = overview.rollout.status.clone().unwrap_or_default();
    let mut line = format!("{}: {}", overview.rollout.metadata.name, phase_name(status.phase));
    for part in [steps::step_position(&status), format_weights(&status), status.message.clone()] {
        if !part.is_empty() && part != "-" {
            line.push_str("  ");
            line.push_str(&part);
        }
    }
    line.push('\n');
    line
}

/// What was asked, and of what.
pub(crate) fn intent_submitted(intent: &Intent, seen: &RolloutStatus) -> String {
    let of = match &seen.revision.desired {
        Some(desired) => format!(" of {desired}"),
        None => String::new(),
    };
    let step = match (intent.verb, &seen.step) {
        (IntentKind::Promote | IntentKind::PromoteFull, Some(step)) => {
            format!(", {}", steps::describe(seen, step.index))
        }
        _ => String::new(),
    };
    format!("asked: {} (revision {}{of}{step})\n", intent.verb.cli_name(), intent.revision)
}

/// `stable 90, new 10`.
fn format_weights(status: &RolloutStatus) -> String {
    let weights = &status.weights.desired;
    if weights.is_empty() {
        return "-".to_owned();
    }
    weights.iter().map(|target| format!("{} {}", target.id, target.weight)).collect::<Vec<_>>().join(", ")
}

/// The phase in words.
fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Progressing => "progressing",
        Phase::Paused => "paused",
        Phase::Held => "held",
        Phase::RollingBack => "rolling back",
        Phase::RolledBack => "rolled back",
        Phase::Succeeded => "succeeded",
        Phase::Invalid => "invalid",
    }
}
