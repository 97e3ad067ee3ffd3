//! Sizes of folders and free disk space.

use std::path::Path;

/// Returns the size of all files below a folder, in bytes. Files that vanish meanwhile are not counted.
pub(crate) fn dir_size(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => dir_size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Returns the free space of the file system that contains `folder`, in bytes.
pub(crate) fn free_space(folder: &Path) -> std::io::Result<u64> {
    let space = rustix::fs::statvfs(folder)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Formats a size for people, in units of 1000: `12 kB`, `3.4 MB`, `2.8 GB`.
pub(crate) fn format_size(bytes: u64) -> String {
    let (unit, name) = match bytes {
        1_000_000_000.. => (1_000_000_000, "GB"),
        1_000_000.. => (1_000_000, "MB"),
        _ => (1_000, "kB"),
    };
    let tenths = bytes.saturating_mul(10) / unit;
    if tenths < 100 { format!("{}.{} {name}", tenths / 10, tenths % 10) } else { format!("{} {name}", tenths / 10) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_formatted_for_people() {
        for (bytes, expected) in [
            (0, "0.0 kB"),
            (12_345, "12 kB"),
            (3_449_999, "3.4 MB"),
            (2_811_000_000, "2.8 GB"),
            (128_000_000, "128 MB"),
        ] {
            assert_eq!(format_size(bytes), expected);
        }
    }

    #[test]
    fn size_of_a_folder_includes_subfolders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("below")).unwrap();
        std::fs::write(folder.path().join("a"), [0; 10]).unwrap();
        std::fs::write(folder.path().join("below/b"), [0; 32]).unwrap();
        std::os::unix::fs::symlink("/", folder.path().join("link")).unwrap();
        let links = std::fs::symlink_metadata(folder.path().join("link")).unwrap().len();
        assert_eq!(dir_size(folder.path()), 42 + links);
    }
}
