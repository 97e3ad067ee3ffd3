//! Every way in which a file changes, on a real file system.

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
    /// `prepare` fills the folder first.
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

    /// The folder has been watched for, and the file was read after that.
    async fn wait_for_watch(&mut self) {
        let read = self.read_count.wait_for(|readings| *readings >= 2);
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
        timeout(Duration::from_secs(20), reached).await.expect("the change is noticed").unwrap();
    }
}

const MISSING: ReadResult = Err(io::ErrorKind::NotFound);

#[tokio::test]
async fn an_overwritten_file_is_noticed() {
    let mut bed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    bed.wait_for_watch().await;
    fs::write(bed.path("file"), "two").unwrap();
    bed.wait_for_text("two").await;
}

#[tokio::test]
async fn a_file_renamed_into_place_is_noticed() {
    let mut bed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    bed.wait_for_watch().await;
    fs::write(bed.path("file.new"), "two").unwrap();
    fs::rename(bed.path("file.new"), bed.path("file")).unwrap();
    bed.wait_for_text("two").await;
}

#[tokio::test]
async fn a_swap_by_a_kubelet_is_noticed() {
    // As a mounted ConfigMap is: the file is a link into `..data`, which is a link to a dated folder.
    let version = |folder: &Path, name: &str, content: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("file"), content).unwrap();
    };
    let mut bed = FileWatchTestbed::new(|folder| {
        version(folder, "..2026_01", "one");
        symlink("..2026_01", folder.join("..data")).unwrap();
        symlink("..data/file", folder.join("file")).unwrap();
    });
    bed.wait_for_watch().await;
    version(&bed.mount(), "..2026_02", "two");
    symlink("..2026_02", bed.path("..data_tmp")).unwrap();
    fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
    fs::remove_dir_all(bed.path("..2026_01")).unwrap();
    bed.wait_for_text("two").await;
}

#[tokio::test]
async fn a_file_that_is_deleted_and_put_back_is_noticed_both_times() {
    let mut bed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    bed.wait_for_watch().await;
    fs::remove_file(bed.path("file")).unwrap();
    bed.wait_for_content(MISSING).await;
    fs::write(bed.path("file"), "one").unwrap();
    bed.wait_for_text("one").await;
}

#[tokio::test]
async fn changes_behind_a_link_to_another_folder_are_found_by_looking() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, "one").unwrap();
    let mut bed = FileWatchTestbed::new(|folder| symlink(&target, folder.join("file")).unwrap());
    bed.wait_for_watch().await;
    fs::write(&target, "two").unwrap();
    bed.wait_for_text("two").await;
}

#[tokio::test]
async fn a_folder_that_comes_later_is_watched_from_then_on() {
    let mut bed = FileWatchTestbed::without_folder(|_| {});
    bed.wait_for_watch().await;
    fs::create_dir(bed.mount()).unwrap();
    fs::write(bed.path("file"), "one").unwrap();
    bed.wait_for_text("one").await;
    fs::write(bed.path("file"), "two").unwrap();
    bed.wait_for_text("two").await;
}

#[tokio::test]
async fn a_refresh_publishes_what_stands_there() {
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
async fn a_file_that_is_being_written_is_taken_when_it_stands_still() {
    // Each reading gives the next of these.
    let readings = std::sync::Mutex::new(["old", "o", "on", "one", "one"].into_iter());
    let next = move |_: &Path| readings.lock().unwrap().next().expect("no more readings than needed").to_owned();
    let file = FileWatch::open("file", next);
    let mut content = file.subscribe();
    content.mark_unchanged();
    file.refresh().await;
    assert_eq!(*content.borrow_and_update(), "one");
}

#[tokio::test]
async fn unchanged_content_is_not_news() {
    let bed = FileWatchTestbed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    let content = bed.watched.subscribe();
    fs::write(bed.path("file"), "one").unwrap();
    bed.watched.refresh().await;
    assert!(!content.has_changed().unwrap());
}
