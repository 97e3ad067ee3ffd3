//! `docs/sidecar.md` names everything that there is.

use crate::testbed::{ProgramTestbed, SidecarCommand};
use rollora_api::sidecar_status::AdapterState;
use std::collections::BTreeSet;

fn read_page() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/sidecar.md")).unwrap()
}

/// The words of a text that begin like this.
fn words_with_prefix(text: &str, start: &str) -> BTreeSet<String> {
    let plain = |character: char| !(character.is_ascii_alphanumeric() || "-_".contains(character));
    text.split(plain)
        .filter(|word| word.starts_with(start) && word.chars().any(char::is_alphanumeric))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_page_names_every_flag_and_no_other() {
    let (_, help) = SidecarCommand::new().args(["--help"]).run();
    let ours = |word: &String| !["--help", "--version"].contains(&word.as_str());
    let flags: BTreeSet<String> = words_with_prefix(&help, "--").into_iter().filter(ours).collect();
    assert!(flags.len() > 15, "{flags:?}");
    assert_eq!(words_with_prefix(&read_page(), "--"), flags);
}

#[test]
fn the_page_names_every_metric() {
    let mut bed = ProgramTestbed::with_verified(&["v1"]);
    bed.vllm.configure(|knobs| {
        knobs.failing.insert("v2".to_owned(), (500, "no".to_owned()));
    });
    bed.update_file(&["v1", "v2"], &[], None);
    bed.sidecar.wait_for_state("v2", AdapterState::Failed);
    let (_, told) = bed.sidecar.get("/metrics");
    let page = read_page();
    let families = told.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let families: Vec<&str> = families.collect();
    assert!(families.len() > 10, "{told}");
    for family in families {
        assert!(page.contains(&format!("`{family}")), "{family} is not on the page");
    }
}

#[test]
fn the_page_names_every_state() {
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
