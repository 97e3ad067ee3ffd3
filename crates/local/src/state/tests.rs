use super::*;
use proptest::prelude::*;
use std::{fs::Permissions, os::unix::fs::PermissionsExt};

fn open_folder() -> (tempfile::TempDir, StateFolder) {
    let parent = tempfile::tempdir().unwrap();
    let folder = StateFolder::open(&parent.path().join("state")).unwrap();
    (parent, folder)
}

#[test]
fn document_is_read_as_it_was_written() {
    let (_parent, folder) = open_folder();
    assert_eq!(folder.read::<Vec<u8>>("numbers.json").unwrap(), None);
    folder.write("numbers.json", &[1, 2, 3]).unwrap();
    assert_eq!(folder.read::<Vec<u8>>("numbers.json").unwrap(), Some(vec![1, 2, 3]));
}

#[test]
fn second_process_is_refused_with_the_id_of_the_first() {
    let (parent, _folder) = open_folder();
    let refused = StateFolder::open(&parent.path().join("state")).unwrap_err().to_string();
    assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
    assert!(refused.contains("give this one its own --state"), "{refused}");
}

#[test]
fn folder_can_be_opened_again_after_its_holder_has_ended() {
    let (parent, folder) = open_folder();
    drop(folder);
    StateFolder::open(&parent.path().join("state")).unwrap();
}

#[test]
fn damaged_document_is_reported_with_its_line() {
    let (_parent, folder) = open_folder();
    fs::write(folder.document_path("numbers.json"), "[1,\n2,\nx]").unwrap();
    let error = folder.read::<Vec<u8>>("numbers.json").unwrap_err().to_string();
    assert!(error.contains("numbers.json line 3"), "{error}");
    assert!(error.contains("move the file away"), "{error}");
}

#[test]
fn only_the_owner_can_access_the_folder_and_its_documents() {
    let (_parent, folder) = open_folder();
    folder.write("numbers.json", &[1]).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path), 0o700);
    assert_eq!(mode(&folder.document_path("numbers.json")), 0o600);
}

#[test]
fn replacing_keeps_permissions_and_follows_links() {
    let parent = tempfile::tempdir().unwrap();
    let (file, link) = (parent.path().join("file"), parent.path().join("link"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    replace_atomically(&link, b"new").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn failed_write_is_reported_as_not_written() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("gone").join("file");
    assert!(matches!(replace_atomically(&file, b"new"), Err(WriteError::NotWritten { .. })));
}

proptest! {
    /// A process killed in the middle of a write leaves the old document and a temporary file cut anywhere.
    #[test]
    fn kill_during_a_write_leaves_the_old_document(
        old in proptest::collection::vec(any::<u32>(), 0..20),
        new in proptest::collection::vec(any::<u32>(), 0..20),
        cut in any::<prop::sample::Index>(),
    ) {
        let (parent, folder) = open_folder();
        folder.write("numbers.json", &old).unwrap();
        let full_text = serde_json::to_vec_pretty(&new).unwrap();
        let temporary = temporary_path(&folder.document_path("numbers.json"));
        fs::write(&temporary, &full_text[..cut.index(full_text.len())]).unwrap();
        drop(folder);

        let folder = StateFolder::open(&parent.path().join("state")).unwrap();
        prop_assert!(!temporary.exists());
        prop_assert_eq!(folder.read::<Vec<u32>>("numbers.json").unwrap(), Some(old));
        folder.write("numbers.json", &new).unwrap();
        prop_assert_eq!(folder.read::<Vec<u32>>("numbers.json").unwrap(), Some(new));
    }
}
