//! Which of the kinds that others install are there now: asked of the API server's discovery, which every identity
//! may read, and asked again for as long as the program runs.
//!
//! Invariant: a kind counts as removed only when two looks in a row did not find it: an API server that has just
//! started may not know all of its kinds yet.

use crate::{
    Cluster,
    api_error::{ApiError, ApiRequest},
    resource_kind::{self, ResourceKind},
};
use futures_util::{Stream, stream};
use rollora_api::rewrite::RewriteGroup;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::timeout};

/// How soon it is asked again while something is missing or the API server does not answer.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// How soon it is asked again otherwise.
const POLL_INTERVAL: Duration = Duration::from_secs(10);
/// How soon what was there before and is not found is looked for again.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);
/// How long one answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Both groups of rewrites.
pub const REWRITE_GROUPS: [RewriteGroup; 2] = [RewriteGroup::Current, RewriteGroup::Legacy];

/// Whether the kind is served.
pub(crate) async fn is_served(cluster: &Cluster, kind: ResourceKind) -> Result<bool, ApiError> {
    let resource = kind.group_resource();
    let request = ApiRequest { verb: "discover", resource: &resource, namespace: None };
    let client = cluster.kube_client();
    let api_version = kind.api_version();
    let answer = timeout(TIMEOUT, client.list_api_group_resources(&api_version)).await;
    match answer.map_err(|_| ApiError::Unavailable(format!("the API server does not answer within {TIMEOUT:?}")))? {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == kind.plural)),
        Err(error) => match ApiError::of(&error, request) {
            ApiError::NotFound(_) => Ok(false),
            // Nothing was written: whatever broke, asking again helps.
            error => Err(ApiError::Unavailable(error.to_string())),
        },
    }
}

/// Which groups of rewrites are served now.
pub async fn served_groups(cluster: &Cluster) -> Result<BTreeSet<RewriteGroup>, ApiError> {
    let mut served = BTreeSet::new();
    for group in REWRITE_GROUPS {
        if is_served(cluster, resource_kind::rewrite(group)).await? {
            served.insert(group);
        }
    }
    Ok(served)
}

/// What one look found, for as long as it is polled. It looks at once when `doubt` is rung.
pub(crate) fn poll_groups(
    cluster: Cluster,
    doubt: Arc<Notify>,
) -> impl Stream<Item = Result<BTreeSet<RewriteGroup>, ApiError>> + Send + Unpin {
    Box::pin(stream::unfold((cluster, GroupTracker::default(), doubt), |(cluster, mut looks, doubt)| async move {
        loop {
            // Where nothing rings, this is just the pause.
            drop(timeout(looks.interval, doubt.notified()).await);
            if let Some(news) = looks.handle_poll(served_groups(&cluster).await) {
                return Some((news, (cluster, looks, doubt)));
            }
        }
    }))
}

/// What the looks so far have found.
#[derive(Debug, Default)]
struct GroupTracker {
    known: BTreeSet<RewriteGroup>,
    /// What the last look did not find any more.
    unconfirmed: BTreeSet<RewriteGroup>,
    /// Until the next look.
    interval: Duration,
}

impl GroupTracker {
    /// What is to be believed after this look; nothing where it has to be confirmed first.
    fn handle_poll(
        &mut self,
        look: Result<BTreeSet<RewriteGroup>, ApiError>,
    ) -> Option<Result<BTreeSet<RewriteGroup>, ApiError>> {
        let served = match look {
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
    fn a_kind_that_is_installed_is_believed_at_once() {
        let mut looks = GroupTracker::default();
        assert_eq!(looks.handle_poll(Ok(groups(&[]))), Some(Ok(groups(&[]))));
        assert_eq!(looks.interval, RETRY_INTERVAL);
        assert_eq!(looks.handle_poll(Ok(groups(&REWRITE_GROUPS))), Some(Ok(groups(&REWRITE_GROUPS))));
        assert_eq!(looks.interval, POLL_INTERVAL);
    }

    #[test]
    fn a_kind_that_is_not_found_once_is_not_removed() {
        let mut looks = GroupTracker::default();
        looks.handle_poll(Ok(groups(&REWRITE_GROUPS)));
        assert_eq!(looks.handle_poll(Ok(groups(&[RewriteGroup::Legacy]))), None);
        assert_eq!(looks.interval, CONFIRM_INTERVAL);
        assert_eq!(looks.handle_poll(Ok(groups(&REWRITE_GROUPS))), Some(Ok(groups(&REWRITE_GROUPS))));
        assert_eq!(looks.handle_poll(Ok(groups(&[RewriteGroup::Legacy]))), None, "the doubt of before was settled");
        let left = groups(&[RewriteGroup::Legacy]);
        assert_eq!(looks.handle_poll(Ok(left.clone())), Some(Ok(left)));
    }

    #[test]
    fn an_outage_changes_nothing_of_what_is_known() {
        let mut looks = GroupTracker::default();
        looks.handle_poll(Ok(groups(&REWRITE_GROUPS)));
        let outage = || Err(ApiError::Unavailable("away".to_owned()));
        assert_eq!(looks.handle_poll(outage()), Some(outage()));
        assert_eq!(looks.handle_poll(Ok(groups(&[]))), None, "it may just have started");
    }
}
