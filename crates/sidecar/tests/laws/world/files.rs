//! The adapters file and what the operator wrote beside it: as people write them, and as the sidecar reads them.

use super::{
    IDS, POD, World, id, source,
    steps::{Entries, Listing},
};
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile},
    names::AdapterId,
    operator_directives::OperatorDirectives,
};
use rollora_sidecar::{in_force::Texts, status::status};

/// What a person, a half-written file, or an operator of another version may leave there, and a folder without it.
pub(super) const BAD_FILES: [(Result<&str, &str>, Option<&str>); 5] = [
    (Ok(""), None),
    (Ok("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: a\n      sour"), None),
    (Ok("vLLMLoRAConfig: ["), None),
    (Ok("vLLMLoRAConfig: {}\n"), Some("serving: 1\n")),
    (Err("file: there is no such file"), None),
];

impl World {
    pub(super) fn desire(&mut self, entries: &Entries, key: Option<&OperatorDirectives>) {
        let mut file = AdaptersFile::default();
        for (name, (listing, other)) in IDS.iter().zip(entries) {
            let entry = AdapterEntry { id: id(name), source: source(name, *other), base_model: None, required: false };
            if matches!(listing, Listing::Exist | Listing::Both) {
                file.ensure_exist.push(entry.clone());
            }
            if matches!(listing, Listing::NotExist | Listing::Both) {
                file.ensure_not_exist.push(entry);
            }
        }
        let user = file_text(&file);
        let texts = Texts { user: Ok(user), operator: key.map(|key| Ok(key.to_yaml())) };
        let had_a_key = self.desired.as_ref().is_some_and(|desired| desired.directives.is_some());
        let before = self.desired.clone();
        self.take(texts);
        let desired = self.desired.as_ref().expect("a good file");
        if had_a_key && key.is_none() && self.waits_until.is_some() {
            assert_eq!(self.desired, before, "the key has vanished");
            return;
        }
        assert_eq!(desired.file.ensure_exist, file.ensure_exist);
        assert_eq!(desired.file.ensure_not_exist, file.ensure_not_exist);
    }

    /// The file and what the operator wrote beside it are read, as the program reads them.
    pub(super) fn take(&mut self, texts: Texts) {
        let before = self.in_force.desired().borrow().clone();
        self.in_force.take(texts.read(&"file", "configmap.yaml"), self.instant());
        self.texts = Some(texts);
        self.waits_until = self.in_force.waits_until(self.instant());
        let after = self.in_force.desired().borrow().clone();
        if let Some(desired) = after.as_ref().filter(|after| before.as_ref() != Some(after)) {
            self.memory.desire(desired, POD, self.now);
        }
        self.memory.file_error.clone_from(&self.in_force.error().borrow());
        self.desired = after.as_deref().cloned();
    }

    /// Nothing but the error that is told changes by a file that cannot be used.
    pub(super) fn bad_file(&mut self, which: usize) {
        let (user, operator) = BAD_FILES[which];
        let before = self.in_force.desired().borrow().clone();
        let adapters = self.memory.adapters.clone();
        let user = user.map(str::to_owned).map_err(str::to_owned);
        self.take(Texts { user, operator: operator.map(|text| Ok(text.to_owned())) });
        assert_eq!(*self.in_force.desired().borrow(), before);
        assert_eq!(self.memory.adapters, adapters);
        assert!(status(&self.memory, self.now).config.error.is_some(), "nobody is told");
    }
}

pub(super) fn find<'a>(entries: &'a [AdapterEntry], id: &AdapterId) -> Option<&'a AdapterEntry> {
    entries.iter().find(|entry| entry.id == *id)
}

/// The file as a person would have written it.
fn file_text(file: &AdaptersFile) -> String {
    let list = |entries: &[AdapterEntry]| -> String {
        let entry = |entry: &AdapterEntry| format!("\n    - id: {}\n      source: {}", entry.id, entry.source);
        if entries.is_empty() { " []".to_owned() } else { entries.iter().map(entry).collect() }
    };
    let (exist, not_exist) = (list(&file.ensure_exist), list(&file.ensure_not_exist));
    format!("vLLMLoRAConfig:\n  ensureExist:\n    models:{exist}\n  ensureNotExist:\n    models:{not_exist}\n")
}
