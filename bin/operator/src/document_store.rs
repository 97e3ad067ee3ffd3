//! The port `DocumentStore` on a cluster.

use futures_util::{Stream, StreamExt};
use rollora_api::{
    names::FINALIZER,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Rollout, RolloutStatus, spec::AdaptersRef},
};
use rollora_cluster::{CachedClient, EventDetails, EventRecorder, NamespacedName};
use rollora_operator::ports::{
    AdaptersDocument, AdaptersWrite, DocumentStore, Precondition, ReadError, ResourceVersion, RolloutEvent, RolloutKey,
    Versioned, WriteOutcome,
};
use std::{collections::BTreeSet, sync::Arc};

/// Document store over the cached client, with a recorder for events.
#[derive(Debug)]
pub(crate) struct ClusterDocumentStore {
    pub(crate) client: CachedClient,
    pub(crate) events: EventRecorder,
    /// API group for new rewrites, if `--api-group` names one.
    pub(crate) preferred_group: Option<RewriteGroup>,
}

/// Returns the name of the Rollout on a cluster.
pub(crate) fn namespaced_name(key: &RolloutKey) -> NamespacedName {
    in_same_namespace(key, &key.name)
}

/// Returns the name of another object in the Rollout's namespace.
pub(crate) fn in_same_namespace(key: &RolloutKey, name: &str) -> NamespacedName {
    NamespacedName::new(key.namespace.clone().unwrap_or_default(), name)
}

pub(crate) fn to_read_error(error: rollora_cluster::ObjectReadError) -> ReadError {
    match error {
        rollora_cluster::ObjectReadError::Unavailable(message) => ReadError::Unavailable(message),
        rollora_cluster::ObjectReadError::Invalid(message) => ReadError::Invalid(message),
    }
}

fn to_versioned<T, U>(found: rollora_cluster::VersionedObject<T>, convert: impl FnOnce(T) -> U) -> Versioned<U> {
    Versioned { resource_version: ResourceVersion(found.resource_version), value: convert(found.value) }
}

fn to_write_outcome(outcome: rollora_cluster::ObjectWriteOutcome) -> WriteOutcome {
    match outcome {
        rollora_cluster::ObjectWriteOutcome::Done(version) => WriteOutcome::Done(ResourceVersion(version)),
        rollora_cluster::ObjectWriteOutcome::Conflict => WriteOutcome::Conflict,
        rollora_cluster::ObjectWriteOutcome::Refused(message) => WriteOutcome::Refused(message),
        rollora_cluster::ObjectWriteOutcome::Unavailable(message) => WriteOutcome::Unavailable(message),
        rollora_cluster::ObjectWriteOutcome::Unknown(message) => WriteOutcome::Unknown(message),
    }
}

/// Returns the API group for a new rewrite: the one used so far while it is installed, else the preferred one, else the
/// current one unless only the legacy one is installed.
fn choose_rewrite_group(
    kept: Option<RewriteGroup>,
    preferred: Option<RewriteGroup>,
    served: Option<&BTreeSet<RewriteGroup>>,
) -> RewriteGroup {
    if let Some(kept) = kept.filter(|kept| served.is_none_or(|served| served.contains(kept))) {
        return kept;
    }
    let only_legacy =
        served.is_some_and(|served| served.contains(&RewriteGroup::Legacy) && !served.contains(&RewriteGroup::Current));
    preferred.unwrap_or(if only_legacy { RewriteGroup::Legacy } else { RewriteGroup::Current })
}

impl ClusterDocumentStore {
    /// Enqueues the Rollout after a successful write, because the write may take effect before any watch reports it.
    fn requeue_after_write(&self, key: &RolloutKey, outcome: rollora_cluster::ObjectWriteOutcome) -> WriteOutcome {
        if matches!(outcome, rollora_cluster::ObjectWriteOutcome::Done(_)) {
            self.client.enqueue(&namespaced_name(key));
        }
        to_write_outcome(outcome)
    }
}

impl DocumentStore for ClusterDocumentStore {
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send {
        let changes = self.client.changes().into_stream();
        changes.map(|name| RolloutKey { namespace: Some(name.namespace), name: name.name })
    }

    fn has_pending_intent(&self, key: &RolloutKey) -> bool {
        self.client.has_pending_intent(&namespaced_name(key))
    }

