//! The documents of a cluster, as the operator asks for them.

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

/// The documents, and a voice.
#[derive(Debug)]
pub(crate) struct ClusterDocumentStore {
    pub(crate) client: CachedClient,
    pub(crate) events: EventRecorder,
    /// The group of new rewrites, where a person decided.
    pub(crate) preferred_group: Option<RewriteGroup>,
}

/// The name that a key has on a cluster.
pub(crate) fn namespaced_name(key: &RolloutKey) -> NamespacedName {
    in_same_namespace(key, &key.name)
}

/// Something else in the namespace of the Rollout.
pub(crate) fn in_same_namespace(key: &RolloutKey, name: &str) -> NamespacedName {
    NamespacedName::new(key.namespace.clone().unwrap_or_default(), name)
}

pub(crate) fn to_read_error(error: rollora_cluster::ObjectReadError) -> ReadError {
    match error {
        rollora_cluster::ObjectReadError::Unavailable(words) => ReadError::Unavailable(words),
        rollora_cluster::ObjectReadError::Invalid(words) => ReadError::Invalid(words),
    }
}

fn to_versioned<T, U>(found: rollora_cluster::VersionedObject<T>, value: impl FnOnce(T) -> U) -> Versioned<U> {
    Versioned { resource_version: ResourceVersion(found.resource_version), value: value(found.value) }
}

fn to_write_outcome(end: rollora_cluster::ObjectWriteOutcome) -> WriteOutcome {
    match end {
        rollora_cluster::ObjectWriteOutcome::Done(version) => WriteOutcome::Done(ResourceVersion(version)),
        rollora_cluster::ObjectWriteOutcome::Conflict => WriteOutcome::Conflict,
        rollora_cluster::ObjectWriteOutcome::Refused(words) => WriteOutcome::Refused(words),
        rollora_cluster::ObjectWriteOutcome::Unavailable(words) => WriteOutcome::Unavailable(words),
        rollora_cluster::ObjectWriteOutcome::Unknown(words) => WriteOutcome::Unknown(words),
    }
}

/// The group of rewrites that have to be made: the one that was worked with as long as it is installed, else the one that
/// a person decided for, else the current one unless only the legacy one is installed.
fn choose_rewrite_group(
    kept: Option<RewriteGroup>,
    decided: Option<RewriteGroup>,
    served: Option<&BTreeSet<RewriteGroup>>,
) -> RewriteGroup {
    if let Some(kept) = kept.filter(|kept| served.is_none_or(|served| served.contains(kept))) {
        return kept;
    }
    let only_legacy =
        served.is_some_and(|served| served.contains(&RewriteGroup::Legacy) && !served.contains(&RewriteGroup::Current));
    decided.unwrap_or(if only_legacy { RewriteGroup::Legacy } else { RewriteGroup::Current })
}

impl ClusterDocumentStore {
    /// What this operator has changed is to be looked at once more: by then the change may have had its effect.
    fn requeue_after_write(&self, key: &RolloutKey, end: rollora_cluster::ObjectWriteOutcome) -> WriteOutcome {
        if matches!(end, rollora_cluster::ObjectWriteOutcome::Done(_)) {
            self.client.enqueue(&namespaced_name(key));
        }
        to_write_outcome(end)
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
        let whose = namespaced_name(key);
        let documents = &self.client;
        let end = documents.write_adapters(Some(&whose), &name, &reference.key, &version.0, texts.0, texts.1).await;
        self.requeue_after_write(key, end)
    }

    fn new_rewrite_group(&self, kept: Option<RewriteGroup>) -> Option<RewriteGroup> {
        Some(choose_rewrite_group(kept, self.preferred_group, self.client.served_groups().as_ref()))
    }

    fn supports_finalizers(&self) -> bool {
        true
    }

    async fn set_finalizer(&self, key: &RolloutKey, version: &ResourceVersion, guarded: bool) -> WriteOutcome {
        self.requeue_after_write(
            key,
            self.client.write_finalizer(&namespaced_name(key), &version.0, FINALIZER, guarded).await,
        )
    }

    async fn publish_event(&self, key: &RolloutKey, event: &RolloutEvent) {
        let Ok(Some(rollout)) = self.client.rollout(&namespaced_name(key)).await else { return };
        let notice = EventDetails { warning: event.warning, reason: &event.reason, message: &event.message };
        if let Err(error) = self.events.record(&rollout.value, notice) {
            tracing::warn!(rollout = %key, "an event could not be told: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_rewrites_are_of_the_current_group_unless_only_the_legacy_one_is_installed() {
        use RewriteGroup::{Current, Legacy};
        let served = |groups: &[RewriteGroup]| groups.iter().copied().collect::<BTreeSet<_>>();
        for (decided, installed, expected) in [
            (None, None, Current),
            (None, Some(served(&[])), Current),
            (None, Some(served(&[Legacy])), Legacy),
            (None, Some(served(&[Current, Legacy])), Current),
            (Some(Legacy), Some(served(&[Current, Legacy])), Legacy),
            (Some(Current), Some(served(&[Legacy])), Current),
        ] {
            assert_eq!(choose_rewrite_group(None, decided, installed.as_ref()), expected, "{decided:?} {installed:?}");
        }
        let both = served(&[Current, Legacy]);
        assert_eq!(
            choose_rewrite_group(Some(Legacy), Some(Current), Some(&both)),
            Legacy,
            "nothing moves because a kind was installed"
        );
        assert_eq!(
            choose_rewrite_group(Some(Legacy), None, Some(&served(&[Current]))),
            Current,
            "its kind was removed"
        );
    }
}
