//! The adapters file and the directives: written as text, and read as the program reads them.

use super::{
    IDS, POD, Simulation, id, source,
    steps::{Entries, EntryMembership},
};
use rollora_api::{
    adapters::{AdapterEntry, AdaptersFile},
    names::AdapterId,
    operator_directives::OperatorDirectives,
};
use rollora_sidecar::{last_good::ConfigTexts, status::status};

/// Invalid content: half-written or wrong files, directives of another operator version, and a missing file.
pub(super) const BAD_FILES: [(Result<&str, &str>, Option<&str>); 5] = [
    (Ok(""), None),
    (Ok("vLLMLoRAConfig:\n  ensureExist:\n    models:\n    - id: a\n      sour"), None),
    (Ok("vLLMLoRAConfig: ["), None),
    (Ok("vLLMLoRAConfig: {}\n"), Some("serving: 1\n")),
    (Err("file: there is no such file"), None),
];

impl Simulation {
    pub(super) fn set_desired(&mut self, entries: &Entries, directives: Option<&OperatorDirectives>) {
        let mut file = AdaptersFile::default();
        for (name, (membership, other)) in IDS.iter().zip(entries) {
            let entry = AdapterEntry { id: id(name), source: source(name, *other), base_model: None, required: false };
            if matches!(membership, EntryMembership::EnsureExist | EntryMembership::Both) {
                file.ensure_exist.push(entry.clone());
            }
            if matches!(membership, EntryMembership::EnsureNotExist | EntryMembership::Both) {
                file.ensure_not_exist.push(entry);
            }
        }
        let user = file_text(&file);
        let texts = ConfigTexts { user: Ok(user), operator: directives.map(|directives| Ok(directives.to_yaml())) };
        let had_directives = self.desired.as_ref().is_some_and(|desired| desired.directives.is_some());
        let before = self.desired.clone();
        self.apply_texts(texts);
        let desired = self.desired.as_ref().expect("no valid file is active");
        if had_directives && directives.is_none() && self.missing_directives_deadline.is_some() {
            assert_eq!(self.desired, before, "vanished directives must stay active");
            return;
        }
        assert_eq!(desired.file.ensure_exist, file.ensure_exist);
        assert_eq!(desired.file.ensure_not_exist, file.ensure_not_exist);
    }

    /// Reads the file and the directives as the program does.
    pub(super) fn apply_texts(&mut self, texts: ConfigTexts) {
        let before = self.last_good.desired().borrow().clone();
        self.last_good.update(texts.parse(&"file", "configmap.yaml"), self.instant());
        self.texts = Some(texts);
        self.missing_directives_deadline = self.last_good.missing_directives_deadline(self.instant());
        let after = self.last_good.desired().borrow().clone();
        if let Some(desired) = after.as_ref().filter(|after| before.as_ref() != Some(after)) {
            self.state.set_desired(desired, POD, self.now);
        }
        self.state.file_error.clone_from(&self.last_good.error().borrow());
        self.desired = after.as_deref().cloned();
    }

    /// Writes invalid content, which must change nothing but the reported error.
    pub(super) fn write_bad_file(&mut self, index: usize) {
        let (user, operator) = BAD_FILES[index];
        let before = self.last_good.desired().borrow().clone();
        let adapters = self.state.adapters.clone();
        let user = user.map(str::to_owned).map_err(str::to_owned);
        self.apply_texts(ConfigTexts { user, operator: operator.map(|text| Ok(text.to_owned())) });
        assert_eq!(*self.last_good.desired().borrow(), before);
        assert_eq!(self.state.adapters, adapters);
        assert!(status(&self.state, self.now).config.error.is_some(), "the error is not reported");
    }
}

pub(super) fn find_entry<'a>(entries: &'a [AdapterEntry], id: &AdapterId) -> Option<&'a AdapterEntry> {
    entries.iter().find(|entry| entry.id == *id)
}

/// Returns the text of an adapters file.
fn file_text(file: &AdaptersFile) -> String {
    let list = |entries: &[AdapterEntry]| -> String {
        let entry = |entry: &AdapterEntry| format!("\n    - id: {}\n      source: {}", entry.id, entry.source);
        if entries.is_empty() { " []".to_owned() } else { entries.iter().map(entry).collect() }
    };
    let (exist, not_exist) = (list(&file.ensure_exist), list(&file.ensure_not_exist));
    format!("vLLMLoRAConfig:\n  ensureExist:\n    models:{exist}\n  ensureNotExist:\n    models:{not_exist}\n")
}
