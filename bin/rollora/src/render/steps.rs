//! The steps of a rollout, and where it stands in them.

use super::{
    style::{Style, Table, plain},
    time,
};
use jiff::Timestamp;
use rollora_api::rollout::{
    RolloutStatus,
    spec::{Pause, Step},
    status::{Phase, StepState, StepStatus},
};

/// How far one step is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Done,
    Now,
    ToCome,
    NeverReached,
}

/// `3/5`; `-` where there are none.
pub(super) fn position(status: &RolloutStatus) -> String {
    let total = status.steps.len();
    match &status.step {
        Some(step) if total > 0 => format!("{}/{total}", (index(step) + 1).min(total)),
        _ => "-".to_owned(),
    }
}

/// `step 3: pause until promoted`.
pub(super) fn describe(status: &RolloutStatus, step: i32) -> String {
    match usize::try_from(step).ok().and_then(|index| status.steps.get(index)) {
        Some(found) => format!("step {}: {}", step + 1, words(found, status.total_weight)),
        None => "after the last step".to_owned(),
    }
}

/// The steps, a line each.
pub(super) fn lines(status: &RolloutStatus, now: Timestamp, style: Style) -> String {
    let mut table = Table::default();
    for (index, step) in status.steps.iter().enumerate() {
        let mark = mark(status, index);
        let said = words(step, status.total_weight);
        let (symbol, shown) = match mark {
            Mark::Done => (style.good("✔"), plain(said)),
            Mark::Now => (style.busy("▶"), (said.clone(), style.bold(&said))),
            Mark::ToCome => ("○".to_owned(), (said.clone(), style.dim(&said))),
            Mark::NeverReached => (style.bad("✘"), (said.clone(), style.dim(&said))),
        };
        let note = match &status.step {
            Some(at) if mark == Mark::Now => note(at, step, now),
            _ => String::new(),
        };
        table.row([("✔".to_owned(), symbol), shown, plain(note)]);
    }
    table.lines("  ")
}

fn mark(status: &RolloutStatus, step: usize) -> Mark {
    let given_up = matches!(status.phase, Phase::RollingBack | Phase::RolledBack);
    let Some(at) = &status.step else {
        return if status.phase == Phase::Succeeded { Mark::Done } else { Mark::ToCome };
    };
    match step.cmp(&index(at)) {
        std::cmp::Ordering::Less => Mark::Done,
        _ if status.phase == Phase::Succeeded => Mark::Done,
        _ if given_up => Mark::NeverReached,
        std::cmp::Ordering::Equal if at.state == StepState::Done => Mark::Done,
        std::cmp::Ordering::Equal => Mark::Now,
        std::cmp::Ordering::Greater => Mark::ToCome,
    }
}

/// What the step under way is at, and how long it takes yet.
fn note(at: &StepStatus, step: &Step, now: Timestamp) -> String {
    let so_far = time::span(at.entered_at, now);
    match (at.state, step.pause.as_ref().and_then(|pause| pause.duration)) {
        (StepState::Pausing, Some(duration)) => {
            let length = i64::try_from(duration.get().as_secs()).unwrap_or(i64::MAX);
            let left = length.saturating_sub(now.as_second() - at.entered_at.as_second());
            format!("{} left", time::seconds(left))
        }
        (StepState::Pausing, None) => format!("for {so_far}: rollora promote"),
        (StepState::AwaitingResidency, _) => format!("servers load the adapter, {so_far}"),
        (StepState::AwaitingRouters, _) => format!("weights take effect, {so_far}"),
        (StepState::Held, _) => format!("held, {so_far}"),
        (StepState::Done, _) => String::new(),
    }
}

fn words(step: &Step, total: i32) -> String {
    match (step.set_weight, &step.pause) {
        (Some(weight), _) if total == 100 => format!("{weight} %"),
        (Some(weight), _) => format!("{weight} of {total}"),
        (None, Some(Pause { duration: Some(duration) })) => format!("pause {duration}"),
        (None, _) => "pause until promoted".to_owned(),
    }
}

fn index(step: &StepStatus) -> usize {
    usize::try_from(step.index).unwrap_or(0)
}
