//! Whoever is asked: the `rollora local` of a state folder, or a cluster.

mod cluster;
mod socket;

use crate::command::{Place, Target};
use rollora_api::rollout::Intent;
use rollora_local::{IntentRequest, Overview};
use std::path::PathBuf;

/// Why it could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
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
    Broken {
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
    OtherRollout {
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
    Ended(String),
    /// The cluster, in its words.
    #[error("{0}")]
    Cluster(String),
}

/// One Rollout, wherever it is.
pub(crate) enum Client {
    /// On this machine.
    Machine(socket::Client),
    /// On a cluster.
    Cluster(Box<cluster::Client>),
}

/// Overviews as they change.
pub(crate) enum Watch {
    /// On this machine.
    Machine(socket::Watch),
    /// On a cluster.
    Cluster(Box<cluster::Watch>),
}

impl Client {
    /// The way to `target`. A cluster is looked up, and the Rollout there where no name was given.
    pub(crate) async fn open(target: Target) -> Result<Self, ClientError> {
        match target.place {
            Place::Machine(state) => Ok(Self::Machine(socket::Client::new(state, target.rollout))),
            Place::Cluster(access) => {
                cluster::Client::open(access, target.rollout).await.map(|client| Self::Cluster(Box::new(client)))
            }
        }
    }

    /// Everything, as it is now.
    pub(crate) async fn overview(&self) -> Result<Overview, ClientError> {
        match self {
            Self::Machine(client) => client.overview().await,
            Self::Cluster(client) => client.overview().await,
        }
    }

    /// Hands in what a person asks for; gives it back with its id.
    pub(crate) async fn intend(&self, intent: &IntentRequest) -> Result<Intent, ClientError> {
        match self {
            Self::Machine(client) => client.intend(intent).await,
            Self::Cluster(client) => client.intend(intent).await,
        }
    }

    /// Everything, now and whenever it changed.
    pub(crate) async fn watch(&self) -> Result<Watch, ClientError> {
        match self {
            Self::Machine(client) => client.watch().await.map(Watch::Machine),
            Self::Cluster(client) => Ok(Watch::Cluster(Box::new(client.watch()))),
        }
    }
}

impl Watch {
    /// The next overview. May be given up and called again without losing anything.
    pub(crate) async fn next(&mut self) -> Result<Overview, ClientError> {
        match self {
            Self::Machine(watch) => watch.next().await,
            Self::Cluster(watch) => watch.next().await,
        }
    }
}
