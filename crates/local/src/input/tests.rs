use super::*;

fn poll(watched: &mut WatchedFile, path: &Path) -> Option<Result<String, String>> {
    watched.poll(path)
}

#[test]
fn file_is_accepted_after_two_equal_polls() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = WatchedFile::default();
    fs::write(&path, "one").unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    assert_eq!(poll(&mut watched, &path), Some(Ok("one".to_owned())));
    assert_eq!(poll(&mut watched, &path), None);

    // An editor that is still writing.
    fs::write(&path, "t").unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    fs::write(&path, "two").unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    assert_eq!(poll(&mut watched, &path), Some(Ok("two".to_owned())));
}

#[test]
fn short_absence_of_a_file_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = WatchedFile::default();
    fs::write(&path, "one").unwrap();
    assert!(poll(&mut watched, &path).is_none() && poll(&mut watched, &path).is_some());
    fs::remove_file(&path).unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    fs::write(&path, "one").unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    assert_eq!(poll(&mut watched, &path), None);
}

#[test]
fn missing_file_is_reported_once_and_accepted_when_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = WatchedFile::default();
    assert_eq!(poll(&mut watched, &path), None);
    let error = poll(&mut watched, &path).unwrap().unwrap_err();
    assert!(error.ends_with("file.yaml: there is no such file: create it"), "{error}");
    assert_eq!(poll(&mut watched, &path), None);
    fs::write(&path, "back").unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    assert_eq!(poll(&mut watched, &path), Some(Ok("back".to_owned())));
}

#[test]
fn changed_target_of_a_link_is_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    for (name, text) in [("1", "one"), ("2", "two")] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let point = |name: &str| {
        drop(fs::remove_file(&path));
        std::os::unix::fs::symlink(folder.path().join(name), &path).unwrap();
    };
    let mut watched = WatchedFile::default();
    for (name, text) in [("1", "one"), ("2", "two")] {
        point(name);
        assert_eq!(poll(&mut watched, &path), None);
        assert_eq!(poll(&mut watched, &path), Some(Ok(text.to_owned())));
    }
}

#[test]
fn text_that_is_not_utf8_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(read_text(&path).unwrap_err().ends_with("file.yaml: not UTF-8: save it as UTF-8 text"));
}

mod store {
    use super::super::*;
    use crate::{snapshot::tests::ROLLOUT_FILE, state::StateFolder};

    fn adapters(id: &str) -> String {
        format!("vLLMLoRAConfig: {{ ensureExist: {{ models: [{{ id: {id}, source: /a }}] }} }}\n")
    }

    fn start(folder: &Path) -> LocalDocumentStore {
        let inputs = InputFiles { rollout: folder.join("rollout.yaml"), adapters: folder.join("adapters.yaml") };
        fs::write(&inputs.rollout, ROLLOUT_FILE).unwrap();
        fs::write(&inputs.adapters, adapters("alias-v1")).unwrap();
        LocalDocumentStore::open(StateFolder::open(&folder.join("state")).unwrap(), inputs).unwrap()
    }

    fn active_adapter(store: &LocalDocumentStore) -> String {
        store.snapshot().adapters.file.ensure_exist[0].id.to_string()
    }

    #[tokio::test]
    async fn changes_and_problems_of_both_files_are_applied() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        let (stop, mut changes) = (CancellationToken::new(), store.subscribe_overview());
        let watching = watch_files(store.clone(), stop.clone());
        let editing = async {
            fs::write(&store.inputs().adapters, adapters("alias-v2")).unwrap();
            while active_adapter(&store) != "alias-v2" {
                changes.changed().await.unwrap();
            }
            fs::write(&store.inputs().rollout, "kind: Rollout\n").unwrap();
            fs::write(&store.inputs().adapters, "[").unwrap();
            while store.snapshot().problems.rollout.is_none() || store.snapshot().problems.adapters.is_none() {
                changes.changed().await.unwrap();
            }
            assert_eq!(active_adapter(&store), "alias-v2");
            fs::write(&store.inputs().rollout, format!("{ROLLOUT_FILE}  paused: true\n")).unwrap();
            fs::write(&store.inputs().adapters, adapters("alias-v3")).unwrap();
            while active_adapter(&store) != "alias-v3" || !store.snapshot().rollout.spec.paused {
                changes.changed().await.unwrap();
            }
            assert_eq!(store.snapshot().problems, crate::snapshot::FileProblems::default());
            stop.cancel();
        };
        tokio::join!(watching, editing);
    }

    #[tokio::test]
    async fn reload_applies_the_current_file_if_it_is_valid() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        fs::write(&store.inputs().adapters, adapters("alias-v2")).unwrap();
        reload_adapters(&store).await;
        assert_eq!(active_adapter(&store), "alias-v2");
        fs::write(&store.inputs().adapters, "[").unwrap();
        reload_adapters(&store).await;
        assert_eq!(active_adapter(&store), "alias-v2");
    }
}
