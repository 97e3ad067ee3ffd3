//! vLLM's API key: from the environment, or from a file that is watched.

use rollora_sidecar::watch_file::{WatchFile, read_text};
use rollora_vllm::ApiKey;
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What is read from the file; an error says what to do.
type Reading = Result<ApiKey, String>;

/// Where the key comes from. What goes wrong with the file later changes nothing: the last good key stays.
#[derive(Debug)]
pub(crate) struct KeySource {
    file: Option<WatchFile<Reading>>,
    key: watch::Sender<Option<ApiKey>>,
}

impl KeySource {
    /// The key in `file`, else the one of the environment, else none.
    pub(crate) fn open(file: Option<PathBuf>) -> Result<Self, String> {
        let Some(path) = file else {
            let key = std::env::var("VLLM_API_KEY").ok().filter(|key| !key.trim().is_empty());
            return Ok(Self { file: None, key: watch::Sender::new(key.as_deref().map(ApiKey::new)) });
        };
        let file = WatchFile::open(path, read);
        let key = file.subscribe().borrow().clone().map_err(|problem| format!("--api-key-file: {problem}"))?;
        Ok(Self { file: Some(file), key: watch::Sender::new(Some(key)) })
    }

    /// The key in force.
    pub(crate) fn key(&self) -> watch::Receiver<Option<ApiKey>> {
        self.key.subscribe()
    }

    /// Watches until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(file) = &self.file else { return stop.cancelled().await };
        let mut readings = file.subscribe();
        let follow = async {
            while readings.changed().await.is_ok() {
                match readings.borrow_and_update().clone() {
                    Ok(key) => {
                        tracing::info!("vLLM's API key was read again");
                        self.key.send_replace(Some(key));
                    }
                    Err(problem) => tracing::warn!("the last good API key stays: {problem}"),
                }
            }
        };
        tokio::select! {
            () = file.run(stop) => {}
            () = follow => {}
        }
    }
}

fn read(path: &Path) -> Reading {
    let text = read_text(path)?;
    if text.trim().is_empty() {
        return Err(format!("{} is empty: write the key into it", path.display()));
    }
    Ok(ApiKey::new(&text))
}
