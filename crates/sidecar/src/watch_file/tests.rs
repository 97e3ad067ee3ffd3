//! Every way in which a file changes, on a real file system.

use super::*;
use std::{fs, os::unix::fs::symlink};
use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

type Content = Result<String, io::ErrorKind>;

fn read(path: &Path) -> Content {
    fs::read_to_string(path).map_err(|error| error.kind())
}

/// A watched file in a folder of its own.
struct Bed {
    folder: TempDir,
    content: watch::Receiver<Content>,
    readings: watch::Receiver<usize>,
    file: Arc<WatchFile<Content>>,
    _running: JoinSet<()>,
}

impl Bed {
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
        let (count, readings) = watch::channel(0);
        let read = move |path: &Path| {
            count.send_modify(|count| *count += 1);
            read(path)
        };
        let file = Arc::new(WatchFile::open(folder.path().join("mount/file"), read));
        let mut running = JoinSet::new();
        let watched = Arc::clone(&file);
        running.spawn(async move { watched.run(CancellationToken::new()).await });
        Self { folder, content: file.subscribe(), readings, file, _running: running }
    }

    /// The folder has been watched for, and the file was read after that.
    async fn is_watching(&mut self) {
        let read = self.readings.wait_for(|readings| *readings >= 2);
        timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mount().join(name)
    }

    fn mount(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    async fn becomes_text(&mut self, text: &str) {
        self.becomes(Ok(text.to_owned())).await;
    }

    async fn becomes(&mut self, content: Content) {
        let reached = self.content.wait_for(|now| *now == content);
        timeout(Duration::from_secs(20), reached).await.expect("the change is noticed").unwrap();
    }
}

const MISSING: Content = Err(io::ErrorKind::NotFound);

#[tokio::test]
async fn an_overwritten_file_is_noticed() {
    let mut bed = Bed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    bed.is_watching().await;
    fs::write(bed.path("file"), "two").unwrap();
    bed.becomes_text("two").await;
}

#[tokio::test]
async fn a_file_renamed_into_place_is_noticed() {
    let mut bed = Bed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    bed.is_watching().await;
    fs::write(bed.path("file.new"), "two").unwrap();
    fs::rename(bed.path("file.new"), bed.path("file")).unwrap();
    bed.becomes_text("two").await;
}

#[tokio::test]
async fn a_swap_by_a_kubelet_is_noticed() {
    // As a mounted ConfigMap is: the file is a link into `..data`, which is a link to a dated folder.
    let version = |folder: &Path, name: &str, content: &str| {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("file"), content).unwrap();
    };
    let mut bed = Bed::new(|folder| {
        version(folder, "..2026_01", "one");
        symlink("..2026_01", folder.join("..data")).unwrap();
        symlink("..data/file", folder.join("file")).unwrap();
    });
    bed.is_watching().await;
    version(&bed.mount(), "..2026_02", "two");
    symlink("..2026_02", bed.path("..data_tmp")).unwrap();
    fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
    fs::remove_dir_all(bed.path("..2026_01")).unwrap();
    bed.becomes_text("two").await;
}

#[tokio::test]
async fn a_file_that_is_deleted_and_put_back_is_noticed_both_times() {
    let mut bed = Bed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    bed.is_watching().await;
    fs::remove_file(bed.path("file")).unwrap();
    bed.becomes(MISSING).await;
    fs::write(bed.path("file"), "one").unwrap();
    bed.becomes_text("one").await;
}

#[tokio::test]
async fn changes_behind_a_link_to_another_folder_are_found_by_looking() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("target");
    fs::write(&target, "one").unwrap();
    let mut bed = Bed::new(|folder| symlink(&target, folder.join("file")).unwrap());
    bed.is_watching().await;
    fs::write(&target, "two").unwrap();
    bed.becomes_text("two").await;
}

#[tokio::test]
async fn a_folder_that_comes_later_is_watched_from_then_on() {
    let mut bed = Bed::without_folder(|_| {});
    bed.is_watching().await;
    fs::create_dir(bed.mount()).unwrap();
    fs::write(bed.path("file"), "one").unwrap();
    bed.becomes_text("one").await;
    fs::write(bed.path("file"), "two").unwrap();
    bed.becomes_text("two").await;
}

#[tokio::test]
async fn a_refresh_publishes_what_stands_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = WatchFile::open(&path, read);
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
    let file = WatchFile::open("file", next);
    let mut content = file.subscribe();
    content.mark_unchanged();
    file.refresh().await;
    assert_eq!(*content.borrow_and_update(), "one");
}

#[tokio::test]
async fn unchanged_content_is_not_news() {
    let bed = Bed::new(|folder| fs::write(folder.join("file"), "one").unwrap());
    let content = bed.file.subscribe();
    fs::write(bed.path("file"), "one").unwrap();
    bed.file.refresh().await;
    assert!(!content.has_changed().unwrap());
}
