//! Generates the diagrams of `ARCHITECTURE.md` from the transition tables of the two machines. To regenerate them:
//! `ROLLORA_DRAW=1 cargo test -p rollora-plan diagram`.

use crate::{
    retirement::transitions as retirement,
    traffic::transitions::{self as traffic, TrafficState, Trigger},
};
use std::{collections::BTreeSet, fmt::Write as _, path::PathBuf};

const BEGIN: &str = "<!-- the machines, from crates/plan/src/diagram.rs -->\n";
const END: &str = "<!-- end of the machines -->\n";

fn describe_trigger(by: Trigger) -> &'static str {
    match by {
        Trigger::GateOpened => "every Ready server has the adapter: it gets weight",
        Trigger::RoutersProven => "every router applies the written weights",
        Trigger::PauseElapsed => "the pause has elapsed",
        Trigger::ResidencyLost => "a Ready server has lacked the adapter for 10 s: weight 0",
        Trigger::ResidencyRestored => "the adapter is resident again: its weight is restored",
        Trigger::Failed => "the pilot rejects it, or its deadline is exceeded",
        Trigger::Abort => "abort",
        Trigger::Promote => "promote, promote-full",
        Trigger::DesiredChanged => "another adapter is desired",
        Trigger::Retry => "retry",
    }
}

/// Draws the transitions of the traffic machine. Those that are possible from most states are listed below the diagram:
/// as arrows they would hide the others.
fn traffic_diagram() -> String {
    let mut text = String::from("```mermaid\nstateDiagram-v2\n    [*] --> Initial\n");
    let anywhere = |by: Trigger| matches!(by, Trigger::DesiredChanged | Trigger::Abort | Trigger::Failed);
    let rows = traffic::TRANSITIONS.iter().filter(|(_, by, _)| !anywhere(*by));
    for (from, by, to) in rows.flat_map(|(from, by, tos)| tos.iter().map(move |to| (*from, *by, *to))) {
        writeln!(text, "    {from:?} --> {to:?}: {}", describe_trigger(by)).unwrap();
    }
    writeln!(text, "    Initial --> AwaitingResidency: {}", describe_trigger(Trigger::DesiredChanged)).unwrap();
    text.push_str("```\n\nFrom several states:\n\n");
    for by in [Trigger::DesiredChanged, Trigger::Abort, Trigger::Failed] {
        let rows = traffic::TRANSITIONS.iter().filter(|(_, row, _)| *row == by);
        let (mut from, mut to) = (BTreeSet::<TrafficState>::new(), BTreeSet::<TrafficState>::new());
        for (state, _, states) in rows {
            from.insert(*state);
            to.extend(*states);
        }
        let names = |states: BTreeSet<TrafficState>| {
            states.iter().map(|state| format!("`{state:?}`")).collect::<Vec<_>>().join(", ")
        };
        writeln!(text, "- {}: {} → {}", describe_trigger(by), names(from), names(to)).unwrap();
    }
    text
}

/// Draws the transitions of the retirement machine. The states in which nothing has begun are drawn as one group: each
/// can follow each other, and the transitions out of them are the same.
fn retirement_diagram() -> String {
    let name = |state: &retirement::OptionalState| state.map_or("InUse".to_owned(), |state| format!("{state:?}"));
    let names = |states: &[retirement::OptionalState]| states.iter().map(name).collect::<Vec<_>>();
    let mut text = String::from("```mermaid\nstateDiagram-v2\n    [*] --> InUse\n    state Evaluating {\n");
    let (mut inside, mut from_several) = (String::new(), String::new());
    for state in names(retirement::EVALUATING) {
        writeln!(text, "        {state}").unwrap();
    }
    text.push_str("    }\n");
    for (froms, tos, cause) in retirement::TRANSITIONS {
        let evaluating = *froms == retirement::EVALUATING;
        if evaluating && tos.iter().all(|to| retirement::EVALUATING.contains(to)) {
            writeln!(inside, "- `{}`: {cause}", names(tos).join("`, `")).unwrap();
        } else if froms.len() * tos.len() > 4 && !evaluating {
            let list = |states| format!("`{}`", names(states).join("`, `"));
            writeln!(from_several, "- {cause}: {} → {}", list(froms), list(tos)).unwrap();
        } else {
            let froms = if evaluating { vec!["Evaluating".to_owned()] } else { names(froms) };
            for (from, to) in froms.iter().flat_map(|from| names(tos).into_iter().map(move |to| (from, to))) {
                writeln!(text, "    {from} --> {to}: {cause}").unwrap();
            }
        }
    }
    format!(
        "{text}```\n\nThe states of `Evaluating`, each of which can follow each other, and their causes:\n\n{inside}\n\
        From several states:\n\n{from_several}"
    )
}

fn render() -> String {
    format!(
        "{BEGIN}Traffic, one machine per Rollout:\n\n{}\n\
        Retirement, one machine per id that lost its weight:\n\n{}{END}",
        traffic_diagram(),
        retirement_diagram()
    )
}

#[test]
fn diagrams_match_the_transition_tables() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) =
        page.split_once(BEGIN).expect("ARCHITECTURE.md has no marker for the beginning of the diagrams");
    let (_, after) = rest.split_once(END).expect("ARCHITECTURE.md has no marker for the end of the diagrams");
    let fresh = format!("{before}{}{after}", render());
    if std::env::var_os("ROLLORA_DRAW").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert!(
            page == fresh,
            "the diagrams in ARCHITECTURE.md are stale: run ROLLORA_DRAW=1 cargo test -p rollora-plan diagram"
        );
    }
}
