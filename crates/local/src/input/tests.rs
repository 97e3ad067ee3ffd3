use super::*;

fn seen(watched: &mut Watched, path: &Path) -> Option<Result<String, String>> {
    watched.look(path)
}

#[test]
fn a_file_is_taken_once_two_looks_found_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = Watched::default();
    fs::write(&path, "one").unwrap();
    assert_eq!(seen(&mut watched, &path), None);
    assert_eq!(seen(&mut watched, &path), Some(Ok("one".to_owned())));
    assert_eq!(seen(&mut watched, &path), None);

    // An editor that is still writing.
    fs::write(&path, "t").unwrap();
    assert_eq!(seen(&mut watched, &path), None);
    fs::write(&path, "two").unwrap();
    assert_eq!(seen(&mut watched, &path), None);
    assert_eq!(seen(&mut watched, &path), Some(Ok("two".to_owned())));
}

#[test]
fn a_file_that_is_away_for_a_moment_was_never_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = Watched::default();
    fs::write(&path, "one").unwrap();
    assert!(seen(&mut watched, &path).is_none() && seen(&mut watched, &path).is_some());
    fs::remove_file(&path).unwrap();
    assert_eq!(seen(&mut watched, &path), None);
    fs::write(&path, "one").unwrap();
    assert_eq!(seen(&mut watched, &path), None);
    assert_eq!(seen(&mut watched, &path), None);
}

#[test]
fn a_file_that_is_gone_is_said_once_and_taken_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    let mut watched = Watched::default();
    assert_eq!(seen(&mut watched, &path), None);
    let said = seen(&mut watched, &path).unwrap().unwrap_err();
    assert!(said.ends_with("file.yaml: there is no such file: put it there"), "{said}");
    assert_eq!(seen(&mut watched, &path), None);
    fs::write(&path, "back").unwrap();
    assert_eq!(seen(&mut watched, &path), None);
    assert_eq!(seen(&mut watched, &path), Some(Ok("back".to_owned())));
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
    let mut watched = Watched::default();
    for (name, text) in [("1", "one"), ("2", "two")] {
        point(name);
        assert_eq!(seen(&mut watched, &path), None);
        assert_eq!(seen(&mut watched, &path), Some(Ok(text.to_owned())));
    }
}

#[test]
fn text_that_is_not_utf8_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.yaml");
    fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(text(&path).unwrap_err().ends_with("file.yaml: not UTF-8: save it as UTF-8 text"));
}
