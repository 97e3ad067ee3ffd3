//! Which of the kinds that others install are there now: asked of the API server's discovery, which every identity
//! may read, and asked again for as long as the program runs.
//!
//! Invariant: a kind counts as removed only when two looks in a row did not find it: an API server that has just
//! started may not know all of its kinds yet.

use crate::{
    Cluster,
    answer::{ApiError, Request},
    kinds::{self, Kind},
};
use futures_util::{Stream, stream};
use rollora_api::rewrite::RewriteGroup;
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::timeout};

/// How soon it is asked again while something is missing or the API server does not answer.
const SOON: Duration = Duration::from_secs(2);
/// How soon it is asked again otherwise.
const LATER: Duration = Duration::from_secs(10);
/// How soon what was there before and is not found is looked for again.
const CONFIRM: Duration = Duration::from_millis(500);
/// How long one answer may take.
const LIMIT: Duration = Duration::from_secs(3);

/// Both groups of rewrites.
pub const GROUPS: [RewriteGroup; 2] = [RewriteGroup::Current, RewriteGroup::Legacy];

/// Whether the kind is served.
pub(crate) async fn is_served(cluster: &Cluster, kind: Kind) -> Result<bool, ApiError> {
    let resource = kind.resource();
    let request = Request { verb: "discover", resource: &resource, namespace: None };
    let client = cluster.client();
    let api_version = kind.api_version();
    let answer = timeout(LIMIT, client.list_api_group_resources(&api_version)).await;
    match answer.map_err(|_| ApiError::Unavailable(format!("the API server does not answer within {LIMIT:?}")))? {
        Ok(list) => Ok(list.resources.iter().any(|resource| resource.name == kind.plural)),
        Err(error) => match ApiError::of(&error, request) {
            ApiError::NotFound(_) => Ok(false),
            // Nothing was written: whatever broke, asking again helps.
            error => Err(ApiError::Unavailable(error.to_string())),
        },
    }
}

/// Which groups of rewrites are served now.
pub async fn served(cluster: &Cluster) -> Result<BTreeSet<RewriteGroup>, ApiError> {
    let mut served = BTreeSet::new();
    for group in GROUPS {
        if is_served(cluster, kinds::rewrite(group)).await? {
            served.insert(group);
        }
    }
    Ok(served)
}

/// What one look found, for as long as it is polled. It looks at once when `doubt` is rung.
pub(crate) fn follow(
    cluster: Cluster,
    doubt: Arc<Notify>,
) -> impl Stream<Item = Result<BTreeSet<RewriteGroup>, ApiError>> + Send + Unpin {
    Box::pin(stream::unfold((cluster, Looks::default(), doubt), |(cluster, mut looks, doubt)| async move {
        loop {
            // Where nothing rings, this is just the pause.
            drop(timeout(looks.pause, doubt.notified()).await);
            if let Some(news) = looks.take(served(&cluster).await) {
                return Some((news, (cluster, looks, doubt)));
            }
        }
    }))
}

/// What the looks so far have found.
#[derive(Debug, Default)]
struct Looks {
    known: BTreeSet<RewriteGroup>,
    /// What the last look did not find any more.
    doubted: BTreeSet<RewriteGroup>,
    /// Until the next look.
    pause: Duration,
}

impl Looks {
    /// What is to be believed after this look; nothing where it has to be confirmed first.
    fn take(
        &mut self,
        look: Result<BTreeSet<RewriteGroup>, ApiError>,
    ) -> Option<Result<BTreeSet<RewriteGroup>, ApiError>> {
        let served = match look {
            Ok(served) => served,
            Err(error) => {
                self.doubted.clear();
                self.pause = SOON;
                return Some(Err(error));
            }
        };
        let missing: BTreeSet<RewriteGroup> = self.known.difference(&served).copied().collect();
        if !missing.is_subset(&self.doubted) {
            self.doubted = missing;
            self.pause = CONFIRM;
            return None;
        }
        self.doubted.clear();
        self.pause = if served.len() == GROUPS.len() { LATER } else { SOON };
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
        let mut looks = Looks::default();
        assert_eq!(looks.take(Ok(groups(&[]))), Some(Ok(groups(&[]))));
        assert_eq!(looks.pause, SOON);
        assert_eq!(looks.take(Ok(groups(&GROUPS))), Some(Ok(groups(&GROUPS))));
        assert_eq!(looks.pause, LATER);
    }

    #[test]
    fn a_kind_that_is_not_found_once_is_not_removed() {
        let mut looks = Looks::default();
        looks.take(Ok(groups(&GROUPS)));
        assert_eq!(looks.take(Ok(groups(&[RewriteGroup::Legacy]))), None);
        assert_eq!(looks.pause, CONFIRM);
        assert_eq!(looks.take(Ok(groups(&GROUPS))), Some(Ok(groups(&GROUPS))));
        assert_eq!(looks.take(Ok(groups(&[RewriteGroup::Legacy]))), None, "the doubt of before was settled");
        let left = groups(&[RewriteGroup::Legacy]);
        assert_eq!(looks.take(Ok(left.clone())), Some(Ok(left)));
    }

    #[test]
    fn an_outage_changes_nothing_of_what_is_known() {
        let mut looks = Looks::default();
        looks.take(Ok(groups(&GROUPS)));
        let outage = || Err(ApiError::Unavailable("away".to_owned()));
        assert_eq!(looks.take(outage()), Some(outage()));
        assert_eq!(looks.take(Ok(groups(&[]))), None, "it may just have started");
    }
}
