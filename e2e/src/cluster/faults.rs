//! Faults that exist on a cluster only, and what they may cost a client.

use super::{ClusterEnvironment, EXT_PROC_DEPLOYMENT};
use crate::harness::Harness;
use anyhow::{Context as _, Result};
use rollora_testbed::clock;
use std::{net::IpAddr, time::Duration};

/// Name of the servers' cluster in Envoy's configuration.
const VLLM_CLUSTER: &str = "vllm";
/// An operator that could not renew its Lease exits within this time.
const LEASE_LOSS_EXIT: Duration = Duration::from_secs(1);

impl Harness<ClusterEnvironment> {
    /// Kills a replica of ext-proc (`kill -9`), and starts it again after `away`. Requests may be in flight at the
    /// replica until Envoy finds that it is dead, or until it is back, whichever is first.
    pub async fn kill_ext_proc(&mut self, index: usize, away: Duration) -> Result<()> {
        let replica = self.environment.ext_procs().get(index).cloned().context("there is no such replica")?;
        let ip = IpAddr::V4(replica.address());
        let from = clock::now();
        replica.kill_and_hold();
        while from.elapsed() < away && self.environment.gateway.may_route_to(EXT_PROC_DEPLOYMENT, ip).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let unrouted_at = (!self.environment.gateway.may_route_to(EXT_PROC_DEPLOYMENT, ip).await).then(clock::now);
        tokio::time::sleep(away.saturating_sub(from.elapsed())).await;
        replica.release();
        self.environment.wait_until("the replica is Ready again", |_| replica.is_ready()).await?;
        self.environment.wait_ext_proc_routed().await?;
        self.record_server_outage(from, unrouted_at.unwrap_or_else(clock::now));
        Ok(())
    }

    /// Kills a server (`kill -9`), and starts it again after `away` at the earliest: the simulator would otherwise be
    /// back before a kubelet or Envoy could notice, and vLLM takes much longer to start than either.
    pub async fn kill_vllm(&mut self, index: usize, away: Duration) -> Result<()> {
        let container = self.environment.kubelet.container(&self.environment.servers[index].name(), "vllm").await?;
        let ip = IpAddr::V4(container.address());
        let from = clock::now();
        self.kill_server(index);
        while self.environment.gateway.endpoints(VLLM_CLUSTER).await.contains(&ip) {
            self.environment.wait_next_poll(from, "Envoy sends nothing to the dead server").await?;
        }
        tokio::time::sleep(away.saturating_sub(from.elapsed())).await;
        self.start_server(index).await
    }

    /// Kills the sidecar of a server (`kill -9`), and starts it again after `away`. This costs no client a request.
    pub async fn kill_sidecar(&mut self, index: usize, away: Duration) -> Result<()> {
        let sidecar = self.environment.sidecar(index)?;
        sidecar.kill_and_hold();
        tokio::time::sleep(away).await;
        sidecar.release();
        self.environment.wait_until("the sidecar runs again", |_| sidecar.is_running()).await
    }

    /// Kills the API server, and starts it again after `away`. An operator that gave up its Lease meanwhile is
    /// restarted immediately: a kubelet's backoff would grow each time.
    pub async fn kill_api_server(&mut self, away: Duration) -> Result<()> {
        self.environment.kill_api_server()?;
        tokio::time::sleep(away).await;
        self.environment.start_api_server().await?;
        self.start_operator().await
    }

    /// Stops the API server for `away`: it accepts connections and answers none. An operator that gave up its Lease
    /// meanwhile is restarted immediately.
    pub async fn freeze_api_server(&mut self, away: Duration) -> Result<()> {
        self.environment.control_plane().freeze_api_server();
        tokio::time::sleep(away).await;
        self.environment.control_plane().thaw_api_server();
        tokio::time::sleep(LEASE_LOSS_EXIT).await;
        self.start_operator().await
    }
}
