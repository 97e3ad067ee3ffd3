//! Polls the API server's discovery for the kinds of rewrites that are installed. Every identity may read it.
//!
//! Invariant: a kind counts as removed only after two polls in a row did not find it, because an API server that has
//! just started may not serve all of its kinds yet.

use crate::{
    Cluster,
    api_error::{ApiError, ApiRequest},
    resource_kind::{self, ResourceKind},
};
use futures_util::{Stream, stream};
use rollora_api::rewrite::RewriteGroup;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::timeout};

/// Poll interval while a group is missing or after an error.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Poll interval while both groups are served.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// Delay before a missing group is polled again to confirm its removal.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);
/// Timeout of one discovery request.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Both API groups of rewrites, the current one first.
pub const REWRITE_GROUPS: [RewriteGroup; 2] = [RewriteGroup::Current, RewriteGroup::Legacy];

/// Returns whether the API server serves the kind.
pub(crate) async fn is_served(cluster: &Cluster, kind: ResourceKind) -> Result<bool, ApiError> {
    let resource = kind.group_resource();
    let request = ApiRequest { verb: "discover", resource: &resource, namespace: None };
    let client = cluster.kube_client();
    let api_version = kind.api_version();
    let answer = timeout(TIMEOUT, client.list_api_group_resources(&api_version)).await;
    match answer.map_err(|_| ApiError::Unavailable(format!("the API server did not respond within {TIMEOUT:?}")))? {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == kind.plural)),
        Err(error) => match ApiError::of(&error, request) {
            ApiError::NotFound(_) => Ok(false),
            // Discovery writes nothing, so every other failure can be retried.
            error => Err(ApiError::Unavailable(error.to_string())),
        },
    }
}

/// Returns the groups of rewrites that the API server serves now.
pub async fn served_groups(cluster: &Cluster) -> Result<BTreeSet<RewriteGroup>, ApiError> {
    let mut served = BTreeSet::new();
    for group in REWRITE_GROUPS {
        if is_served(cluster, resource_kind::rewrite(group)).await? {
            served.insert(group);
        }
    }
    Ok(served)
}

/// Streams the confirmed result of each poll. A notification of `rediscover` triggers a poll immediately.
pub(crate) fn poll_groups(
    cluster: Cluster,
    rediscover: Arc<Notify>,
) -> impl Stream<Item = Result<BTreeSet<RewriteGroup>, ApiError>> + Send + Unpin {
    Box::pin(stream::unfold(
        (cluster, GroupTracker::default(), rediscover),
        |(cluster, mut tracker, rediscover)| async move {
            loop {
                // Without a notification the timeout is the pause between two polls.
                drop(timeout(tracker.interval, rediscover.notified()).await);
                if let Some(groups) = tracker.handle_poll(served_groups(&cluster).await) {
                    return Some((groups, (cluster, tracker, rediscover)));
                }
            }
        },
    ))
}

/// Confirmed groups, and those whose removal is not confirmed yet.
#[derive(Debug, Default)]
struct GroupTracker {
    known: BTreeSet<RewriteGroup>,
    /// Known groups that the last poll did not find.
    unconfirmed: BTreeSet<RewriteGroup>,
    /// Time until the next poll.
    interval: Duration,
}

impl GroupTracker {
    /// Returns the result to report after this poll; `None` if a removal must be confirmed first.
    fn handle_poll(
        &mut self,
        poll: Result<BTreeSet<RewriteGroup>, ApiError>,
    ) -> Option<Result<BTreeSet<RewriteGroup>, ApiError>> {
        let served = match poll {
            Ok(served) => served,
            Err(error) => {
                self.unconfirmed.clear();
                self.interval = RETRY_INTERVAL;
                return Some(Err(error));
            }
        };
        let missing: BTreeSet<RewriteGroup> = self.known.difference(&served).copied().collect();
        if !missing.is_subset(&self.unconfirmed) {
            self.unconfirmed = missing;
            self.interval = CONFIRM_INTERVAL;
            return None;
        }
        self.unconfirmed.clear();
        self.interval = if served.len() == REWRITE_GROUPS.len() { POLL_INTERVAL } else { RETRY_INTERVAL };
        self.known.clone_from(&served);
        Some(Ok(served))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(groups: &[RewriteGroup]) -> BTreeSet<RewriteGroup> {
        groups.iter().copied().collect()
    }

    #[test]
    fn installed_kind_is_reported_by_first_poll() {
        let mut tracker = GroupTracker::default();
        assert_eq!(tracker.handle_poll(Ok(groups(&[]))), Some(Ok(groups(&[]))));
        assert_eq!(tracker.interval, RETRY_INTERVAL);
        assert_eq!(tracker.handle_poll(Ok(groups(&REWRITE_GROUPS))), Some(Ok(groups(&REWRITE_GROUPS))));
        assert_eq!(tracker.interval, POLL_INTERVAL);
    }

    #[test]
    fn kind_missing_in_one_poll_is_not_removed() {
        let mut tracker = GroupTracker::default();
        tracker.handle_poll(Ok(groups(&REWRITE_GROUPS)));
        assert_eq!(tracker.handle_poll(Ok(groups(&[RewriteGroup::Legacy]))), None);
        assert_eq!(tracker.interval, CONFIRM_INTERVAL);
        assert_eq!(tracker.handle_poll(Ok(groups(&REWRITE_GROUPS))), Some(Ok(groups(&REWRITE_GROUPS))));
        assert_eq!(tracker.handle_poll(Ok(groups(&[RewriteGroup::Legacy]))), None, "a poll that found it starts over");
        let left = groups(&[RewriteGroup::Legacy]);
        assert_eq!(tracker.handle_poll(Ok(left.clone())), Some(Ok(left)));
    }

    #[test]
    fn outage_keeps_known_groups() {
        let mut tracker = GroupTracker::default();
        tracker.handle_poll(Ok(groups(&REWRITE_GROUPS)));
        let outage = || Err(ApiError::Unavailable("away".to_owned()));
        assert_eq!(tracker.handle_poll(outage()), Some(outage()));
        assert_eq!(tracker.handle_poll(Ok(groups(&[]))), None, "the API server may have just started");
    }
}
