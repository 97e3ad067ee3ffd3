//! Whoever is asked: the `rollora local` of a state folder, or a cluster.

mod cluster;
mod socket;

use crate::command::{RolloutLocation, RolloutRef};
use rollora_api::rollout::Intent;
use rollora_local::{IntentRequest, Overview};
use std::path::PathBuf;

/// Why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RolloutClientError {
    /// Nobody is there.
    #[error(
        "no `rollora local` runs on the state folder {0}: start it, or name the folder of the one you mean with --state"
    )]
    NotRunning(PathBuf),
    /// Somebody else's.
    #[error("the socket {0} belongs to another user: ask as the one who started `rollora local`")]
    Forbidden(PathBuf),
    /// It is there, but did not answer as it should.
    #[error("`rollora local` of the state folder {state} {problem}")]
    BadResponse {
        /// The folder.
        state: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// It runs another Rollout.
    #[error(
        "`rollora local` of the state folder {state} runs the Rollout {runs}, not {asked}: leave the name out, or name \
         another folder with --state"
    )]
    RolloutMismatch {
        /// The folder.
        state: PathBuf,
        /// The Rollout that it runs.
        runs: String,
        /// The one that was asked for.
        asked: String,
    },
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// What was watched is over.
    #[error("{0}")]
    WatchEnded(String),
    /// The cluster, in its words.
    #[error("{0}")]
    Cluster(String),
}

/// One Rollout, wherever it is.
pub(crate) enum RolloutClient {
    /// On this machine.
    Local(socket::SocketClient),
    /// On a cluster.
    Cluster(Box<cluster::ClusterClient>),
}

/// Overviews as they change.
pub(crate) enum OverviewWatch {
    /// On this machine.
    Local(socket::SocketOverviewWatch),
    /// On a cluster.
    Cluster(Box<cluster::ClusterOverviewWatch>),
}

impl RolloutClient {
    /// The way to `target`. A cluster is looked up, and the Rollout there where no name was given.
    pub(crate) async fn connect(target: RolloutRef) -> Result<Self, RolloutClientError> {
        match target.location {
            RolloutLocation::Local(state) => Ok(Self::Local(socket::SocketClient::new(state, target.name))),
            RolloutLocation::Cluster(access) => {
                cluster::ClusterClient::connect(access, target.name).await.map(|client| Self::Cluster(Box::new(client)))
            }
        }
    }

    /// Everything, as it is now.
    pub(crate) async fn overview(&self) -> Result<Overview, RolloutClientError> {
        match self {
            Self::Local(client) => client.overview().await,
            Self::Cluster(client) => client.overview().await,
        }
    }

    /// Hands in what a person asks for; gives it back with its id.
    pub(crate) async fn submit_intent(&self, intent: &IntentRequest) -> Result<Intent, RolloutClientError> {
        match self {
            Self::Local(client) => client.submit_intent(intent).await,
            Self::Cluster(client) => client.submit_intent(intent).await,
        }
    }

    /// Everything, now and whenever it changed.
    pub(crate) async fn watch(&self) -> Result<OverviewWatch, RolloutClientError> {
        match self {
            Self::Local(client) => client.watch().await.map(OverviewWatch::Local),
            Self::Cluster(client) => Ok(OverviewWatch::Cluster(Box::new(client.watch()))),
        }
    }
}

impl OverviewWatch {
    /// The next overview. May be given up and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Result<Overview, RolloutClientError> {
        match self {
            Self::Local(watch) => watch.next().await,
            Self::Cluster(watch) => watch.next().await,
        }
    }
}
