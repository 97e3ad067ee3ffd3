//! Deaths that only a cluster knows, and what they may cost a client.

use super::{Cluster, EXT_PROC};
use crate::bed::Bed;
use anyhow::{Context as _, Result};
use rollora_testbed::clock;
use std::{net::IpAddr, time::Duration};

/// What Envoy calls the servers.
const VLLM_CLUSTER: &str = "vllm";
/// An operator that could not renew its Lease has left by then.
const LEFT: Duration = Duration::from_secs(1);

impl Bed<Cluster> {
    /// Ends a replica of ext-proc as `kill -9` does, and starts it again after this time. A request may be in its hands
    /// until Envoy has found out that it is dead, or until it is back, whatever is first.
    pub async fn kill_ext_proc(&mut self, index: usize, away: Duration) -> Result<()> {
        let replica = self.place.ext_procs().get(index).cloned().context("there is no such replica")?;
        let ip = IpAddr::V4(replica.address());
        let from = clock::now();
        replica.kill_and_hold();
        while from.elapsed() < away && self.place.gateway.may_route_to(EXT_PROC, ip).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let found_out = (!self.place.gateway.may_route_to(EXT_PROC, ip).await).then(clock::now);
        tokio::time::sleep(away.saturating_sub(from.elapsed())).await;
        replica.release();
        self.place.wait("the replica is Ready again", |_| replica.is_ready()).await?;
        self.place.reaches_ext_proc().await?;
        self.note_outage_of_server(from, found_out.unwrap_or_else(clock::now));
        Ok(())
    }

    /// Ends a server as `kill -9` does, and starts it again after this time at the soonest: the simulator would be back
    /// before a kubelet or Envoy could notice, and vLLM takes much longer than either.
    pub async fn kill_vllm(&mut self, index: usize, away: Duration) -> Result<()> {
        let container = self.place.kubelet.container(&self.place.servers[index].name(), "vllm").await?;
        let ip = IpAddr::V4(container.address());
        let from = clock::now();
        self.kill_server(index);
        while self.place.gateway.endpoints(VLLM_CLUSTER).await.contains(&ip) {
            self.place.still_in_time(from, "Envoy sends nothing to the dead server").await?;
        }
        tokio::time::sleep(away.saturating_sub(from.elapsed())).await;
        self.start_server(index).await
    }

    /// Ends the sidecar beside a server as `kill -9` does, and starts it again after this time. No client has to do
    /// with it.
    pub async fn kill_sidecar(&mut self, index: usize, away: Duration) -> Result<()> {
        let sidecar = self.place.sidecar(index)?;
        sidecar.kill_and_hold();
        tokio::time::sleep(away).await;
        sidecar.release();
        self.place.wait("the sidecar runs again", |_| sidecar.is_running()).await
    }

    /// Ends the API server as a power cut does, and starts it again after this time. An operator that gave up its Lease
    /// meanwhile is started again at once: a kubelet would wait longer each time.
    pub async fn kill_api_server(&mut self, away: Duration) -> Result<()> {
        self.place.kill_api_server()?;
        tokio::time::sleep(away).await;
        self.place.start_api_server().await?;
        self.start_operator().await
    }

    /// The API server takes connections and answers none for this time. An operator that gave up its Lease meanwhile
    /// is started again at once.
    pub async fn freeze_api_server(&mut self, away: Duration) -> Result<()> {
        self.place.plane().freeze_api_server();
        tokio::time::sleep(away).await;
        self.place.plane().thaw_api_server();
        tokio::time::sleep(LEFT).await;
        self.start_operator().await
    }
}
