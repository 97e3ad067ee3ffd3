//! Deaths that only a cluster knows, and what they may cost a client.

use super::{ClusterEnvironment, EXT_PROC_DEPLOYMENT};
use crate::harness::Harness;
use anyhow::{Context as _, Result};
use rollora_testbed::clock;
use std::{net::IpAddr, time::Duration};

/// What Envoy calls the servers.
const VLLM_CLUSTER: &str = "vllm";
/// An operator that could not renew its Lease has left by then.
const LEASE_LOSS_EXIT: Duration = Duration::from_secs(1);

impl Harness<ClusterEnvironment> {
    /// Ends a replica of ext-proc as `kill -9` does, and starts it again after this time. A request may be in its hands
    /// until Envoy has found out that it is dead, or until it is back, whatever is first.
    pub async fn kill_ext_proc(&mut self, index: usize, away: Duration) -> Result<()> {
        let replica = self.environment.ext_procs().get(index).cloned().context("there is no such replica")?;
        let ip = IpAddr::V4(replica.address());
        let from = clock::now();
        replica.kill_and_hold();
        while from.elapsed() < away && self.environment.gateway.may_route_to(EXT_PROC_DEPLOYMENT, ip).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let found_out = (!self.environment.gateway.may_route_to(EXT_PROC_DEPLOYMENT, ip).await).then(clock::now);
        tokio::time::sleep(away.saturating_sub(from.elapsed())).await;
        replica.release();
        self.environment.wait_until("the replica is Ready again", |_| replica.is_ready()).await?;
        self.environment.wait_ext_proc_routed().await?;
        self.record_server_outage(from, found_out.unwrap_or_else(clock::now));
        Ok(())
    }

    /// Ends a server as `kill -9` does, and starts it again after this time at the soonest: the simulator would be back
    /// before a kubelet or Envoy could notice, and vLLM takes much longer than either.
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

    /// Ends the sidecar beside a server as `kill -9` does, and starts it again after this time. No client has to do
    /// with it.
    pub async fn kill_sidecar(&mut self, index: usize, away: Duration) -> Result<()> {
        let sidecar = self.environment.sidecar(index)?;
        sidecar.kill_and_hold();
        tokio::time::sleep(away).await;
        sidecar.release();
        self.environment.wait_until("the sidecar runs again", |_| sidecar.is_running()).await
    }

    /// Ends the API server as a power cut does, and starts it again after this time. An operator that gave up its Lease
    /// meanwhile is started again at once: a kubelet would wait longer each time.
    pub async fn kill_api_server(&mut self, away: Duration) -> Result<()> {
        self.environment.kill_api_server()?;
        tokio::time::sleep(away).await;
        self.environment.start_api_server().await?;
        self.start_operator().await
    }

    /// The API server takes connections and answers none for this time. An operator that gave up its Lease meanwhile
    /// is started again at once.
    pub async fn freeze_api_server(&mut self, away: Duration) -> Result<()> {
        self.environment.control_plane().freeze_api_server();
        tokio::time::sleep(away).await;
        self.environment.control_plane().thaw_api_server();
        tokio::time::sleep(LEASE_LOSS_EXIT).await;
        self.start_operator().await
    }
}
