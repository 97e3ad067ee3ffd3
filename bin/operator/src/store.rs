//! The documents of a cluster, as the operator asks for them.

use futures_util::{Stream, StreamExt};
use rollora_api::{
    names::FINALIZER,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Rollout, RolloutStatus, spec::AdaptersRef},
};
use rollora_cluster::{Documents, Events, Notice, ObjectName};
use rollora_operator::ports::{
    AdaptersDocument, AdaptersWrite, Event, Precondition, ReadError, RolloutKey, Store, Version, Versioned, Written,
};
use std::{collections::BTreeSet, sync::Arc};

/// The documents, and a voice.
#[derive(Debug)]
pub(crate) struct ClusterStore {
    pub(crate) documents: Documents,
    pub(crate) events: Events,
    /// The group of new rewrites, where a person decided.
    pub(crate) group: Option<RewriteGroup>,
}

/// The name that a key has on a cluster.
pub(crate) fn name_of(key: &RolloutKey) -> ObjectName {
    beside(key, &key.name)
}

/// Something else in the namespace of the Rollout.
pub(crate) fn beside(key: &RolloutKey, name: &str) -> ObjectName {
    ObjectName::new(key.namespace.clone().unwrap_or_default(), name)
}

pub(crate) fn read_error(error: rollora_cluster::ReadError) -> ReadError {
    match error {
        rollora_cluster::ReadError::Unavailable(words) => ReadError::Unavailable(words),
        rollora_cluster::ReadError::Invalid(words) => ReadError::Invalid(words),
    }
}

fn versioned<T, U>(found: rollora_cluster::Versioned<T>, value: impl FnOnce(T) -> U) -> Versioned<U> {
    Versioned { version: Version(found.version), value: value(found.value) }
}

fn written(end: rollora_cluster::Written) -> Written {
    match end {
        rollora_cluster::Written::Done(version) => Written::Done(Version(version)),
        rollora_cluster::Written::Stale => Written::Stale,
        rollora_cluster::Written::Refused(words) => Written::Refused(words),
        rollora_cluster::Written::Unavailable(words) => Written::Unavailable(words),
        rollora_cluster::Written::Unknown(words) => Written::Unknown(words),
    }
}

/// The group of rewrites that have to be made: the one that was worked with as long as it is installed, else the one that
/// a person decided for, else the current one unless only the legacy one is installed.
fn group(
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

impl ClusterStore {
    /// What this operator has changed is to be looked at once more: by then the change may have had its effect.
    fn after(&self, key: &RolloutKey, end: rollora_cluster::Written) -> Written {
        if matches!(end, rollora_cluster::Written::Done(_)) {
            self.documents.ring(&name_of(key));
        }
        written(end)
    }
}

impl Store for ClusterStore {
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send {
        let changes = self.documents.changes().into_stream();
        changes.map(|name| RolloutKey { namespace: Some(name.namespace), name: name.name })
    }

    fn has_wish(&self, key: &RolloutKey) -> bool {
        self.documents.has_wish(&name_of(key))
    }

    async fn rollouts(&self) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        let found = self.documents.rollouts().await.map_err(read_error)?;
        Ok(found.into_iter().map(|rollout| versioned(rollout, |rollout| rollout)).collect())
    }

    async fn rollouts_beside(&self, key: &RolloutKey) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        let found = self.documents.rollouts_beside(&name_of(key)).await.map_err(read_error)?;
        Ok(found.into_iter().map(|rollout| versioned(rollout, |rollout| rollout)).collect())
    }

    async fn rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ReadError> {
        let found = self.documents.rollout(&name_of(key)).await.map_err(read_error)?;
        Ok(found.map(|rollout| versioned(rollout, |rollout| rollout)))
    }

    async fn rewrites(&self, key: &RolloutKey) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        let found = self.documents.rewrites_beside(&name_of(key)).await.map_err(read_error)?;
        Ok(found.into_iter().map(|rewrite| versioned(rewrite, |rewrite| rewrite)).collect())
    }

    async fn adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        at_least: Option<&Version>,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        let (name, at_least) = (beside(key, &reference.name), at_least.map(|version| version.0.as_str()));
        let found = self.documents.adapters(&name, &reference.key, at_least).await.map_err(read_error)?;
        let document = |map: rollora_cluster::AdaptersMap| AdaptersDocument {
            user_text: map.user_text,
            key_text: map.key_text,
            gitops_owner: map.gitops_owner,
        };
        Ok(found.map(|map| versioned(map, document)))
    }

    async fn write_status(&self, key: &RolloutKey, version: &Version, status: &RolloutStatus) -> Written {
        written(self.documents.write_status(&name_of(key), &version.0, status).await)
    }

    async fn write_rewrite(
        &self,
        key: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> Written {
        let version = match precondition {
            Precondition::Absent => None,
            Precondition::Unchanged(version) => Some(version.0.as_str()),
        };
        self.after(key, self.documents.write_rewrite(rewrite, version).await)
    }

    async fn write_adapters(
        &self,
        key: &RolloutKey,
        reference: &AdaptersRef,
        version: &Version,
        write: &AdaptersWrite,
    ) -> Written {
        let (name, texts) = (beside(key, &reference.name), (write.user_text.as_deref(), write.key_text.as_deref()));
        let whose = name_of(key);
        let documents = &self.documents;
        let end = documents.write_adapters(Some(&whose), &name, &reference.key, &version.0, texts.0, texts.1).await;
        self.after(key, end)
    }

    fn new_rewrite_group(&self, kept: Option<RewriteGroup>) -> Option<RewriteGroup> {
        Some(group(kept, self.group, self.documents.served().as_ref()))
    }

    fn guards_deletion(&self) -> bool {
        true
    }

    async fn guard_deletion(&self, key: &RolloutKey, version: &Version, guarded: bool) -> Written {
        self.after(key, self.documents.write_finalizer(&name_of(key), &version.0, FINALIZER, guarded).await)
    }

    async fn event(&self, key: &RolloutKey, event: &Event) {
        let Ok(Some(rollout)) = self.documents.rollout(&name_of(key)).await else { return };
        let notice = Notice { warning: event.warning, reason: &event.reason, message: &event.message };
        if let Err(error) = self.events.tell(&rollout.value, notice) {
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
            assert_eq!(group(None, decided, installed.as_ref()), expected, "{decided:?} {installed:?}");
        }
        let both = served(&[Current, Legacy]);
        assert_eq!(
            group(Some(Legacy), Some(Current), Some(&both)),
            Legacy,
            "nothing moves because a kind was installed"
        );
        assert_eq!(group(Some(Legacy), None, Some(&served(&[Current]))), Current, "its kind was removed");
    }
}
