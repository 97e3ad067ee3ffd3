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
pub(crate) struct Limits {
    /// For every server. A server that loads its adapters keeps nobody from the others for longer than this.
    pub(crate) each: Duration,
    /// For the first server that is ready, while news of any is still missing: who is refused before that might have
    /// been served by it.
    pub(crate) first: Duration,
}

/// Waits until every sidecar knows how its server is, within the limits.
pub(crate) async fn settled(sidecars: Vec<Receiver<Arc<SidecarStatus>>>, limits: Limits) {
    let start = Instant::now();
    let mut known = 0;
    let mut ready = false;
    let count = sidecars.len();
    let mut waiting: JoinSet<bool> = sidecars.into_iter().map(is_ready).collect();
    while known < count {
        let limit = if ready { limits.each } else { limits.first };
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
async fn is_ready(mut sidecar: Receiver<Arc<SidecarStatus>>) -> bool {
    // An error means that the process ends.
    sidecar.wait_for(|status| is_known(status)).await.is_ok_and(|status| status.readiness.ready)
}

/// Ready, or found to be away.
fn is_known(status: &SidecarStatus) -> bool {
    status.readiness.ready || status.problem.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::sidecar_status::{ReadinessStatus, ReportedError};
    use tokio::sync::watch;

    const LIMIT: Duration = Duration::from_secs(1);
    const LIMITS: Limits = Limits { each: LIMIT, first: Duration::from_secs(10) };

    fn ready() -> Arc<SidecarStatus> {
        let readiness = ReadinessStatus { ready: true, ..ReadinessStatus::default() };
        Arc::new(SidecarStatus { readiness, ..SidecarStatus::default() })
    }

    fn away() -> Arc<SidecarStatus> {
        let problem = ReportedError { reason: "Unreachable".to_owned(), message: String::new() };
        Arc::new(SidecarStatus { problem: Some(problem), ..SidecarStatus::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_the_slowest_of_the_servers() {
        let (first, at_first) = watch::channel(Arc::default());
        let (second, at_second) = watch::channel(away());
        let start = Instant::now();
        let answers = async {
            tokio::time::sleep(LIMIT / 4).await;
            first.send_replace(ready());
            second.send_replace(ready());
        };
        tokio::join!(settled(vec![at_first, at_second], LIMITS), answers);
        assert_eq!(start.elapsed(), LIMIT / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_for_a_server_that_is_away_or_for_long_where_another_is_ready() {
        let start = Instant::now();
        settled(vec![watch::channel(away()).1, watch::channel(ready()).1], LIMITS).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let (_loads_its_adapters, sidecar) = watch::channel(Arc::default());
        settled(vec![sidecar, watch::channel(ready()).1], LIMITS).await;
        assert_eq!(start.elapsed(), LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn while_nobody_is_ready_and_one_may_be_soon_it_waits_longer_but_not_for_ever() {
        let start = Instant::now();
        let (late, sidecar) = watch::channel(Arc::default());
        let (_never, other) = watch::channel(Arc::default());
        let answers = async {
            tokio::time::sleep(LIMIT * 3).await;
            late.send_replace(ready());
        };
        tokio::join!(settled(vec![sidecar, other, watch::channel(away()).1], LIMITS), answers);
        assert_eq!(start.elapsed(), LIMIT * 3);
        let (_loads_its_adapters, sidecar) = watch::channel(Arc::default());
        settled(vec![sidecar], LIMITS).await;
        assert_eq!(start.elapsed(), LIMIT * 3 + LIMITS.first);
    }
}
