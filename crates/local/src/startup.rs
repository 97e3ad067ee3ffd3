//! Startup: the gateway takes the first request once the state of every server is known, so that a restart refuses
//! nothing that was served before it. Connections wait meanwhile.

use rollora_api::sidecar_status::SidecarStatus;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch::Receiver,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// Limits of the wait, counted from the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StartupTimeouts {
    /// Limit once a server is ready. A server that still loads its adapters delays the others no longer.
    pub(crate) all_known: Duration,
    /// Limit while no server is ready and the state of some is unknown: a request that is refused before that might
    /// have been served by one of them.
    pub(crate) first_ready: Duration,
}

/// Waits until every sidecar knows the state of its server, within the limits.
pub(crate) async fn wait_for_servers(sidecars: Vec<Receiver<Arc<SidecarStatus>>>, limits: StartupTimeouts) {
    let start = Instant::now();
    let mut known = 0;
    let mut ready = false;
    let count = sidecars.len();
    let mut waiting: JoinSet<bool> = sidecars.into_iter().map(wait_for_server).collect();
    while known < count {
        let limit = if ready { limits.all_known } else { limits.first_ready };
        match timeout_at(start + limit, waiting.join_next()).await {
            Ok(Some(found)) => {
                known += 1;
                ready |= found.unwrap_or_default();
            }
            // A server whose state is unknown by then gets no requests for now.
            Ok(None) | Err(_) => return,
        }
    }
}

/// Waits until a sidecar knows the state of its server, and returns whether the server is ready.
async fn wait_for_server(mut sidecar: Receiver<Arc<SidecarStatus>>) -> bool {
    // An error means that the process ends.
    sidecar.wait_for(|status| is_health_known(status)).await.is_ok_and(|status| status.readiness.ready)
}

/// Whether the server was found to be ready, or to have a problem such as being unreachable.
fn is_health_known(status: &SidecarStatus) -> bool {
    status.readiness.ready || status.problem.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::sidecar_status::{ReadinessStatus, ReportedError};
    use tokio::sync::watch;

    const ALL_KNOWN: Duration = Duration::from_secs(1);
    const TIMEOUTS: StartupTimeouts = StartupTimeouts { all_known: ALL_KNOWN, first_ready: Duration::from_secs(10) };

    fn ready() -> Arc<SidecarStatus> {
        let readiness = ReadinessStatus { ready: true, ..ReadinessStatus::default() };
        Arc::new(SidecarStatus { readiness, ..SidecarStatus::default() })
    }

    fn unreachable() -> Arc<SidecarStatus> {
        let problem = ReportedError { reason: "Unreachable".to_owned(), message: String::new() };
        Arc::new(SidecarStatus { problem: Some(problem), ..SidecarStatus::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn startup_waits_for_the_slowest_server() {
        let (first, first_status) = watch::channel(Arc::default());
        let (second, second_status) = watch::channel(unreachable());
        let start = Instant::now();
        let reports = async {
            tokio::time::sleep(ALL_KNOWN / 4).await;
            first.send_replace(ready());
            second.send_replace(ready());
        };
        tokio::join!(wait_for_servers(vec![first_status, second_status], TIMEOUTS), reports);
        assert_eq!(start.elapsed(), ALL_KNOWN / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn startup_waits_briefly_for_others_once_a_server_is_ready() {
        let start = Instant::now();
        wait_for_servers(vec![watch::channel(unreachable()).1, watch::channel(ready()).1], TIMEOUTS).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let (_still_loading, sidecar) = watch::channel(Arc::default());
        wait_for_servers(vec![sidecar, watch::channel(ready()).1], TIMEOUTS).await;
        assert_eq!(start.elapsed(), ALL_KNOWN);
    }

    #[tokio::test(start_paused = true)]
    async fn startup_waits_longer_while_no_server_is_ready() {
        let start = Instant::now();
        let (late, sidecar) = watch::channel(Arc::default());
        let (_never, other) = watch::channel(Arc::default());
        let reports = async {
            tokio::time::sleep(ALL_KNOWN * 3).await;
            late.send_replace(ready());
        };
        tokio::join!(wait_for_servers(vec![sidecar, other, watch::channel(unreachable()).1], TIMEOUTS), reports);
        assert_eq!(start.elapsed(), ALL_KNOWN * 3);
        let (_still_loading, sidecar) = watch::channel(Arc::default());
        wait_for_servers(vec![sidecar], TIMEOUTS).await;
        assert_eq!(start.elapsed(), ALL_KNOWN * 3 + TIMEOUTS.first_ready);
    }
}
