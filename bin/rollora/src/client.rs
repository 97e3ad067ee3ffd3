//! Access to a Rollout: through the `rollora local` of a state folder, or on a cluster.

mod cluster;
mod socket;

use crate::command::{RolloutLocation, RolloutRef};
use rollora_api::rollout::Intent;
use rollora_local::{IntentRequest, Overview};
use std::path::PathBuf;

/// Why an access to a Rollout failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RolloutClientError {
    /// No process listens on the control socket.
    #[error(
        "no `rollora local` runs on the state folder {0}: start one, or give the folder of a running one with --state"
    )]
    NotRunning(PathBuf),
    /// The control socket may only be opened by its owner.
    #[error("the socket {0} belongs to another user: run this command as the user that started `rollora local`")]
    Forbidden(PathBuf),
    /// The request failed, or its response is not usable.
    #[error("the request to `rollora local` on the state folder {state} failed: {problem}")]
    BadResponse { state: PathBuf, problem: String },
    /// The `rollora local` runs another Rollout than the one on the command line.
    #[error(
        "`rollora local` on the state folder {state} runs the Rollout {found}, not {requested}: omit the name, or give \
         another folder with --state"
    )]
    RolloutMismatch { state: PathBuf, found: String, requested: String },
    /// The request was refused, for the given reason.
    #[error("{0}")]
    Refused(String),
    /// The watched process or object is gone.
    #[error("{0}")]
    WatchEnded(String),
    /// Error of the API server, or while connecting to it.
    #[error("{0}")]
    Cluster(String),
}

/// Client for one Rollout.
pub(crate) enum RolloutClient {
    Local(socket::SocketClient),
    Cluster(Box<cluster::ClusterClient>),
}

/// Watch of the overview of one Rollout.
pub(crate) enum OverviewWatch {
    Local(socket::SocketOverviewWatch),
    Cluster(Box<cluster::ClusterOverviewWatch>),
}

impl RolloutClient {
    /// Creates a client. On a cluster, this connects to the API server and looks up the Rollout if it has no name.
    pub(crate) async fn connect(rollout_ref: RolloutRef) -> Result<Self, RolloutClientError> {
        match rollout_ref.location {
            RolloutLocation::Local(state) => Ok(Self::Local(socket::SocketClient::new(state, rollout_ref.name))),
            RolloutLocation::Cluster(access) => cluster::ClusterClient::connect(access, rollout_ref.name)
                .await
                .map(|client| Self::Cluster(Box::new(client))),
        }
    }

    pub(crate) async fn overview(&self) -> Result<Overview, RolloutClientError> {
        match self {
            Self::Local(client) => client.overview().await,
            Self::Cluster(client) => client.overview().await,
        }
    }

    /// Submits an intent, and returns it with its id.
    pub(crate) async fn submit_intent(&self, intent: &IntentRequest) -> Result<Intent, RolloutClientError> {
        match self {
            Self::Local(client) => client.submit_intent(intent).await,
            Self::Cluster(client) => client.submit_intent(intent).await,
        }
    }

    /// Watches the overview: the current one comes first, then one after every change.
    pub(crate) async fn watch(&self) -> Result<OverviewWatch, RolloutClientError> {
        match self {
            Self::Local(client) => client.watch().await.map(OverviewWatch::Local),
            Self::Cluster(client) => Ok(OverviewWatch::Cluster(Box::new(client.watch()))),
        }
    }
}

impl OverviewWatch {
    /// Returns the next overview. Cancel safe: nothing is lost if the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<Overview, RolloutClientError> {
        match self {
            Self::Local(watch) => watch.next().await,
            Self::Cluster(watch) => watch.next().await,
        }
    }
}
