//! `Store` for the operator.

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
    /// The one Rollout of this machine.
    pub(crate) fn rollout_key(&self) -> RolloutKey {
        RolloutKey { namespace: None, name: self.snapshot().rollout.metadata.name.clone() }
    }

    /// Runs a write on a thread of its own, to its end even if nobody waits for it any more.
    async fn run_blocking(&self, write: impl FnOnce(&Self) -> WriteOutcome + Send + 'static) -> WriteOutcome {
        let store = self.clone();
        match tokio::task::spawn_blocking(move || write(&store)).await {
            Ok(written) => written,
            Err(error) => WriteOutcome::Unknown(format!("the write did not end: {error}")),
        }
    }

    fn write_status_blocking(&self, version: &ResourceVersion, status: &RolloutStatus) -> WriteOutcome {
        self.0.update(|inner, picture| {
            let rollout = match picture.with_status(version, status) {
                Ok(rollout) => rollout,
                Err(refused) => return refused,
            };
            let written = inner.folder.write(ROLLOUT_JSON, &rollout);
            let version = resource_version(&rollout.metadata);
            commit(written, version, || picture.rollout = Arc::new(rollout))
        })
    }

    fn write_rewrite_blocking(&self, rewrite: &InferenceModelRewrite, precondition: &Precondition) -> WriteOutcome {
        self.0.update(|inner, picture| {
            let uid = Uuid::new_v4().to_string();
            let (rewrites, version) = match picture.with_rewrite(rewrite, precondition, &uid, clock::now()) {
                Ok(changed) => changed,
                Err(refused) => return refused,
            };
            let written = inner.folder.write(REWRITES_JSON, &rewrites);
            commit(written, version, || {
                inner.rules.reset(&rewrites);
                picture.rewrites = Arc::new(rewrites);
            })
        })
    }

    /// Writes one or both texts; the key first, since it only ever adds to what the sidecars may do with the file.
    fn write_adapters_blocking(&self, version: &ResourceVersion, write: &AdaptersWrite) -> WriteOutcome {
        self.0.update(|inner, picture| {
            let path = &inner.inputs.adapters;
            let key = picture.rollout.spec.adapters_ref.key.clone();
            let present = match fs::read_to_string(path) {
                Ok(text) => AdaptersText::new(text, &key),
                Err(error) => return WriteOutcome::Unavailable(format!("{} cannot be read: {error}", path.display())),
            };
            // A file that is broken now was whole when the version was read.
            let Ok(present) = present else { return WriteOutcome::Conflict };
            if content_hash(present.inner(), picture.directives.text.as_deref()).0 != version.0 {
                return WriteOutcome::Conflict;
            }
            if let Some(text) = &write.directives_text {
                let key = match OperatorDirectives::parse(text) {
                    Ok(key) => key,
                    Err(error) => return WriteOutcome::Refused(format!("the operator's key: {error}")),
                };
                let written = replace_atomically(&inner.folder.document_path(DIRECTIVES_YAML), text.as_bytes());
                let taken = commit(written, version.clone(), || {
                    picture.directives =
                        DirectivesContent { text: Some(text.as_str().into()), parsed: Some(Arc::new(key)) };
                });
                if !matches!(taken, WriteOutcome::Done(_)) {
                    return taken;
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
                let taken = commit(written, version.clone(), || picture.adapters = adapters);
                if !matches!(taken, WriteOutcome::Done(_)) {
                    return taken;
                }
            }
            WriteOutcome::Done(ResourceVersion(picture.hash().0))
        })
    }
}

/// What was written is in force even where the disk has not confirmed it: it is what a reader finds there.
fn commit(written: Result<(), WriteError>, version: ResourceVersion, in_force: impl FnOnce()) -> WriteOutcome {
    match written {
        Ok(()) => {
            in_force();
            WriteOutcome::Done(version)
        }
        Err(error) => {
            if matches!(error, WriteError::Unconfirmed { .. }) {
                in_force();
            }
            write_outcome(&error)
        }
    }
}

fn versioned_rollout(picture: &StoreSnapshot) -> Versioned<Arc<Rollout>> {
    let value = Arc::clone(&picture.rollout);
    Versioned { resource_version: resource_version(&value.metadata), value }
}

impl DocumentStore for LocalDocumentStore {
    fn changes(&self) -> impl Stream<Item = RolloutKey> + Send {
        let first = stream::iter([self.rollout_key()]);
        let later = stream::unfold((self.clone(), self.subscribe_reconcile()), |(store, mut work)| async move {
            work.changed().await.ok()?;
            Some((store.rollout_key(), (store, work)))
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
        let picture = self.snapshot();
        let versioned = |rewrite: &InferenceModelRewrite| Versioned {
            resource_version: resource_version(&rewrite.metadata),
            value: Arc::new(rewrite.clone()),
        };
        Ok(picture.rewrites.iter().map(versioned).collect())
    }

    async fn adapters(
        &self,
        _: &RolloutKey,
        _: &AdaptersRef,
        _: Option<&ResourceVersion>,
    ) -> Result<Option<Versioned<AdaptersDocument>>, ReadError> {
        let picture = self.snapshot();
        if let Some(problem) = &picture.problems.adapters {
            return Err(ReadError::Invalid(problem.clone()));
        }
        Ok(Some(Versioned {
            resource_version: ResourceVersion(picture.hash().0),
            value: AdaptersDocument {
                user_text: picture.adapters.text.inner().to_owned(),
                directives_text: picture.directives.text.as_deref().map(str::to_owned),
                gitops_owner: None,
            },
        }))
    }

    /// There is one file here, however a Rollout calls it.
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
        // The operator logs it.
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
