//! Tests of every kind of file change, on a real file system.

use super::*;
use std::{fs, os::unix::fs::symlink};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

type ReadResult = Result<String, io::ErrorKind>;

fn read(path: &Path) -> ReadResult {
    fs::read_to_string(path).map_err(|error| error.kind())
}

/// A watched file in a folder of its own.
struct FileWatchTestbed {
    folder: TempDir,
    content: watch::Receiver<ReadResult>,
    read_count: watch::Receiver<usize>,
    watched: Arc<FileWatch<ReadResult>>,
    _running: JoinSet<()>,
}

impl FileWatchTestbed {
    /// `prepare` fills the folder before the watch starts.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        Self::without_folder(|folder| {
            fs::create_dir(folder.join("mount")).unwrap();
            prepare(&folder.join("mount"));
        })
    }

    fn without_folder(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let (count, read_count) = watch::channel(0);
        let read = move |path: &Path| {
            count.send_modify(|count| *count += 1);
            read(path)
        };
        let watched = Arc::new(FileWatch::open(folder.path().join("mount/file"), read));
        let mut running = JoinSet::new();
        let runner = Arc::clone(&watched);
        running.spawn(async move { runner.run(CancellationToken::new()).await });
        Self { folder, content: watched.subscribe(), read_count, watched, _running: running }
    }

    /// Waits until the folder is watched and the file was read after that.
    async fn wait_for_watch(&mut self) {
        let read = self.read_count.wait_for(|count| *count >= 2);
        timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    fn mount(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    async fn wait_for_text(&mut self, text: &str) {
        self.wait_for_content(Ok(text.to_owned())).await;
    }

    async fn wait_for_content(&mut self, content: ReadResult) {
        let reached = self.content.wait_for(|now| *now == content);
        timeout(Duration::from_secs(20), reached).await.expect("the change was not detected").unwrap();
    }
}

const MISSING: ReadResult = Err(io::ErrorKind::NotFound);

#[tokio::test]
async fn overwritten_file_is_detected() {
    let mut testbed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    testbed.wait_for_watch().await;
    fs::write(testbed.path("file"), "two").unwrap();
    testbed.wait_for_text("two").await;
}

#[tokio::test]
async fn file_renamed_into_place_is_detected() {
    let mut testbed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    testbed.wait_for_watch().await;
    fs::write(testbed.path("file.new"), "two").unwrap();
    fs::rename(testbed.path("file.new"), testbed.path("file")).unwrap();
    testbed.wait_for_text("two").await;
}

#[tokio::test]
async fn swap_by_a_kubelet_is_detected() {
    // Like a mounted ConfigMap: the file is a link into `..data`, which is a link to a dated folder.
    let version = |folder: &Path, name: &str, content: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("file"), content).unwrap();
    };
    let mut testbed = FileWatchTestbed::new(|folder| {
        version(folder, "..2026_01", "one");
        symlink("..2026_01", folder.join("..data")).unwrap();
        symlink("..data/file", folder.join("file")).unwrap();
    });
    testbed.wait_for_watch().await;
    version(&testbed.mount(), "..2026_02", "two");
    symlink("..2026_02", testbed.path("..data_tmp")).unwrap();
    fs::rename(testbed.path("..data_tmp"), testbed.path("..data")).unwrap();
    fs::remove_dir_all(testbed.path("..2026_01")).unwrap();
    testbed.wait_for_text("two").await;
}

#[tokio::test]
async fn deletion_and_recreation_are_both_detected() {
    let mut testbed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    testbed.wait_for_watch().await;
    fs::remove_file(testbed.path("file")).unwrap();
    testbed.wait_for_content(MISSING).await;
    fs::write(testbed.path("file"), "one").unwrap();
    testbed.wait_for_text("one").await;
}

#[tokio::test]
async fn change_behind_a_link_to_another_folder_is_found_by_polling() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, "one").unwrap();
    let mut testbed = FileWatchTestbed::new(|folder| symlink(&target, folder.join("file")).unwrap());
    testbed.wait_for_watch().await;
    fs::write(&target, "two").unwrap();
    testbed.wait_for_text("two").await;
}

#[tokio::test]
async fn folder_that_is_created_later_is_watched() {
    let mut testbed = FileWatchTestbed::without_folder(|_| {});
    testbed.wait_for_watch().await;
    fs::create_dir(testbed.mount()).unwrap();
    fs::write(testbed.path("file"), "one").unwrap();
    testbed.wait_for_text("one").await;
    fs::write(testbed.path("file"), "two").unwrap();
    testbed.wait_for_text("two").await;
}

#[tokio::test]
async fn refresh_publishes_the_present_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = FileWatch::open(&path, read);
    assert_eq!(*file.subscribe().borrow(), MISSING);
    fs::write(&path, "one").unwrap();
    file.refresh().await;
    assert_eq!(*file.subscribe().borrow(), Ok("one".to_owned()));
    assert_eq!(file.path(), path);
}

#[tokio::test(start_paused = true)]
async fn file_being_written_is_published_once_stable() {
    // Each read returns the next of these.
    let reads = std::sync::Mutex::new(["old", "o", "on", "one", "one"].into_iter());
    let next = move |_: &Path| reads.lock().unwrap().next().expect("the file was read too often").to_owned();
    let file = FileWatch::open("file", next);
    let mut content = file.subscribe();
    content.mark_unchanged();
    file.refresh().await;
    assert_eq!(*content.borrow_and_update(), "one");
}

#[tokio::test]
async fn unchanged_content_is_not_published() {
    let testbed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    let content = testbed.watched.subscribe();
    fs::write(testbed.path("file"), "one").unwrap();
    testbed.watched.refresh().await;
    assert!(!content.has_changed().unwrap());
}
