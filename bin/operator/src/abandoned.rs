//! Clears what Rollouts left behind that were deleted while no operator ran. Once, when this one begins to work: what is
//! deleted later it sees.

use rollora_api::operator_directives::OperatorDirectives;
use rollora_cluster::{Documents, Written};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How soon it is tried again; doubles up to [`LONGEST`].
const RETRY: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(5);

/// Tries until it has succeeded, or until `stop`.
pub(crate) async fn clear(documents: Documents, stop: CancellationToken) {
    let mut pause = RETRY;
    loop {
        let cleared = tokio::select! {
            () = stop.cancelled() => return,
            cleared = clear_all(&documents) => cleared,
        };
        let Err(why) = cleared else { return };
        tracing::warn!(again_in = ?pause, "what deleted Rollouts left in ConfigMaps could not be cleared: {why}");
        if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
            return;
        }
        pause = LONGEST.min(pause * 2);
    }
}

async fn clear_all(documents: &Documents) -> Result<(), String> {
    let empty = OperatorDirectives::default().to_yaml();
    let mut problem = None;
    for name in documents.abandoned().await.map_err(|error| error.to_string())? {
        match documents.clear_abandoned(&name, &empty).await.map_err(|error| error.to_string())? {
            None => {}
            Some(Written::Done(_)) => {
                tracing::info!(configmap = %name, "no Rollout names it any more: the operator's key says so too now");
            }
            Some(Written::Stale) => problem = Some(format!("{name}: somebody else wrote it meanwhile")),
            // A person has to allow it; to ask again and again would not.
            Some(Written::Refused(why)) => {
                tracing::warn!(configmap = %name, "the operator's key stays as it is: {why}");
            }
            Some(Written::Unavailable(why) | Written::Unknown(why)) => problem = Some(format!("{name}: {why}")),
        }
    }
    problem.map_or(Ok(()), Err)
}
