//! The port `Fleet` on a cluster: polls all sidecars and routers concurrently, each with a timeout.

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

/// The servers and routers of a cluster, found by the pod watches of the client.
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
        let ConfigMapReaders { other_pools, unpooled_pods } = found.map_err(to_read_error)?;
        let pooled = other_pools.iter().flat_map(|(pool, pods)| pod_discovery::pool_servers(pool, pods));
        self.poll_servers(key, pooled.chain(pod_discovery::unpooled_servers(&unpooled_pods))).await
    }

    async fn routers(
        &self,
        key: &RolloutKey,
        pool: &PoolRef,
        _: &ModelName,
    ) -> Result<Polled<ObservedRouter>, ReadError> {
        let pods = self.client.routers(&in_same_namespace(key, &pool.name)).await.map_err(to_read_error)?;
        let polls = pod_discovery::running_pods(&pods).map(|(pod, ip)| async move {
            let (requested_at, report) = self.pod_client.router_rules(pod, ip).await;
            (requested_at, ObservedRouter { name: pod.name.clone(), report })
        });
        Ok(collect_polled(join_all(polls).await))
    }
}

impl ClusterFleet {
    /// Polls all of these servers, with the proof of residency that the Rollout requires.
    async fn poll_servers<'a>(
        &self,
        key: &RolloutKey,
        servers: impl Iterator<Item = SidecarAddr<'a>>,
    ) -> Result<Polled<ObservedServer>, ReadError> {
        let rollout = self.client.rollout(&namespaced_name(key)).await.map_err(to_read_error)?;
        let registered = rollout.is_some_and(|rollout| rollout.value.spec.residency == ResidencyProof::Registered);
        let polls = servers.map(|sidecar| async move {
            let (requested_at, status) = if registered {
                self.pod_client.status_or_models(&sidecar, || self.client.pod_uids()).await
            } else {
                self.pod_client.sidecar_status(&sidecar).await
            };
            let SidecarAddr { pod, name, .. } = sidecar;
            let (ready, unready_since, terminating) = (pod.ready, pod.unready_since, pod.terminating);
            (requested_at, ObservedServer { name, uid: pod.uid.clone(), ready, unready_since, terminating, status })
        });
        Ok(collect_polled(join_all(polls).await))
    }
}

/// Collects the responses, and when the oldest of them was requested.
fn collect_polled<T>(all: Vec<(Option<Instant>, T)>) -> Polled<T> {
    let oldest_request = all.iter().filter_map(|(requested_at, _)| *requested_at).min();
    Polled { responses: all.into_iter().map(|(_, response)| response).collect(), oldest_request }
}
