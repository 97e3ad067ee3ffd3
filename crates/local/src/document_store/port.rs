//! Implementation of the operator's `DocumentStore` port.

use super::{DIRECTIVES_YAML, LocalDocumentStore, REWRITES_JSON, ROLLOUT_JSON, write_outcome};
use crate::{
    clock, input,
    snapshot::{DirectivesContent, EventRecord, StoreSnapshot, resource_version},
    state::{WriteError, replace_atomically},
};
use futures_util::{Stream, StreamExt, stream};
use rollora_api::{
    adapters::{AdaptersText, content_hash},
    operator_directives::OperatorDirectives,
    rewrite::InferenceModelRewrite,
    rollout::{Rollout, RolloutStatus, spec::AdaptersRef},
};
use rollora_operator::ports::{
    AdaptersDocument, AdaptersWrite, DocumentStore, Precondition, ReadError, ResourceVersion, RolloutEvent, RolloutKey,
    Versioned, WriteOutcome,
};
use std::{fs, sync::Arc};
use uuid::Uuid;

impl LocalDocumentStore {
    /// Key of the only Rollout on this machine, which has no namespace.
    pub(crate) fn rollout_key(&self) -> RolloutKey {
        RolloutKey { namespace: None, name: self.snapshot().rollout.metadata.name.clone() }
    }

    /// Runs a write on a blocking thread. It completes even if the returned future is dropped.
    async fn run_blocking(&self, write: impl FnOnce(&Self) -> WriteOutcome + Send + 'static) -> WriteOutcome {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || write(&store)).await {
            Ok(written) => written,
            Err(error) => WriteOutcome::Unknown(format!("the write did not complete: {error}")),
        }
    }

    fn write_status_blocking(&self, version: &ResourceVersion, status: &RolloutStatus) -> WriteOutcome {
        self.0.update(|inner, snapshot| {
            let rollout = match snapshot.with_status(version, status) {
                Ok(rollout) => rollout,
                Err(refused) => return refused,
            };
            let written = inner.folder.write(ROLLOUT_JSON, &rollout);
            let version = resource_version(&rollout.metadata);
            commit(written, version, || snapshot.rollout = Arc::new(rollout))
        })
    }

    fn write_rewrite_blocking(&self, rewrite: &InferenceModelRewrite, precondition: &Precondition) -> WriteOutcome {
        self.0.update(|inner, snapshot| {
            let uid = Uuid::new_v4().to_string();
            let (rewrites, version) = match snapshot.with_rewrite(rewrite, precondition, &uid, clock::now()) {
                Ok(changed) => changed,
                Err(refused) => return refused,
            };
            let written = inner.folder.write(REWRITES_JSON, &rewrites);
            commit(written, version, || {
                inner.rules.reset(&rewrites);
                snapshot.rewrites = Arc::new(rewrites);
            })
        })
    }

    /// Writes one or both texts, the directives first: they only ever add to what the sidecars may do with the file.
    fn write_adapters_blocking(&self, version: &ResourceVersion, write: &AdaptersWrite) -> WriteOutcome {
        self.0.update(|inner, snapshot| {
            let path = &inner.inputs.adapters;
            let key = snapshot.rollout.spec.adapters_ref.key.clone();
            let present = match fs::read_to_string(path) {
                Ok(text) => AdaptersText::new(text, &key),
                Err(error) => return WriteOutcome::Unavailable(format!("{} cannot be read: {error}", path.display())),
            };
            // The file was valid when the version was read, so an invalid file was changed after that.
            let Ok(present) = present else { return WriteOutcome::Conflict };
            if content_hash(present.inner(), snapshot.directives.text.as_deref()).0 != version.0 {
                return WriteOutcome::Conflict;
            }
            if let Some(text) = &write.directives_text {
                let directives = match OperatorDirectives::parse(text) {
                    Ok(directives) => directives,
                    Err(error) => return WriteOutcome::Refused(format!("the operator directives: {error}")),
                };
                let written = replace_atomically(&inner.folder.document_path(DIRECTIVES_YAML), text.as_bytes());
                let outcome = commit(written, version.clone(), || {
                    snapshot.directives =
                        DirectivesContent { text: Some(text.as_str().into()), parsed: Some(Arc::new(directives)) };
                });
                if !matches!(outcome, WriteOutcome::Done(_)) {
                    return outcome;
                }
            }
            if let Some(inner) = &write.user_text {
                let edited = present.with_inner(inner).map_err(|error| error.to_string());
                let read = edited.and_then(|text| Ok((input::parse_adapters(path, &text, &key)?, text)));
                let (adapters, text) = match read {
                    Ok(read) => read,
                    Err(problem) => return WriteOutcome::Refused(problem),
                };
                let written = replace_atomically(path, text.as_bytes());
                let outcome = commit(written, version.clone(), || snapshot.adapters = adapters);
                if !matches!(outcome, WriteOutcome::Done(_)) {
                    return outcome;
                }
            }
            WriteOutcome::Done(ResourceVersion(snapshot.hash().0))
        })
    }
}