    async fn rollouts(&self) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        let found = self.client.rollouts().await.map_err(to_read_error)?;
        Ok(found.into_iter().map(|rollout| to_versioned(rollout, |rollout| rollout)).collect())
    }

    async fn related_rollouts(&self, key: &RolloutKey) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        let found = self.client.related_rollouts(&namespaced_name(key)).await.map_err(to_read_error)?;
        Ok(found.into_iter().map(|rollout| to_versioned(rollout, |rollout| rollout)).collect())
    }

    async fn rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ReadError> {
        let found = self.client.rollout(&namespaced_name(key)).await.map_err(to_read_error)?;
        Ok(found.map(|rollout| to_versioned(rollout, |rollout| rollout)))
    }

    async fn rewrites(&self, key: &RolloutKey) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        let found = self.client.related_rewrites(&namespaced_name(key)).await.map_err(to_read_error)?;
        Ok(found.into_iter().map(|rewrite| to_versioned(rewrite, |rewrite| rewrite)).collect())
    }

    async fn adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        at_least: Option<&ResourceVersion>,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        let (name, at_least) = (in_same_namespace(key, &reference.name), at_least.map(|version| version.0.as_str()));
        let found = self.client.adapters(&name, &reference.key, at_least).await.map_err(to_read_error)?;
        let document = |map: rollora_cluster::AdaptersConfigMapData| AdaptersDocument {
            user_text: map.user_text,
            directives_text: map.directives_text,
            gitops_owner: map.gitops_owner,
        };
        Ok(found.map(|map| to_versioned(map, document)))
    }

    async fn write_status(&self, key: &RolloutKey, version: &ResourceVersion, status: &RolloutStatus) -> WriteOutcome {
        to_write_outcome(self.client.write_status(&namespaced_name(key), &version.0, status).await)
    }

    async fn write_rewrite(
        &self,
        key: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> WriteOutcome {
        let version = match precondition {
            Precondition::Absent => None,
            Precondition::Unchanged(version) => Some(version.0.as_str()),
        };
        self.requeue_after_write(key, self.client.write_rewrite(rewrite, version).await)
    }

    async fn write_adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        version: &ResourceVersion,
        write: &AdaptersWrite,
    ) -> WriteOutcome {
        let (name, texts) =
            (in_same_namespace(key, &reference.name), (write.user_text.as_deref(), write.directives_text.as_deref()));
        let rollout = namespaced_name(key);
        let client = &self.client;
        let outcome = client.write_adapters(Some(&rollout), &name, &reference.key, &version.0, texts.0, texts.1).await;
        self.requeue_after_write(key, outcome)
    }

    fn new_rewrite_group(&self, kept: Option<RewriteGroup>) -> Option<RewriteGroup> {
        Some(choose_rewrite_group(kept, self.preferred_group, self.client.served_groups().as_ref()))
    }

    fn supports_finalizers(&self) -> bool {
        true
    }

    async fn set_finalizer(&self, key: &RolloutKey, version: &ResourceVersion, present: bool) -> WriteOutcome {
        self.requeue_after_write(
            key,
            self.client.write_finalizer(&namespaced_name(key), &version.0, FINALIZER, present).await,
        )
    }

    async fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) {
        let Ok(Some(rollout)) = self.client.rollout(&namespaced_name(key)).await else { return };
        let details = EventDetails { warning: event.warning, reason: &event.reason, message: &event.message };
        if let Err(error) = self.events.record(&rollout.value, details) {
            tracing::warn!(rollout = %key, "cannot record an event: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_rewrite_group_is_current_unless_only_legacy_is_served() {
        use RewriteGroup::{Current, Legacy};
        let served = |groups: &[RewriteGroup]| groups.iter().copied().collect::<BTreeSet<_>>();
        for (preferred, installed, expected) in [
            (None, None, Current),
            (None, Some(served(&[])), Current),
            (None, Some(served(&[Legacy])), Legacy),
            (None, Some(served(&[Current, Legacy])), Current),
            (Some(Legacy), Some(served(&[Current, Legacy])), Legacy),
            (Some(Current), Some(served(&[Legacy])), Current),
        ] {
            assert_eq!(
                choose_rewrite_group(None, preferred, installed.as_ref()),
                expected,
                "{preferred:?} {installed:?}"
            );
        }
        let both = served(&[Current, Legacy]);
        assert_eq!(
            choose_rewrite_group(Some(Legacy), Some(Current), Some(&both)),
            Legacy,
            "installing another group does not move the rewrite"
        );
        assert_eq!(
            choose_rewrite_group(Some(Legacy), None, Some(&served(&[Current]))),
            Current,
            "its group was removed"
        );
    }
}
