//! Writes conditions into the status of every rewrite: whether its rules are active, and by which rewrite they are
//! shadowed. No upstream component writes them.
//!
//! Runs independently of the reconcile loop: changes of weights do not wait for these writes. The conditions are
//! computed by [`rollora_plan::rewrite_conditions`] from the caches, so nothing is requested while nothing changes.

use crate::clock::now;
use rollora_api::rewrite::InferenceModelRewrite;
use rollora_cluster::{CachedClient, ObjectReadError, ObjectWriteOutcome};
use rollora_plan::rewrite_conditions::update_conditions;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Changes within this time are handled together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// First delay before failed writes are retried; doubles up to [`MAX_BACKOFF`].
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(5);
/// Maximum number of attempts in a row after conflicts.
const MAX_TRIES: usize = 4;

/// Keeps the conditions up to date until `stop` fires.
pub(crate) async fn run(client: CachedClient, stop: CancellationToken) {
    let (mut due, mut delay) = (BTreeSet::new(), INITIAL_BACKOFF);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            dirty = client.next_dirty_namespaces() => due.extend(dirty),
            () = tokio::time::sleep(delay), if !due.is_empty() => delay = MAX_BACKOFF.min(delay * 2),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(DEBOUNCE) => {}
        }
        let mut failed = BTreeSet::new();
        for namespace in due {
            if let Err(why) = update_namespace(&client, &namespace).await {
                tracing::warn!(namespace, "cannot write the conditions of rewrites: {why}");
                failed.insert(namespace);
            }
        }
        if failed.is_empty() {
            delay = INITIAL_BACKOFF;
        }
        due = failed;
    }
}

/// Writes the conditions that differ, and reads again after a conflict.
async fn update_namespace(client: &CachedClient, namespace: &str) -> Result<(), String> {
    for _ in 0..MAX_TRIES {
        if write_changed_conditions(client, namespace).await? {
            return Ok(());
        }
    }
    Err("another writer keeps changing the rewrites".to_owned())
}

/// Writes the conditions that differ once. Returns whether all of them were written.
async fn write_changed_conditions(client: &CachedClient, namespace: &str) -> Result<bool, String> {
    let message = |error: ObjectReadError| error.to_string();
    let pools = client.pool_names(namespace).await.map_err(message)?;
    let found = client.rewrites(namespace).await.map_err(message)?;
    let (versions, rewrites): (Vec<_>, Vec<_>) =
        found.into_iter().map(|found| (found.resource_version, found.value)).unzip();
    let (mut complete, mut problem) = (true, None);
    for rewrite in update_conditions(&rewrites, Some(&pools), now()) {
        let is_same = |other: &Arc<InferenceModelRewrite>| {
            other.api_version == rewrite.api_version && other.metadata.name == rewrite.metadata.name
        };
        let Some(index) = rewrites.iter().position(is_same) else { continue };
        match client.write_rewrite_status(&rewrite, &versions[index]).await {
            ObjectWriteOutcome::Done(_) => {
                tracing::debug!(namespace, rewrite = rewrite.metadata.name, "wrote the conditions of the rewrite");
            }
            ObjectWriteOutcome::Conflict => complete = false,
            ObjectWriteOutcome::Refused(why)
            | ObjectWriteOutcome::Unavailable(why)
            | ObjectWriteOutcome::Unknown(why) => problem = Some(why),
        }
    }
    problem.map_or(Ok(complete), Err)
}
