//! Readiness of the server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Stage of the server's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerStage {
    /// Rules were not loaded yet.
    Starting,
    /// Rules are loaded and requests are served.
    Serving,
    /// Shutting down: open requests are served, new ones should go elsewhere.
    Draining,
}

/// Handle to the readiness of the server; clones share the state.
#[derive(Debug, Clone)]
pub struct ServerReadiness {
    stage: watch::Sender<ServerStage>,
    /// Why rules cannot be loaded; shown by `/readyz` until they are.
    problem: Arc<Mutex<Option<String>>>,
}

impl ServerReadiness {
    pub(crate) fn new() -> Self {
        Self { stage: watch::Sender::new(ServerStage::Starting), problem: Arc::default() }
    }

    /// Marks the server as serving, after the rules were loaded for the first time. Has no effect while draining.
    pub fn set_serving(&self) {
        self.stage.send_if_modified(|stage| {
            let starts = *stage == ServerStage::Starting;
            if starts {
                *stage = ServerStage::Serving;
            }
            starts
        });
    }

    /// Sets or clears the reason why rules cannot be loaded, which `/readyz` shows.
    pub fn set_problem(&self, problem: Option<String>) {
        *self.problem() = problem;
    }

    fn problem(&self) -> MutexGuard<'_, Option<String>> {
        // No code panics while it holds this lock.
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether the server is ready, and a message that says why not.
    pub(crate) fn check(&self) -> (bool, String) {
        match self.stage() {
            ServerStage::Serving => (true, "ok".to_owned()),
            ServerStage::Draining => (false, "shutting down".to_owned()),
            ServerStage::Starting => {
                let reason = self.problem().as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
                (false, format!("the rewrites have not been loaded yet{reason}"))
            }
        }
    }

    /// Marks the server as draining; there is no way back.
    pub(crate) fn set_draining(&self) {
        self.stage.send_replace(ServerStage::Draining);
    }

    pub(crate) fn stage(&self) -> ServerStage {
        *self.stage.borrow()
    }

    /// Subscribes to changes of the stage; the receiver starts with the current one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<ServerStage> {
        self.stage.subscribe()
    }
}
