//! Whether requests should come here.

use tokio::sync::watch;

/// How far the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The rules are not known yet.
    Starting,
    /// The rules are in force.
    Serving,
    /// What is here is ended, nothing new should come.
    Draining,
}

/// Whether requests should come here; clones speak of the same.
#[derive(Debug, Clone)]
pub struct Readiness(watch::Sender<Stage>);

impl Readiness {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Stage::Starting))
    }

    /// The rules are in force for the first time.
    pub fn serving(&self) {
        self.0.send_if_modified(|stage| {
            let starts = *stage == Stage::Starting;
            if starts {
                *stage = Stage::Serving;
            }
            starts
        });
    }

    /// From now on nothing new should come.
    pub(crate) fn draining(&self) {
        self.0.send_replace(Stage::Draining);
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.0.borrow()
    }

    /// The stages as they change, beginning with the present one.
    pub(crate) fn stages(&self) -> watch::Receiver<Stage> {
        self.0.subscribe()
    }
}
