//! Waiting until parts are there: servers, Envoy and its endpoints, the operator.

use super::{Cluster, EXT_PROC, LOOK, OPERATOR, START, VLLM, server, server::PodServer};
use crate::bed::{Place as _, Setup};
use anyhow::Result;
use futures_util::future::try_join_all;
use kube::ResourceExt as _;
use rollora_testbed::{clock, deployments, endpoint_picker, kubelet::ContainerHandle, pods, server::VllmServer};
use std::{collections::BTreeSet, net::IpAddr, time::Instant};

impl Cluster {
    /// Waits until every server answers; they are known then.
    pub async fn servers_answer(&mut self, setup: &Setup) -> Result<()> {
        self.find_servers(setup).await?;
        try_join_all(self.servers.iter().map(VllmServer::wait_ready)).await.map(drop)
    }

    /// Waits until Envoy has its endpoints and listens.
    pub async fn gateway_is_ready(&self) -> Result<()> {
        self.gateway.wait_ready().await?;
        if self.picker.as_ref().is_none_or(|picker| !picker.replaces_ext_proc()) {
            self.reaches_ext_proc().await?;
        }
        if self.picker.is_some() {
            self.reaches(endpoint_picker::DEPLOYMENT, endpoint_picker::CLUSTER).await?;
        }
        Ok(())
    }

    /// Waits until every pod of the operator is Ready.
    pub async fn operator_is_ready(&self) -> Result<()> {
        let ready = |bed: &Self| {
            let pods = deployments::active_pods(OPERATOR, &bed.watched.pods);
            !pods.is_empty() && pods.iter().all(pods::is_ready)
        };
        self.wait("every pod of the operator is Ready", ready).await
    }

    /// Waits for the pods of vLLM, whose servers are then known.
    async fn find_servers(&mut self, setup: &Setup) -> Result<()> {
        let wanted = setup.servers.len();
        let there = |bed: &Self| deployments::active_pods(VLLM, &bed.watched.pods).len() == wanted;
        self.wait("there are as many pods of vLLM as wanted", there).await?;
        for pod in deployments::active_pods(VLLM, &self.watched.pods) {
            let server = self.server(&pod.name_any()).await?;
            self.servers.push(server);
        }
        Ok(())
    }

    pub(super) async fn server(&self, pod: &str) -> Result<VllmServer> {
        let container = self.kubelet.container(pod, "vllm").await?;
        // As on one machine: who restarts what died is the scenario.
        container.set_hold_on_exit(true);
        let address = (container.address(), server::PORT).into();
        let kind = self.kinds.of(pod);
        let keeper = Box::new(PodServer::new(container, self.kinds.clone()));
        Ok(VllmServer::supervised(pod, address, self.api_key.as_deref(), &kind, keeper))
    }

    pub(super) async fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let start = clock::now();
        while !holds(self) {
            self.still_in_time(start, what).await?;
        }
        Ok(())
    }

    /// Waits until Envoy sends requests by way of every pod of ext-proc, and no other.
    pub async fn reaches_ext_proc(&self) -> Result<()> {
        self.reaches(EXT_PROC, EXT_PROC).await
    }

    /// Waits until Envoy sends no request by way of a replica of ext-proc any more: one that was taken away gets some
    /// until it was found to be ill too.
    pub async fn leaves_ext_proc(&self, replica: &ContainerHandle) -> Result<()> {
        let (start, ip) = (clock::now(), IpAddr::V4(replica.address()));
        while self.gateway.may_route_to(EXT_PROC, ip).await {
            self.still_in_time(start, "Envoy leaves a replica of ext-proc").await?;
        }
        Ok(())
    }

    async fn reaches(&self, deployment: &str, cluster: &str) -> Result<()> {
        let start = clock::now();
        loop {
            let pods = deployments::active_pods(deployment, &self.watched.pods);
            let wanted: BTreeSet<_> = pods.iter().filter_map(pods::pod_ip).map(IpAddr::V4).collect();
            if !wanted.is_empty() && wanted.len() == pods.len() && self.gateway.endpoints(cluster).await == wanted {
                return Ok(());
            }
            self.still_in_time(start, &format!("Envoy reaches every pod of {deployment}")).await?;
        }
    }

    pub(super) async fn still_in_time(&self, start: Instant, what: &str) -> Result<()> {
        if start.elapsed() > START {
            let (objects, logs) = (self.objects().await, self.logs());
            anyhow::bail!("after {START:?} it is not so that {what}\n{objects}\n{logs}");
        }
        tokio::time::sleep(LOOK).await;
        Ok(())
    }
}
