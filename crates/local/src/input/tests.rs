use super::*;

fn poll(watched: &mut WatchedFile, path: &Path) -> Option<Result<String, String>> {
    watched.poll(path)
}

#[test]
fn a_file_is_taken_once_two_looks_found_the_same() {
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
fn a_file_that_is_away_for_a_moment_was_never_away() {
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
fn a_file_that_is_gone_is_said_once_and_taken_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = WatchedFile::default();
    assert_eq!(poll(&mut watched, &path), None);
    let said = poll(&mut watched, &path).unwrap().unwrap_err();
    assert!(said.ends_with("file.yaml: there is no such file: put it there"), "{said}");
    assert_eq!(poll(&mut watched, &path), None);
    fs::write(&path, "back").unwrap();
    assert_eq!(poll(&mut watched, &path), None);
    assert_eq!(poll(&mut watched, &path), Some(Ok("back".to_owned())));
}

#[test]
fn a_link_that_points_elsewhere_is_a_change() {
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
fn text_that_is_not_utf8_is_named() {
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
    async fn both_files_are_watched_and_what_is_wrong_with_them_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let store = start(folder.path());
        let (stop, mut view) = (CancellationToken::new(), store.subscribe_overview());
        let watching = watch_files(store.clone(), stop.clone());
        let editing = async {
            fs::write(&store.inputs().adapters, adapters("alias-v2")).unwrap();
            while active_adapter(&store) != "alias-v2" {
                view.changed().await.unwrap();
            }
            fs::write(&store.inputs().rollout, "kind: Rollout\n").unwrap();
            fs::write(&store.inputs().adapters, "[").unwrap();
            while store.snapshot().problems.rollout.is_none() || store.snapshot().problems.adapters.is_none() {
                view.changed().await.unwrap();
            }
            assert_eq!(active_adapter(&store), "alias-v2");
            fs::write(&store.inputs().rollout, format!("{ROLLOUT_FILE}  paused: true\n")).unwrap();
            fs::write(&store.inputs().adapters, adapters("alias-v3")).unwrap();
            while active_adapter(&store) != "alias-v3" || !store.snapshot().rollout.spec.paused {
                view.changed().await.unwrap();
            }
            assert_eq!(store.snapshot().problems, crate::snapshot::FileProblems::default());
            stop.cancel();
        };
        tokio::join!(watching, editing);
    }

    #[tokio::test]
    async fn before_an_unload_the_file_is_read_as_it_stands_then() {
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
