//! Tells on every rewrite whether it is in force, and by whom it is shadowed: in its status, which nobody upstream writes.
//!
//! Beside the operator, and of no consequence to it: weights do not wait for these writes. What is written is decided by
//! [`rollora_plan::acceptance`] from memory, so nothing is asked while nothing changes.

use crate::clock::now;
use rollora_api::rewrite::InferenceModelRewrite;
use rollora_cluster::{Documents, ReadError, Written};
use rollora_plan::acceptance::accept;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Changes that come together are told together.
const SETTLE: Duration = Duration::from_millis(200);
/// How soon what could not be written is tried again; doubles up to [`LONGEST`].
const RETRY: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_mins(5);
/// How often it is looked again at once.
const TRIES: usize = 4;

/// Tells until `stop`.
pub(crate) async fn tell(documents: Documents, stop: CancellationToken) {
    let (mut due, mut pause) = (BTreeSet::new(), RETRY);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            stirred = documents.stirred() => due.extend(stirred),
            () = tokio::time::sleep(pause), if !due.is_empty() => pause = LONGEST.min(pause * 2),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SETTLE) => {}
        }
        let mut left = BTreeSet::new();
        for namespace in due {
            if let Err(why) = tell_namespace(&documents, &namespace).await {
                tracing::warn!(namespace, "which rewrites are in force could not be told: {why}");
                left.insert(namespace);
            }
        }
        if left.is_empty() {
            pause = RETRY;
        }
        due = left;
    }
}

/// Writes what is other than it should be, and looks again where somebody wrote in between.
async fn tell_namespace(documents: &Documents, namespace: &str) -> Result<(), String> {
    for _ in 0..TRIES {
        if write_what_differs(documents, namespace).await? {
            return Ok(());
        }
    }
    Err("somebody else keeps writing".to_owned())
}

/// Returns whether nothing is left to be written.
async fn write_what_differs(documents: &Documents, namespace: &str) -> Result<bool, String> {
    let words = |error: ReadError| error.to_string();
    let pools = documents.pool_names(namespace).await.map_err(words)?;
    let found = documents.rewrites(namespace).await.map_err(words)?;
    let (versions, rewrites): (Vec<_>, Vec<_>) = found.into_iter().map(|found| (found.version, found.value)).unzip();
    let (mut complete, mut problem) = (true, None);
    for rewrite in accept(&rewrites, Some(&pools), now()) {
        let same = |other: &Arc<InferenceModelRewrite>| {
            other.api_version == rewrite.api_version && other.metadata.name == rewrite.metadata.name
        };
        let Some(index) = rewrites.iter().position(same) else { continue };
        match documents.write_rewrite_status(&rewrite, &versions[index]).await {
            Written::Done(_) => {
                tracing::debug!(namespace, rewrite = rewrite.metadata.name, "its conditions were written");
            }
            Written::Stale => complete = false,
            Written::Refused(why) | Written::Unavailable(why) | Written::Unknown(why) => problem = Some(why),
        }
    }
    problem.map_or(Ok(complete), Err)
}
