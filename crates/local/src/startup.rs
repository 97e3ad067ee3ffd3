//! The first moments: what every server holds is asked before the first request is taken, so that a restart refuses
//! nothing that was served before it. Connections wait meanwhile.

use rollora_api::sidecar_status::SidecarStatus;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch::Receiver,
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StartupTimeouts {
    /// For every server. A server that loads its adapters keeps nobody from the others for longer than this.
    pub(crate) all_known: Duration,
    /// For the first server that is ready, while news of any is still missing: who is refused before that might have
    /// been served by it.
    pub(crate) first_ready: Duration,
}

/// Waits until every sidecar knows how its server is, within the limits.
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
            // Who is not known by then is not counted on.
            Ok(None) | Err(_) => return,
        }
    }
}

/// Waits until a sidecar knows how its server is, and says whether requests can be sent there.
async fn wait_for_server(mut sidecar: Receiver<Arc<SidecarStatus>>) -> bool {
    // An error means that the process ends.
    sidecar.wait_for(|status| is_health_known(status)).await.is_ok_and(|status| status.readiness.ready)
}

/// Ready, or found to be away.
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
    async fn it_waits_for_the_slowest_of_the_servers() {
        let (first, at_first) = watch::channel(Arc::default());
        let (second, at_second) = watch::channel(unreachable());
        let start = Instant::now();
        let answers = async {
            tokio::time::sleep(ALL_KNOWN / 4).await;
            first.send_replace(ready());
            second.send_replace(ready());
        };
        tokio::join!(wait_for_servers(vec![at_first, at_second], TIMEOUTS), answers);
        assert_eq!(start.elapsed(), ALL_KNOWN / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_for_a_server_that_is_away_or_for_long_where_another_is_ready() {
        let start = Instant::now();
        wait_for_servers(vec![watch::channel(unreachable()).1, watch::channel(ready()).1], TIMEOUTS).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let (_loads_its_adapters, sidecar) = watch::channel(Arc::default());
        wait_for_servers(vec![sidecar, watch::channel(ready()).1], TIMEOUTS).await;
        assert_eq!(start.elapsed(), ALL_KNOWN);
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_is_ready_and_one_may_be_soon_it_waits_longer_but_not_for_ever() {
        let start = Instant::now();
        let (late, sidecar) = watch::channel(Arc::default());
        let (_never, other) = watch::channel(Arc::default());
        let answers = async {
            tokio::time::sleep(ALL_KNOWN * 3).await;
            late.send_replace(ready());
        };
        tokio::join!(wait_for_servers(vec![sidecar, other, watch::channel(unreachable()).1], TIMEOUTS), answers);
        assert_eq!(start.elapsed(), ALL_KNOWN * 3);
        let (_loads_its_adapters, sidecar) = watch::channel(Arc::default());
        wait_for_servers(vec![sidecar], TIMEOUTS).await;
        assert_eq!(start.elapsed(), ALL_KNOWN * 3 + TIMEOUTS.first_ready);
    }
}
