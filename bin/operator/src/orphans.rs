//! Clears the operator directives of Rollouts that were deleted while no operator ran. Runs once after this replica has
//! acquired the Lease; later deletions are observed by the reconcile loop.

use rollora_api::operator_directives::OperatorDirectives;
use rollora_cluster::{CachedClient, ObjectWriteOutcome};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// First delay before a retry; doubles up to [`MAX_BACKOFF`].
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(5);

/// Retries until it has succeeded, or until `stop` fires.
pub(crate) async fn clear(client: CachedClient, stop: CancellationToken) {
    let mut delay = INITIAL_BACKOFF;
    loop {
        let cleared = tokio::select! {
            () = stop.cancelled() => return,
            cleared = clear_all(&client) => cleared,
        };
        let Err(why) = cleared else { return };
        tracing::warn!(retry_in = ?delay, "cannot clear the operator directives of deleted Rollouts: {why}");
        if tokio::time::timeout(delay, stop.cancelled()).await.is_ok() {
            return;
        }
        delay = MAX_BACKOFF.min(delay * 2);
    }
}

async fn clear_all(client: &CachedClient) -> Result<(), String> {
    let empty = OperatorDirectives::default().to_yaml();
    let mut problem = None;
    for name in client.orphaned_config_maps().await.map_err(|error| error.to_string())? {
        match client.clear_orphan(&name, &empty).await.map_err(|error| error.to_string())? {
            None => {}
            Some(ObjectWriteOutcome::Done(_)) => {
                tracing::info!(configmap = %name, "cleared the operator directives of an unreferenced ConfigMap");
            }
            Some(ObjectWriteOutcome::Conflict) => {
                problem = Some(format!("{name}: changed by another writer meanwhile"));
            }
            // Only a person can fix a refused write, so it is not retried.
            Some(ObjectWriteOutcome::Refused(why)) => {
                tracing::warn!(configmap = %name, "cannot clear the operator directives of the ConfigMap: {why}");
            }
            Some(ObjectWriteOutcome::Unavailable(why) | ObjectWriteOutcome::Unknown(why)) => {
                problem = Some(format!("{name}: {why}"));
            }
        }
    }
    problem.map_or(Ok(()), Err)
}
