//! Rewrites and pools by namespace, for whoever tells which rewrites are in force: where something has changed, which
//! pools there are, and the write of a rewrite's status.

use super::{CachedClient, Caches, ObjectReadError, ObjectWriteOutcome, write};
use crate::{api_discovery::REWRITE_GROUPS, api_error::ApiRequest, object_cache::NamespacedName, resource_kind};
use rollora_api::rewrite::InferenceModelRewrite;
use std::collections::BTreeSet;

impl Caches {
    /// Something was changed in this namespace.
    pub(super) fn mark_dirty<'a>(&mut self, names: impl IntoIterator<Item = &'a NamespacedName>) {
        self.dirty_namespaces.extend(names.into_iter().map(|name| name.namespace.clone()));
    }

    /// Something was changed that concerns every rewrite.
    pub(super) fn mark_all_dirty(&mut self) {
        let each = REWRITE_GROUPS.into_iter().flat_map(|group| self.rewrites(group).iter());
        let names: BTreeSet<String> = each.map(|(name, ..)| name.namespace.clone()).collect();
        self.dirty_namespaces.extend(names);
    }
}

impl CachedClient {
    /// Waits until rewrites or pools are other than they were when this last ended; the namespaces where that is so.
    pub async fn next_dirty_namespaces(&self) -> BTreeSet<String> {
        let mut told = self.0.updates.subscribe();
        loop {
            told.mark_unchanged();
            let stirred = std::mem::take(&mut self.caches().dirty_namespaces);
            if !stirred.is_empty() {
                return stirred;
            }
            // It lives as long as the documents.
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The names of all pools of a namespace.
    pub async fn pool_names(&self, namespace: &str) -> Result<BTreeSet<String>, ObjectReadError> {
        self.wait_for_sync(|books| books.pools.state(), &resource_kind::POOL.group_resource()).await?;
        let books = self.caches();
        Ok(books.pools.in_namespace(namespace).map(|(name, ..)| name.name.clone()).collect())
    }

    /// Writes the status of the rewrite that was read as `version`.
    pub async fn write_rewrite_status(&self, rewrite: &InferenceModelRewrite, version: &str) -> ObjectWriteOutcome {
        let Some(group) = rewrite.group() else {
            return ObjectWriteOutcome::Refused(format!("{} is no group of rewrites", rewrite.api_version));
        };
        let metadata = &rewrite.metadata;
        let name = NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone());
        let mut object = match write::to_dynamic_object(rewrite) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        object.metadata.resource_version = Some(version.to_owned());
        let kind = resource_kind::rewrite(group);
        let _place = self.acquire_write_permit().await;
        let api = self.api(kind, &name.namespace);
        let resource = kind.status_subresource();
        let request = ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) };
        let writing = async { api.replace_status(&name.name, &write::post_params(), &object).await };
        let written = write::with_write_timeout(writing, request).await;
        self.finish_rewrite_write(group, &name, written)
    }
}
