//! Files that all change at once, the way the kubelet writes them.
//!
//! The files stand in a folder named by the time. `..data` points to that folder, and each name that people see points
//! into `..data`. New content gets a new folder, and `..data` is swapped by one rename: whoever reads sees all of the
//! old files or all of the new ones.

use crate::clock;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

const DATA_LINK: &str = "..data";
const NEW_DATA_LINK: &str = "..data_tmp";

/// What is to stand in the folder: paths below it, and what the files say.
pub(super) type ProjectedFiles = BTreeMap<String, ProjectedFile>;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProjectedFile {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Makes `folder` hold these files. Says whether anything had to be done.
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

    let wanted: BTreeSet<_> = files.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for visible in &wanted {
        let link = folder.join(visible);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA_LINK).join(visible), link)?;
        }
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let visible = entry.file_name().to_string_lossy().into_owned();
        if !visible.starts_with("..") && !wanted.contains(visible.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    old.map_or(Ok(()), |old| fs::remove_dir_all(folder.join(old)).or_else(ignore_not_found))?;
    Ok(true)
}

fn is_current(data: &Path, files: &ProjectedFiles) -> io::Result<bool> {
    let mut there = BTreeSet::new();
    collect_paths(data, Path::new(""), &mut there)?;
    let same = |(path, file): (&String, &ProjectedFile)| {
        fs::read(data.join(path)).is_ok_and(|content| content == file.content)
    };
    Ok(there.iter().eq(files.keys()) && files.iter().all(same))
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
    fn new_content_gets_a_new_folder_and_the_old_one_goes() {
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
        assert!(fs::symlink_metadata(folder.join("deep")).is_err(), "a link to nowhere is left");
    }

    #[test]
    fn the_same_content_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert!(project(folder.path(), &files(&[("a", "1")])).unwrap());
        let first = fs::read_link(folder.path().join(DATA_LINK)).unwrap();
        assert!(!project(folder.path(), &files(&[("a", "1")])).unwrap());
        assert_eq!(fs::read_link(folder.path().join(DATA_LINK)).unwrap(), first);
    }

    #[test]
    fn a_file_is_never_seen_half_written() {
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
            // Between reading the link and opening the file the folder may go, here as on a node: one looks again.
            let Some(text) = read(folder.path(), "a") else { continue };
            let first = text.get(..1).unwrap();
            assert!(text.len() == 100_000 && text.replace(first, "").is_empty(), "half of a file");
        }
        writer.join().unwrap();
    }

    #[test]
    fn nothing_to_project_is_an_empty_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(project(folder.path(), &ProjectedFiles::new()).unwrap());
        assert!(!project(folder.path(), &ProjectedFiles::new()).unwrap());
        assert!(fs::read_link(folder.path().join(DATA_LINK)).is_ok());
    }
}
