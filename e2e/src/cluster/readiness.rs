//! Waits for parts of the cluster: servers, Envoy and its endpoints, the operator.

use super::{
    ClusterEnvironment, EXT_PROC_DEPLOYMENT, OPERATOR_DEPLOYMENT, POLL_INTERVAL, START_TIMEOUT, VLLM_DEPLOYMENT,
    servers, servers::PodSupervisor,
};
use crate::harness::{Environment as _, Setup};
use anyhow::Result;
use futures_util::future::try_join_all;
use kube::ResourceExt as _;
use rollora_testbed::{clock, deployments, endpoint_picker, kubelet::ContainerHandle, pods, server::VllmServer};
use std::{collections::BTreeSet, net::IpAddr, time::Instant};

impl ClusterEnvironment {
    /// Waits until every server answers; [`Environment::servers`](crate::harness::Environment::servers) has them from
    /// then on.
    pub async fn wait_servers_ready(&mut self, setup: &Setup) -> Result<()> {
        self.discover_servers(setup).await?;
        try_join_all(self.servers.iter().map(VllmServer::wait_ready)).await.map(drop)
    }

    /// Waits until Envoy listens and has all its endpoints.
    pub async fn wait_gateway_ready(&self) -> Result<()> {
        self.gateway.wait_ready().await?;
        if self.picker.as_ref().is_none_or(|picker| !picker.replaces_ext_proc()) {
            self.wait_ext_proc_routed().await?;
        }
        if self.picker.is_some() {
            self.wait_endpoints(endpoint_picker::DEPLOYMENT, endpoint_picker::CLUSTER).await?;
        }
        Ok(())
    }

    /// Waits until every pod of the operator is Ready.
    pub async fn wait_operator_ready(&self) -> Result<()> {
        let ready = |environment: &Self| {
            let pods = deployments::active_pods(OPERATOR_DEPLOYMENT, &environment.watched_objects.pods);
            !pods.is_empty() && pods.iter().all(pods::is_ready)
        };
        self.wait_until("every pod of the operator is Ready", ready).await
    }

    /// Waits for the pods of vLLM, and attaches their servers.
    async fn discover_servers(&mut self, setup: &Setup) -> Result<()> {
        let wanted = setup.servers.len();
        let all_exist = |environment: &Self| {
            deployments::active_pods(VLLM_DEPLOYMENT, &environment.watched_objects.pods).len() == wanted
        };
        self.wait_until("every expected vLLM pod exists", all_exist).await?;
        for pod in deployments::active_pods(VLLM_DEPLOYMENT, &self.watched_objects.pods) {
            let server = self.attach_server(&pod.name_any()).await?;
            self.servers.push(server);
        }
        Ok(())
    }

    pub(super) async fn attach_server(&self, pod: &str) -> Result<VllmServer> {
        let container = self.kubelet.container(pod, "vllm").await?;
        // Restarts are up to the scenario, as in the environment on one machine.
        container.set_hold_on_exit(true);
        let address = (container.address(), servers::VLLM_PORT).into();
        let kind = self.server_kinds.kind_of(pod);
        let supervisor = Box::new(PodSupervisor::new(container, self.server_kinds.clone()));
        Ok(VllmServer::supervised(pod, address, self.api_key.as_deref(), &kind, supervisor))
    }

    pub(super) async fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let start = clock::now();
        while !holds(self) {
            self.wait_next_poll(start, what).await?;
        }
        Ok(())
    }

    /// Waits until Envoy routes through every pod of ext-proc, and through no other.
    pub async fn wait_ext_proc_routed(&self) -> Result<()> {
        self.wait_endpoints(EXT_PROC_DEPLOYMENT, EXT_PROC_DEPLOYMENT).await
    }

    /// Waits until Envoy no longer routes through a replica of ext-proc. After it was removed from the endpoints, it
    /// gets requests until Envoy's health check fails too.
    pub async fn wait_ext_proc_unrouted(&self, replica: &ContainerHandle) -> Result<()> {
        let (start, ip) = (clock::now(), IpAddr::V4(replica.address()));
        while self.gateway.may_route_to(EXT_PROC_DEPLOYMENT, ip).await {
            self.wait_next_poll(start, "Envoy stops routing through a replica of ext-proc").await?;
        }
        Ok(())
    }

    async fn wait_endpoints(&self, deployment: &str, cluster: &str) -> Result<()> {
        let start = clock::now();
        loop {
            let pods = deployments::active_pods(deployment, &self.watched_objects.pods);
            let wanted: BTreeSet<_> = pods.iter().filter_map(pods::pod_ip).map(IpAddr::V4).collect();
            if !wanted.is_empty() && wanted.len() == pods.len() && self.gateway.endpoints(cluster).await == wanted {
                return Ok(());
            }
            self.wait_next_poll(start, &format!("Envoy reaches every pod of {deployment}")).await?;
        }
    }

    pub(super) async fn wait_next_poll(&self, start: Instant, what: &str) -> Result<()> {
        if start.elapsed() > START_TIMEOUT {
            let (objects, logs) = (self.describe_objects().await, self.logs());
            anyhow::bail!("not within {START_TIMEOUT:?}: {what}\n{objects}\n{logs}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
        Ok(())
    }
}
