//! The pods of a cluster, asked what they hold and by what they route: all at once, each with a time limit.

use crate::{
    questions::Questions,
    store::{beside, name_of, read_error},
    whom::{self, Whom},
};
use futures_util::future::join_all;
use rollora_api::{
    names::ModelName,
    rewrite::PoolRef,
    rollout::spec::{AdaptersRef, ResidencyProof},
};
use rollora_cluster::{Documents, Sharers};
use rollora_operator::ports::{Fleet, Heard, ReadError, RolloutKey, Router, Server};
use std::sync::Arc;
use tokio::time::Instant;

/// The pods.
#[derive(Debug)]
pub(crate) struct ClusterFleet {
    documents: Documents,
    questions: Arc<Questions>,
}

impl ClusterFleet {
    pub(crate) fn new(documents: Documents) -> Self {
        Self { documents, questions: Arc::default() }
    }

    pub(crate) fn questions(&self) -> &Arc<Questions> {
        &self.questions
    }
}

impl Fleet for ClusterFleet {
    async fn servers(&self, key: &RolloutKey, pool: &PoolRef) -> Result<Heard<Server>, ReadError> {
        let found = self.documents.pool(&beside(key, &pool.name)).await;
        let (pool, pods) = found.map_err(read_error)?;
        self.ask(key, whom::servers(&pool, &pods)).await
    }

    async fn sharers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        reference: &AdaptersRef,
    ) -> Result<Heard<Server>, ReadError> {
        let found = self.documents.sharers(&beside(key, &pool.name), &beside(key, &reference.name)).await;
        let Sharers { pools, alone } = found.map_err(read_error)?;
        let of_pools = pools.iter().flat_map(|(pool, pods)| whom::servers(pool, pods));
        self.ask(key, of_pools.chain(whom::alone(&alone))).await
    }

    async fn routers(&self, key: &RolloutKey, pool: &PoolRef, _: &ModelName) -> Result<Heard<Router>, ReadError> {
        let pods = self.documents.routers(&beside(key, &pool.name)).await.map_err(read_error)?;
        let asked = whom::running(&pods).map(|(pod, ip)| async move {
            let (at, report) = self.questions.rules(pod, ip).await;
            (at, Router { name: pod.name.clone(), report })
        });
        Ok(heard(join_all(asked).await))
    }
}

impl ClusterFleet {
    /// Asks every one of these servers, as the Rollout wants to be assured.
    async fn ask<'a>(
        &self,
        key: &RolloutKey,
        servers: impl Iterator<Item = Whom<'a>>,
    ) -> Result<Heard<Server>, ReadError> {
        let rollout = self.documents.rollout(&name_of(key)).await.map_err(read_error)?;
        let registered = rollout.is_some_and(|rollout| rollout.value.spec.residency == ResidencyProof::Registered);
        let asked = servers.map(|whom| async move {
            let (at, status) = if registered {
                self.questions.status_or_models(&whom, || self.documents.pod_uids()).await
            } else {
                self.questions.status(&whom).await
            };
            let Whom { pod, name, .. } = whom;
            let (ready, unready_since, leaving) = (pod.ready, pod.unready_since, pod.leaving);
            (at, Server { name, uid: pod.uid.clone(), ready, unready_since, leaving, status })
        });
        Ok(heard(join_all(asked).await))
    }
}

/// All of them, and when the oldest answer was asked for.
fn heard<T>(all: Vec<(Option<Instant>, T)>) -> Heard<T> {
    let asked = all.iter().filter_map(|(at, _)| *at).min();
    Heard { answers: all.into_iter().map(|(_, answer)| answer).collect(), asked }
}
