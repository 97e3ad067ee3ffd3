//! Tells on every rewrite whether it is in force, and by whom it is shadowed: in its status, which nobody upstream writes.
//!
//! Beside the operator, and of no consequence to it: weights do not wait for these writes. What is written is decided by
//! [`rollora_plan::acceptance`] from memory, so nothing is asked while nothing changes.

use crate::clock::now;
use rollora_api::rewrite::InferenceModelRewrite;
use rollora_cluster::{CachedClient, ObjectReadError, ObjectWriteOutcome};
use rollora_plan::rewrite_conditions::update_conditions;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Changes that come together are told together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How soon what could not be written is tried again; doubles up to [`LONGEST`].
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(5);
/// How often it is looked again at once.
const MAX_TRIES: usize = 4;

/// Tells until `stop`.
pub(crate) async fn run(documents: CachedClient, stop: CancellationToken) {
    let (mut due, mut pause) = (BTreeSet::new(), INITIAL_BACKOFF);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            stirred = documents.next_dirty_namespaces() => due.extend(stirred),
            () = tokio::time::sleep(pause), if !due.is_empty() => pause = MAX_BACKOFF.min(pause * 2),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(DEBOUNCE) => {}
        }
        let mut left = BTreeSet::new();
        for namespace in due {
            if let Err(why) = update_namespace(&documents, &namespace).await {
                tracing::warn!(namespace, "which rewrites are in force could not be told: {why}");
                left.insert(namespace);
            }
        }
        if left.is_empty() {
            pause = INITIAL_BACKOFF;
        }
        due = left;
    }
}

/// Writes what is other than it should be, and looks again where somebody wrote in between.
async fn update_namespace(documents: &CachedClient, namespace: &str) -> Result<(), String> {
    for _ in 0..MAX_TRIES {
        if write_changed_conditions(documents, namespace).await? {
            return Ok(());
        }
    }
    Err("somebody else keeps writing".to_owned())
}

/// Returns whether nothing is left to be written.
async fn write_changed_conditions(documents: &CachedClient, namespace: &str) -> Result<bool, String> {
    let words = |error: ObjectReadError| error.to_string();
    let pools = documents.pool_names(namespace).await.map_err(words)?;
    let found = documents.rewrites(namespace).await.map_err(words)?;
    let (versions, rewrites): (Vec<_>, Vec<_>) =
        found.into_iter().map(|found| (found.resource_version, found.value)).unzip();
    let (mut complete, mut problem) = (true, None);
    for rewrite in update_conditions(&rewrites, Some(&pools), now()) {
        let same = |other: &Arc<InferenceModelRewrite>| {
            other.api_version == rewrite.api_version && other.metadata.name == rewrite.metadata.name
        };
        let Some(index) = rewrites.iter().position(same) else { continue };
        match documents.write_rewrite_status(&rewrite, &versions[index]).await {
            ObjectWriteOutcome::Done(_) => {
                tracing::debug!(namespace, rewrite = rewrite.metadata.name, "its conditions were written");
            }
            ObjectWriteOutcome::Conflict => complete = false,
            ObjectWriteOutcome::Refused(why)
            | ObjectWriteOutcome::Unavailable(why)
            | ObjectWriteOutcome::Unknown(why) => problem = Some(why),
        }
    }
    problem.map_or(Ok(complete), Err)
}
