//! Detects changes of a file: by notification within a tenth of a second, or by polling every second where
//! notifications do not work.
//!
//! The folder is watched instead of the file, so that every kind of change is detected: overwritten, renamed into
//! place, swapped by a kubelet (`..data`), deleted and created again. Content is published once two reads in a row
//! return the same, so that a file which is being written or replaced is not published half-way.

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{Mutex, Notify, watch},
    task::spawn_blocking,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

/// How often the file is read without a notification.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Delay between the two reads that must return the same.
const STABLE_READ_DELAY: Duration = Duration::from_millis(20);
/// After this many different reads, the last one is published.
const MAX_READS: usize = 5;

type ReadFn<T> = Arc<dyn Fn(&Path) -> T + Send + Sync>;

/// A watch of one file; `T` is what the read function returns for it.
pub struct FileWatch<T> {
    path: PathBuf,
    read: ReadFn<T>,
    content: watch::Sender<T>,
    /// One read at a time: an older one must not be published after a newer one.
    read_lock: Mutex<()>,
}

impl<T> fmt::Debug for FileWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWatch").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> FileWatch<T> {
    /// Reads the file for the first time. `read` may block, and represents a missing file in its result.
    pub fn open(path: impl Into<PathBuf>, read: impl Fn(&Path) -> T + Send + Sync + 'static) -> Self {
        let path = path.into();
        let (content, _) = watch::channel(read(&path));
        Self { path, read: Arc::new(read), content, read_lock: Mutex::new(()) }
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a receiver of the last published content and every change of it.
    pub fn subscribe(&self) -> watch::Receiver<T> {
        self.content.subscribe()
    }

    /// Reads the file now. When this returns, the published content is not older than the call.
    pub async fn refresh(&self) {
        let _one_at_a_time = self.read_lock.lock().await;
        let Some(mut read) = self.read().await else { return };
        for _ in 1..MAX_READS {
            if *self.content.borrow() == read {
                return;
            }
            sleep(STABLE_READ_DELAY).await;
            let Some(again) = self.read().await else { return };
            if again == read {
                break;
            }
            read = again;
        }
        self.content.send_if_modified(|content| {
            let changed = *content != read;
            *content = read;
            changed
        });
    }

    /// Watches the file until `stop` is canceled.
    pub async fn run(&self, stop: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let mut watcher = None;
        while !stop.is_cancelled() {
            if watcher.is_none() {
                watcher = self.watch_folder(&changed);
            }
            self.refresh().await;
            // The next iteration reads the file, whether a notification came or the interval is over.
            tokio::select! {
                () = stop.cancelled() => {}
                () = changed.notified() => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Notifies `changed` of every event in the folder of the file. `None` if that fails (the folder does not exist
    /// yet, or a system limit is reached): then only polling detects changes.
    fn watch_folder(&self, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let changed = Arc::clone(changed);
        let on_event = move |event: notify::Result<notify::Event>| {
            // Our own reads are events too: reacting to them would never end.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                changed.notify_one();
            }
        };
        let watcher = notify::recommended_watcher(on_event).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::debug!(folder = %folder.display(), %error, "cannot watch the folder, polling every second");
        }
        watcher.ok()
    }

    async fn read(&self) -> Option<T> {
        let (read, path) = (Arc::clone(&self.read), self.path.clone());
        // The task fails only while the runtime shuts down.
        spawn_blocking(move || read(&path)).await.ok()
    }
}

/// Reads a text file. An error names the file and what to do.
pub fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => format!("{path}: no such file: create it"),
            io::ErrorKind::InvalidData => format!("{path}: not UTF-8: save it as UTF-8 text"),
            _ => format!("{path} cannot be read: {error}"),
        }
    })
}

#[cfg(test)]
mod tests;
