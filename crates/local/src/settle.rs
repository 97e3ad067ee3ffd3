//! The first moments: what every server holds is asked before the first request is taken, so that a restart refuses
//! nothing that was served before it. Connections wait meanwhile.

use rollora_api::sidecar_status::SidecarStatus;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch::Receiver, task::JoinSet, time::timeout};

/// Waits until every sidecar knows how its server is, but not longer than `limit`: a server that loads its adapters
/// keeps nobody from the others.
pub(crate) async fn settled(sidecars: Vec<Receiver<Arc<SidecarStatus>>>, limit: Duration) {
    let mut waiting: JoinSet<()> = sidecars.into_iter().map(known).collect();
    // Who is not known by then is not counted on.
    drop(timeout(limit, async { while waiting.join_next().await.is_some() {} }).await);
}

async fn known(mut sidecar: Receiver<Arc<SidecarStatus>>) {
    // An error means that the process ends.
    drop(sidecar.wait_for(|status| is_known(status)).await);
}

/// Ready, or found to be away.
fn is_known(status: &SidecarStatus) -> bool {
    status.readiness.ready || status.problem.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollora_api::sidecar_status::{Problem, Readiness};
    use tokio::{sync::watch, time::Instant};

    const LIMIT: Duration = Duration::from_secs(1);

    fn ready() -> Arc<SidecarStatus> {
        let readiness = Readiness { ready: true, ..Readiness::default() };
        Arc::new(SidecarStatus { readiness, ..SidecarStatus::default() })
    }

    fn away() -> Arc<SidecarStatus> {
        let problem = Problem { reason: "Unreachable".to_owned(), message: String::new() };
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
        tokio::join!(settled(vec![at_first, at_second], LIMIT), answers);
        assert_eq!(start.elapsed(), LIMIT / 4);
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_wait_for_a_server_that_is_away_or_for_long() {
        let start = Instant::now();
        settled(vec![watch::channel(away()).1, watch::channel(ready()).1], LIMIT).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
        let (_loads_its_adapters, sidecar) = watch::channel(Arc::default());
        settled(vec![sidecar], LIMIT).await;
        assert_eq!(start.elapsed(), LIMIT);
    }
}
