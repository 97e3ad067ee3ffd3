//! The pods of a cluster, asked what they hold and by what they route: all at once, each with a time limit.

use crate::{
    document_store::{in_same_namespace, namespaced_name, to_read_error},
    pod_client::PodClient,
    pod_discovery::{self, SidecarAddr},
};
use futures_util::future::join_all;
use rollora_api::{
    names::ModelName,
    rewrite::PoolRef,
    rollout::spec::{AdaptersRef, ResidencyProof},
};
use rollora_cluster::{CachedClient, ConfigMapReaders};
use rollora_operator::ports::{Fleet, ObservedRouter, ObservedServer, Polled, ReadError, RolloutKey};
use std::sync::Arc;
use tokio::time::Instant;

/// The pods.
#[derive(Debug)]
pub(crate) struct ClusterFleet {
    client: CachedClient,
    pod_client: Arc<PodClient>,
}

impl ClusterFleet {
    pub(crate) fn new(client: CachedClient) -> Self {
        Self { client, pod_client: Arc::default() }
    }

    pub(crate) fn pod_client(&self) -> &Arc<PodClient> {
        &self.pod_client
    }
}

impl Fleet for ClusterFleet {
    async fn servers(&self, key: &RolloutKey, pool: &PoolRef) -> Result<Polled<ObservedServer>, ReadError> {
        let found = self.client.pool(&in_same_namespace(key, &pool.name)).await;
        let (pool, pods) = found.map_err(to_read_error)?;
        self.poll_servers(key, pod_discovery::pool_servers(&pool, &pods)).await
    }

    async fn other_pool_servers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        reference: &AdaptersRef,
    ) -> Result<Polled<ObservedServer>, ReadError> {
        let found = self
            .client
            .config_map_readers(&in_same_namespace(key, &pool.name), &in_same_namespace(key, &reference.name))
            .await;
        let ConfigMapReaders { other_pools: pools, unpooled_pods: alone } = found.map_err(to_read_error)?;
        let of_pools = pools.iter().flat_map(|(pool, pods)| pod_discovery::pool_servers(pool, pods));
        self.poll_servers(key, of_pools.chain(pod_discovery::unpooled_servers(&alone))).await
    }

    async fn routers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        _: &ModelName,
    ) -> Result<Polled<ObservedRouter>, ReadError> {
        let pods = self.client.routers(&in_same_namespace(key, &pool.name)).await.map_err(to_read_error)?;
        let asked = pod_discovery::running_pods(&pods).map(|(pod, ip)| async move {
            let (at, report) = self.pod_client.router_rules(pod, ip).await;
            (at, ObservedRouter { name: pod.name.clone(), report })
        });
        Ok(collect_polled(join_all(asked).await))
    }
}

impl ClusterFleet {
    /// Asks every one of these servers, as the Rollout wants to be assured.
    async fn poll_servers<'a>(
        &self,
        key: &RolloutKey,
        servers: impl Iterator<Item = SidecarAddr<'a>>,
    ) -> Result<Polled<ObservedServer>, ReadError> {
        let rollout = self.client.rollout(&namespaced_name(key)).await.map_err(to_read_error)?;
        let registered = rollout.is_some_and(|rollout| rollout.value.spec.residency == ResidencyProof::Registered);
        let asked = servers.map(|whom| async move {
            let (at, status) = if registered {
                self.pod_client.status_or_models(&whom, || self.client.pod_uids()).await
            } else {
                self.pod_client.sidecar_status(&whom).await
            };
            let SidecarAddr { pod, name, .. } = whom;
            let (ready, unready_since, leaving) = (pod.ready, pod.unready_since, pod.terminating);
            (at, ObservedServer { name, uid: pod.uid.clone(), ready, unready_since, terminating: leaving, status })
        });
        Ok(collect_polled(join_all(asked).await))
    }
}

/// All of them, and when the oldest answer was asked for.
fn collect_polled<T>(all: Vec<(Option<Instant>, T)>) -> Polled<T> {
    let asked = all.iter().filter_map(|(at, _)| *at).min();
    Polled { responses: all.into_iter().map(|(_, answer)| answer).collect(), oldest_request: asked }
}
