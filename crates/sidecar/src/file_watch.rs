//! Noticing that a file, or what is made of it, has changed: by notification within a tenth of a second, by looking
//! every second where notifications do not work.
//!
//! The folder is watched rather than the file, so that it does not matter how the file changes: overwritten, renamed
//! into place, swapped by a kubelet (`..data`), deleted and put back. A file is taken once two readings in a row gave
//! the same, so that one which is being written, or is away while it is replaced, is not mistaken for what was meant.

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

/// How often it is looked at without a notification.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Between two readings that have to give the same.
const STABLE_READ_DELAY: Duration = Duration::from_millis(20);
/// Readings until the last one is taken as it is.
const MAX_READS: usize = 5;

/// How a file is read.
type ReadFn<T> = Arc<dyn Fn(&Path) -> T + Send + Sync>;

/// A file that is watched; `T` is what is read from it.
pub struct FileWatch<T> {
    path: PathBuf,
    read: ReadFn<T>,
    content: watch::Sender<T>,
    /// One reading at a time: an older one must not be published after a newer one.
    read_lock: Mutex<()>,
}

impl<T> fmt::Debug for FileWatch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<T: Clone + PartialEq + Send + Sync + 'static> FileWatch<T> {
    /// Reads the file for the first time; `read` may block, and says in its own way when there is no file.
    pub fn open(path: impl Into<PathBuf>, read: impl Fn(&Path) -> T + Send + Sync + 'static) -> Self {
        let path = path.into();
        let (content, _) = watch::channel(read(&path));
        Self { path, read: Arc::new(read), content, read_lock: Mutex::new(()) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was read last, and from now on whatever differs from it.
    pub fn subscribe(&self) -> watch::Receiver<T> {
        self.content.subscribe()
    }

    /// Reads the file now. When this returns, what is published is not older than the call.
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

    /// Watches until it is stopped.
    pub async fn run(&self, stop: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let mut watcher = None;
        while !stop.is_cancelled() {
            if watcher.is_none() {
                watcher = self.watch_folder(&changed);
            }
            self.refresh().await;
            // A notification, or time to look without one: both mean the same.
            tokio::select! {
                () = stop.cancelled() => {}
                () = changed.notified() => {}
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }

    /// Has `changed` told of every event in the file's folder. None where that does not work (no such folder yet, or
    /// the system's limit): then looking has to do.
    fn watch_folder(&self, changed: &Arc<Notify>) -> Option<RecommendedWatcher> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let changed = Arc::clone(changed);
        let tell = move |event: notify::Result<notify::Event>| {
            // Our own readings open the file: reacting to them would never end.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                changed.notify_one();
            }
        };
        let watcher = notify::recommended_watcher(tell).and_then(|mut watcher| {
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        if let Err(error) = &watcher {
            tracing::debug!(folder = %folder.display(), %error, "no notifications: the file is looked at every second");
        }
        watcher.ok()
    }

    async fn read(&self) -> Option<T> {
        let (read, path) = (Arc::clone(&self.read), self.path.clone());
        // None only while the runtime shuts down.
        spawn_blocking(move || read(&path)).await.ok()
    }
}

/// Reads text; what goes wrong is said with the file's name and what to do.
pub fn read_text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| {
        let path = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => format!("{path}: there is no such file: put it there"),
            io::ErrorKind::InvalidData => format!("{path}: not UTF-8: save it as UTF-8 text"),
            _ => format!("{path} cannot be read: {error}"),
        }
    })
}

#[cfg(test)]
mod tests;
