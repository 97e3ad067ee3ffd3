//! The diagrams of the two machines in `ARCHITECTURE.md` are what their maps say. To write them anew:
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
        Trigger::GateOpened => "every Ready server has it: weight is given",
        Trigger::RoutersProven => "every router has what was written",
        Trigger::PauseElapsed => "the pause is over",
        Trigger::ResidencyLost => "a server has lost it for 10 s: weight 0",
        Trigger::ResidencyRestored => "it is back: so is its weight",
        Trigger::Failed => "its pilot rejects it, or its deadline is over",
        Trigger::Abort => "abort",
        Trigger::Promote => "promote, promote-full",
        Trigger::DesiredChanged => "another adapter is wanted",
        Trigger::Retry => "retry",
    }
}

/// Moves of one cause from several places are one row, or a picture would be lines and nothing else: those that can happen
/// anywhere stand in words below it.
fn traffic_diagram() -> String {
    let mut text = String::from("```mermaid\nstateDiagram-v2\n    [*] --> Nothing\n");
    let anywhere = |by: Trigger| matches!(by, Trigger::DesiredChanged | Trigger::Abort | Trigger::Failed);
    let rows = traffic::TRANSITIONS.iter().filter(|(_, by, _)| !anywhere(*by));
    for (from, by, to) in rows.flat_map(|(from, by, tos)| tos.iter().map(move |to| (*from, *by, *to))) {
        writeln!(text, "    {from:?} --> {to:?}: {}", describe_trigger(by)).unwrap();
    }
    writeln!(text, "    Nothing --> AwaitingResidency: {}", describe_trigger(Trigger::DesiredChanged)).unwrap();
    text.push_str("```\n\nFrom several places:\n\n");
    for by in [Trigger::DesiredChanged, Trigger::Abort, Trigger::Failed] {
        let rows = traffic::TRANSITIONS.iter().filter(|(_, row, _)| *row == by);
        let (mut from, mut to) = (BTreeSet::<TrafficState>::new(), BTreeSet::<TrafficState>::new());
        for (place, _, places) in rows {
            from.insert(*place);
            to.extend(*places);
        }
        let names = |places: BTreeSet<TrafficState>| {
            places.iter().map(|place| format!("`{place:?}`")).collect::<Vec<_>>().join(", ")
        };
        writeln!(text, "- {}: {} → {}", describe_trigger(by), names(from), names(to)).unwrap();
    }
    text
}

/// The states in which nothing was begun are drawn as one: each can become each other, and what follows is the same.
fn retirement_diagram() -> String {
    let name = |place: &retirement::OptionalState| place.map_or("InUse".to_owned(), |state| format!("{state:?}"));
    let names = |places: &[retirement::OptionalState]| places.iter().map(name).collect::<Vec<_>>();
    let mut text = String::from("```mermaid\nstateDiagram-v2\n    [*] --> InUse\n    state Looking {\n");
    let (mut inside, mut aside) = (String::new(), String::new());
    for state in names(retirement::EVALUATING) {
        writeln!(text, "        {state}").unwrap();
    }
    text.push_str("    }\n");
    for (froms, tos, words) in retirement::TRANSITIONS {
        let looking = *froms == retirement::EVALUATING;
        if looking && tos.iter().all(|to| retirement::EVALUATING.contains(to)) {
            writeln!(inside, "- `{}`: {words}", names(tos).join("`, `")).unwrap();
        } else if froms.len() * tos.len() > 4 && !looking {
            let list = |places| format!("`{}`", names(places).join("`, `"));
            writeln!(aside, "- {words}: {} → {}", list(froms), list(tos)).unwrap();
        } else {
            let froms = if looking { vec!["Looking".to_owned()] } else { names(froms) };
            for (from, to) in froms.iter().flat_map(|from| names(tos).into_iter().map(move |to| (from, to))) {
                writeln!(text, "    {from} --> {to}: {words}").unwrap();
            }
        }
    }
    format!(
        "{text}```\n\nWhy it is in one of the states of `Looking`, each of which can follow on each:\n\n{inside}\nFrom several \
        states:\n\n{aside}"
    )
}

fn render() -> String {
    format!(
        "{BEGIN}Traffic, one for every Rollout:\n\n{}\nRetirement, one for every id that lost its weight:\n\n{}{END}",
        traffic_diagram(),
        retirement_diagram()
    )
}

#[test]
fn the_diagrams_of_the_machines_are_what_the_code_does() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has the beginning of the diagrams");
    let (_, after) = rest.split_once(END).expect("the page has the end of the diagrams");
    let fresh = format!("{before}{}{after}", render());
    if std::env::var_os("ROLLORA_DRAW").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert!(page == fresh, "ARCHITECTURE.md is not fresh: ROLLORA_DRAW=1 cargo test -p rollora-plan diagram");
    }
}
