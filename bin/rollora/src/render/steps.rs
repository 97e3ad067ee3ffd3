//! The steps of a rollout, and its progress through them.

use super::{
    style::{TextStyle, TextTable, plain_cell},
    time,
};
use jiff::Timestamp;
use rollora_api::rollout::{
    RolloutStatus,
    spec::{Pause, Step},
    status::{Phase, StepState, StepStatus},
};

/// Progress of one step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StepMark {
    Done,
    Current,
    Upcoming,
    Skipped,
}

/// Position among the steps, as in `3/5`; `-` if there are no steps.
pub(super) fn step_position(status: &RolloutStatus) -> String {
    let total = status.steps.len();
    match &status.step {
        Some(step) if total > 0 => format!("{}/{total}", (step_index(step) + 1).min(total)),
        _ => "-".to_owned(),
    }
}

/// Describes a step, as in `step 3: pause until promoted`.
pub(super) fn describe(status: &RolloutStatus, step: i32) -> String {
    match usize::try_from(step).ok().and_then(|index| status.steps.get(index)) {
        Some(found) => format!("step {}: {}", step + 1, step_text(found, status.total_weight)),
        None => "after the last step".to_owned(),
    }
}

/// The steps, one per line.
pub(super) fn step_table(status: &RolloutStatus, now: Timestamp, style: TextStyle) -> String {
    let mut table = TextTable::default();
    for (index, step) in status.steps.iter().enumerate() {
        let mark = step_mark(status, index);
        let text = step_text(step, status.total_weight);
        let (symbol, shown) = match mark {
            StepMark::Done => (style.success("✔"), plain_cell(text)),
            StepMark::Current => (style.active("▶"), (text.clone(), style.bold(&text))),
            StepMark::Upcoming => ("○".to_owned(), (text.clone(), style.dim(&text))),
            StepMark::Skipped => (style.error("✘"), (text.clone(), style.dim(&text))),
        };
        let note = match &status.step {
            Some(at) if mark == StepMark::Current => time_note(at, step, now),
            _ => String::new(),
        };
        table.push_row([("✔".to_owned(), symbol), shown, plain_cell(note)]);
    }
    table.render("  ")
}

fn step_mark(status: &RolloutStatus, step: usize) -> StepMark {
    let rolled_back = matches!(status.phase, Phase::RollingBack | Phase::RolledBack);
    let Some(at) = &status.step else {
        return if status.phase == Phase::Succeeded { StepMark::Done } else { StepMark::Upcoming };
    };
    match step.cmp(&step_index(at)) {
        std::cmp::Ordering::Less => StepMark::Done,
        _ if status.phase == Phase::Succeeded => StepMark::Done,
        _ if rolled_back => StepMark::Skipped,
        std::cmp::Ordering::Equal if at.state == StepState::Done => StepMark::Done,
        std::cmp::Ordering::Equal => StepMark::Current,
        std::cmp::Ordering::Greater => StepMark::Upcoming,
    }
}

/// What the current step waits for, with its elapsed or remaining time.
fn time_note(at: &StepStatus, step: &Step, now: Timestamp) -> String {
    let elapsed = time::format_elapsed(at.entered_at, now);
    match (at.state, step.pause.as_ref().and_then(|pause| pause.duration)) {
        (StepState::Pausing, Some(duration)) => {
            let length = i64::try_from(duration.get().as_secs()).unwrap_or(i64::MAX);
            let left = length.saturating_sub(now.as_second() - at.entered_at.as_second());
            format!("{} left", time::format_seconds(left))
        }
        (StepState::Pausing, None) => format!("for {elapsed}: rollora promote"),
        (StepState::AwaitingResidency, _) => format!("servers load the adapter, {elapsed}"),
        (StepState::AwaitingRouters, _) => format!("weights take effect, {elapsed}"),
        (StepState::Held, _) => format!("held, {elapsed}"),
        (StepState::Done, _) => String::new(),
    }
}

fn step_text(step: &Step, total: i32) -> String {
    match (step.set_weight, &step.pause) {
        (Some(weight), _) if total == 100 => format!("{weight} %"),
        (Some(weight), _) => format!("{weight} of {total}"),
        (None, Some(Pause { duration: Some(duration) })) => format!("pause {duration}"),
        (None, _) => "pause until promoted".to_owned(),
    }
}

fn step_index(step: &StepStatus) -> usize {
    usize::try_from(step.index).unwrap_or(0)
}
