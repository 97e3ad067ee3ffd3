//! Whether requests should come here.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How far the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ServerStage {
    /// The rules are not known yet.
    Starting,
    /// The rules are in force.
    Serving,
    /// What is here is ended, nothing new should come.
    Draining,
}

/// Whether requests should come here; clones speak of the same.
#[derive(Debug, Clone)]
pub struct ServerReadiness {
    stage: watch::Sender<ServerStage>,
    /// Why the rules are not known yet.
    problem: Arc<Mutex<Option<String>>>,
}

impl ServerReadiness {
    pub(crate) fn new() -> Self {
        Self { stage: watch::Sender::new(ServerStage::Starting), problem: Arc::default() }
    }

    /// The rules are in force for the first time.
    pub fn set_serving(&self) {
        self.stage.send_if_modified(|stage| {
            let starts = *stage == ServerStage::Starting;
            if starts {
                *stage = ServerStage::Serving;
            }
            starts
        });
    }

    /// Why the rules may not be known yet; told to whoever asks why nothing should come.
    pub fn set_problem(&self, problem: Option<String>) {
        *self.problem() = problem;
    }

    fn problem(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is held.
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests should come, and in words why not.
    pub(crate) fn check(&self) -> (bool, String) {
        match self.stage() {
            ServerStage::Serving => (true, "ok".to_owned()),
            ServerStage::Draining => (false, "it is ending".to_owned()),
            ServerStage::Starting => {
                let why = self.problem().as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
                (false, format!("the rewrites have not been read for the first time{why}"))
            }
        }
    }

    /// From now on nothing new should come.
    pub(crate) fn set_draining(&self) {
        self.stage.send_replace(ServerStage::Draining);
    }

    pub(crate) fn stage(&self) -> ServerStage {
        *self.stage.borrow()
    }

    /// The stages as they change, beginning with the present one.
    pub(crate) fn subscribe(&self) -> watch::Receiver<ServerStage> {
        self.stage.subscribe()
    }
}
