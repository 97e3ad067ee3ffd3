//! Clears what Rollouts left behind that were deleted while no operator ran. Once, when this one begins to work: what is
//! deleted later it sees.

use rollora_api::operator_directives::OperatorDirectives;
use rollora_cluster::{CachedClient, ObjectWriteOutcome};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How soon it is tried again; doubles up to [`LONGEST`].
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// Tries until it has succeeded, or until `stop`.
pub(crate) async fn clear(documents: CachedClient, stop: CancellationToken) {
    let mut pause = INITIAL_BACKOFF;
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
        pause = MAX_BACKOFF.min(pause * 2);
    }
}

async fn clear_all(documents: &CachedClient) -> Result<(), String> {
    let empty = OperatorDirectives::default().to_yaml();
    let mut problem = None;
    for name in documents.orphaned_config_maps().await.map_err(|error| error.to_string())? {
        match documents.clear_orphan(&name, &empty).await.map_err(|error| error.to_string())? {
            None => {}
            Some(ObjectWriteOutcome::Done(_)) => {
                tracing::info!(configmap = %name, "no Rollout names it any more: the operator's key says so too now");
            }
            Some(ObjectWriteOutcome::Conflict) => problem = Some(format!("{name}: somebody else wrote it meanwhile")),
            // A person has to allow it; to ask again and again would not.
            Some(ObjectWriteOutcome::Refused(why)) => {
                tracing::warn!(configmap = %name, "the operator's key stays as it is: {why}");
            }
            Some(ObjectWriteOutcome::Unavailable(why) | ObjectWriteOutcome::Unknown(why)) => {
                problem = Some(format!("{name}: {why}"))
            }
        }
    }
    problem.map_or(Ok(()), Err)
}