/// Applies a write to the snapshot, also if the disk has not confirmed it: readers of the file find the new content.
fn commit(written: Result<(), WriteError>, version: ResourceVersion, apply: impl FnOnce()) -> WriteOutcome {
    match written {
        Ok(()) => {
            apply();
            WriteOutcome::Done(version)
        }
        Err(error) => {
            if matches!(error, WriteError::Unconfirmed { .. }) {
                apply();
            }
            write_outcome(&error)
        }
    }
}

fn versioned_rollout(snapshot: &StoreSnapshot) -> Versioned<Arc<Rollout>> {
    let value = Arc::clone(&snapshot.rollout);
    Versioned { resource_version: resource_version(&value.metadata), value }
}

impl DocumentStore for LocalDocumentStore {
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send {
        let first = stream::iter([self.rollout_key()]);
        let later = stream::unfold((self.clone(), self.subscribe_reconcile()), |(store, mut changes)| async move {
            changes.changed().await.ok()?;
            Some((store.rollout_key(), (store, changes)))
        });
        first.chain(later)
    }

    async fn rollouts(&self) -> Result<Vec<Versioned<Arc<Rollout>>>, ReadError> {
        Ok(vec![versioned_rollout(&self.snapshot())])
    }

    async fn rollout(&self, key: &RolloutKey) -> Result<Option<Versioned<Arc<Rollout>>>, ReadError> {
        Ok((*key == self.rollout_key()).then(|| versioned_rollout(&self.snapshot())))
    }

    async fn rewrites(&self, _: &RolloutKey) -> Result<Vec<Versioned<Arc<InferenceModelRewrite>>>, ReadError> {
        let snapshot = self.snapshot();
        let versioned = |rewrite: &InferenceModelRewrite| Versioned {
            resource_version: resource_version(&rewrite.metadata),
            value: Arc::new(rewrite.clone()),
        };
        Ok(snapshot.rewrites.iter().map(versioned).collect())
    }

    async fn adapters(
        &self,
        _: &RolloutKey,
        _: &AdaptersRef,
        _: Option<&ResourceVersion>,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        let snapshot = self.snapshot();
        if let Some(problem) = &snapshot.problems.adapters {
            return Err(ReadError::Invalid(problem.clone()));
        }
        Ok(Some(Versioned {
            resource_version: ResourceVersion(snapshot.hash().0),
            value: AdaptersDocument {
                user_text: snapshot.adapters.text.inner().to_owned(),
                directives_text: snapshot.directives.text.as_deref().map(str::to_owned),
                gitops_owner: None,
            },
        }))
    }

    /// There is only one adapters file on this machine, under any name that a Rollout gives it.
    fn is_same_adapters_file(&self, _: &AdaptersRef, _: &AdaptersRef) -> bool {
        true
    }

    async fn write_status(&self, _: &RolloutKey, version: &ResourceVersion, status: &RolloutStatus) -> WriteOutcome {
        let (version, status) = (version.clone(), status.clone());
        let written = self.run_blocking(move |store| store.write_status_blocking(&version, &status)).await;
        self.0.overview_tx.send_modify(|count| *count += 1);
        written
    }

    async fn write_rewrite(
        &self,
        _: &RolloutKey,
        rewrite: &InferenceModelRewrite,
        precondition: &Precondition,
    ) -> WriteOutcome {
        let (rewrite, precondition) = (rewrite.clone(), precondition.clone());
        let written = self.run_blocking(move |store| store.write_rewrite_blocking(&rewrite, &precondition)).await;
        self.notify();
        written
    }

    async fn write_adapters(
        &self,
        _: &RolloutKey,
        _: &AdaptersRef,
        version: &ResourceVersion,
        write: &AdaptersWrite,
    ) -> WriteOutcome {
        let (version, write) = (version.clone(), write.clone());
        let written = self.run_blocking(move |store| store.write_adapters_blocking(&version, &write)).await;
        self.notify();
        written
    }

    async fn publish_event(&self, _: &RolloutKey, event: &RolloutEvent) {
        // No log line here: the operator logs its events.
        let record = EventRecord {
            at: clock::now(),
            count: 1,
            warning: event.warning,
            reason: event.reason.clone(),
            message: event.message.clone(),
        };
        self.run_blocking(move |store| {
            store.record_event(record);
            WriteOutcome::Done(ResourceVersion(String::new()))
        })
        .await;
    }
}
