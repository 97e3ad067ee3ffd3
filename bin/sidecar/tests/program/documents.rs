//! Tests that `docs/sidecar.md` names every flag, metric and state.

use crate::testbed::{ProgramTestbed, SidecarCommand};
use rollora_api::sidecar_status::AdapterState;
use std::collections::BTreeSet;

fn read_page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sidecar.md")).unwrap()
}

/// The words of `text` that begin with `prefix`.
fn words_with_prefix(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_separator = |character: char| !(character.is_ascii_alphanumeric() || "-_".contains(character));
    text.split(is_separator)
        .filter(|word| word.starts_with(prefix) && word.chars().any(char::is_alphanumeric))
        .map(str::to_owned)
        .collect()
}

#[test]
fn page_names_every_flag_and_no_other() {
    let (_, help) = SidecarCommand::new().args(["--help"]).run();
    let is_documented = |word: &String| !["--help", "--version"].contains(&word.as_str());
    let flags: BTreeSet<String> = words_with_prefix(&help, "--").into_iter().filter(is_documented).collect();
    assert!(flags.len() > 15, "{flags:?}");
    assert_eq!(words_with_prefix(&read_page(), "--"), flags);
}

#[test]
fn page_names_every_metric() {
    let mut testbed = ProgramTestbed::with_verified(&["v1"]);
    testbed.vllm.configure(|knobs| {
        knobs.failing.insert("v2".to_owned(), (500, "no".to_owned()));
    });
    testbed.update_file(&["v1", "v2"], &[], None);
    testbed.sidecar.wait_for_state("v2", AdapterState::Failed);
    let (_, metrics) = testbed.sidecar.get("/metrics");
    let page = read_page();
    let families = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: Vec<&str> = families.collect();
    assert!(families.len() > 10, "{metrics}");
    for family in families {
        assert!(page.contains(&format!("`{family}")), "{family} is not on the page");
    }
}

#[test]
fn page_names_every_state() {
    use AdapterState::{
        AwaitingAdmission, Failed, Fetching, Gone, InBothLists, Loaded, Loading, Pending, Quarantined, Rejected,
        ServerDied, SourceChanged, SourceRefused, Unlisted, UnloadHeld, Unloading, Verified,
    };
    let next = |state| match state {
        Pending => Some(AwaitingAdmission),
        AwaitingAdmission => Some(Loading),
        Loading => Some(Loaded),
        Loaded => Some(Verified),
        Verified => Some(Failed),
        Failed => Some(ServerDied),
        ServerDied => Some(Quarantined),
        Quarantined => Some(Rejected),
        Rejected => Some(SourceChanged),
        SourceChanged => Some(Unloading),
        Unloading => Some(UnloadHeld),
        UnloadHeld => Some(Gone),
        Gone => Some(Unlisted),
        Unlisted => Some(InBothLists),
        InBothLists => Some(Fetching),
        Fetching => Some(SourceRefused),
        SourceRefused => None,
    };
    let page = read_page();
    for state in std::iter::successors(Some(Pending), |state| next(*state)) {
        assert!(page.contains(&format!("\n| `{state:?}` |")), "{state:?} is not on the page");
    }
}
