//! Renders an [`Overview`] as text: pure functions of the overview and the time.

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

/// Draws `screen` over the previous one: moves the cursor to the top left corner, clears each line after its text, and
/// clears everything below. This does not flicker, and keeps what was on the terminal before in its scrollback.
pub(crate) fn redraw(screen: &str) -> String {
    format!("\x1b[H{}\x1b[J", screen.replace('\n', "\x1b[K\n"))
}

/// A table with a header and one row, for `rollora get`.
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

/// One line for logs: phase, step, weights, and what the rollout waits for.
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

/// Confirmation of a submitted intent, with the revision and step that it refers to.
pub(crate) fn intent_submitted(intent: &Intent, status: &RolloutStatus) -> String {
    let of = match &status.revision.desired {
        Some(desired) => format!(" of {desired}"),
        None => String::new(),
    };
    let step = match (intent.verb, &status.step) {
        (IntentKind::Promote | IntentKind::PromoteFull, Some(step)) => {
            format!(", {}", steps::describe(status, step.index))
        }
        _ => String::new(),
    };
    format!("submitted: {} (revision {}{of}{step})\n", intent.verb.cli_name(), intent.revision)
}

/// The desired weights, as in `v1 90, v2 10`; `-` if there are none.
fn format_weights(status: &RolloutStatus) -> String {
    let weights = &status.weights.desired;
    if weights.is_empty() {
        return "-".to_owned();
    }
    weights.iter().map(|target| format!("{} {}", target.id, target.weight)).collect::<Vec<_>>().join(", ")
}

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
