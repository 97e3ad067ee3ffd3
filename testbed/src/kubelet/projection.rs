//! Updates all files of a volume atomically, as the kubelet's AtomicWriter does.
//!
//! The files are in a folder named after the time. `..data` is a link to that folder, and each visible name is a link
//! into `..data`. New content gets a new folder, and `..data` is swapped by one rename: a reader sees either all old
//! files or all new ones.

use crate::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

const DATA_LINK: &str = "..data";
const NEW_DATA_LINK: &str = "..data_tmp";

/// Desired files, by path below the folder.
pub(super) type ProjectedFiles = BTreeMap<String, ProjectedFile>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProjectedFile {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Makes `folder` contain exactly these files. Returns whether anything had to change.
pub(super) fn project(folder: &Path, files: &ProjectedFiles) -> io::Result<bool> {
    fs::create_dir_all(folder)?;
    let data = folder.join(DATA_LINK);
    let old = fs::read_link(&data).ok();
    if old.is_some() && is_current(&data, files)? {
        return Ok(false);
    }
    let name = clock::timestamp().strftime("..%Y_%m_%d_%H_%M_%S.%f").to_string();
    for (path, file) in files {
        let path = folder.join(&name).join(path);
        fs::create_dir_all(path.parent().unwrap_or(folder))?;
        fs::write(&path, &file.content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    fs::create_dir_all(folder.join(&name))?;
    let next = folder.join(NEW_DATA_LINK);
    fs::remove_file(&next).or_else(ignore_not_found)?;
    symlink(&name, &next)?;
    fs::rename(&next, &data)?;

    let visible_names: BTreeSet<_> = files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for visible in &visible_names {
        let link = folder.join(visible);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA_LINK).join(visible), link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let visible = entry.file_name().to_string_lossy().into_owned();
        if !visible.starts_with("..") && !visible_names.contains(visible.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    old.map_or(Ok(()), |old| fs::remove_dir_all(folder.join(old)).or_else(ignore_not_found))?;
    Ok(true)
}

fn is_current(data: &Path, files: &ProjectedFiles) -> io::Result<bool> {
    let mut existing = BTreeSet::new();
    collect_paths(data, Path::new(""), &mut existing)?;
    let same = |(path, file): (&String, &ProjectedFile)| {
        fs::read(data.join(path)).is_ok_and(|content| content == file.content)
    };
    Ok(existing.iter().eq(files.keys()) && files.iter().all(same))
}

fn collect_paths(root: &Path, below: &Path, paths: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect_paths(root, &path, paths)?;
        } else {
            paths.insert(path.display().to_string());
        }
    }
    Ok(())
}

fn ignore_not_found(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> ProjectedFiles {
        let file = |content: &str| ProjectedFile { content: content.as_bytes().to_vec(), mode: 0o644 };
        files.iter().map(|(path, content)| ((*path).to_owned(), file(content))).collect()
    }

    fn read(folder: &Path, path: &str) -> Option<String> {
        fs::read_to_string(folder.join(path)).ok()
    }

    #[test]
    fn new_content_replaces_the_data_folder() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        assert!(project(folder, &files(&[("a", "1"), ("deep/b", "1")])).unwrap());
        let first = fs::read_link(folder.join(DATA_LINK)).unwrap();
        assert_eq!(fs::read_link(folder.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_link(folder.join("deep")).unwrap(), Path::new("..data/deep"));
        assert_eq!((read(folder, "a"), read(folder, "deep/b")), (Some("1".to_owned()), Some("1".to_owned())));

        assert!(project(folder, &files(&[("a", "2"), ("c", "2")])).unwrap());
        let second = fs::read_link(folder.join(DATA_LINK)).unwrap();
        assert_ne!(first, second);
        assert!(!folder.join(first).exists());
        assert_eq!((read(folder, "a"), read(folder, "c")), (Some("2".to_owned()), Some("2".to_owned())));
        assert!(fs::symlink_metadata(folder.join("deep")).is_err(), "a dangling link is left");
    }

    #[test]
    fn same_content_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(project(folder.path(), &files(&[("a", "1")])).unwrap());
        let first = fs::read_link(folder.path().join(DATA_LINK)).unwrap();
        assert!(!project(folder.path(), &files(&[("a", "1")])).unwrap());
        assert_eq!(fs::read_link(folder.path().join(DATA_LINK)).unwrap(), first);
    }

    #[test]
    fn file_is_never_partially_visible() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        let long = |digit: &str| digit.repeat(100_000);
        project(&path, &files(&[("a", &long("0"))])).unwrap();
        let writer = std::thread::spawn(move || {
            for round in 1..200_usize {
                project(&path, &files(&[("a", &long(&(round % 10).to_string()))])).unwrap();
            }
        });
        while !writer.is_finished() {
            // As on a node, the folder may disappear between reading the link and opening the file: read again.
            let Some(text) = read(folder.path(), "a") else { continue };
            let first = text.get(..1).unwrap();
            assert!(text.len() == 100_000 && text.replace(first, "").is_empty(), "the file is incomplete");
        }
        writer.join().unwrap();
    }

    #[test]
    fn no_files_result_in_an_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(project(folder.path(), &ProjectedFiles::new()).unwrap());
        assert!(!project(folder.path(), &ProjectedFiles::new()).unwrap());
        assert!(fs::read_link(folder.path().join(DATA_LINK)).is_ok());
    }
}
