//! Namespaces whose rewrite conditions must be recomputed, and the reads and writes that this needs.

use super::{CachedClient, Caches, ObjectReadError, ObjectWriteOutcome, write};
use crate::{api_discovery::REWRITE_GROUPS, api_error::ApiRequest, object_cache::NamespacedName, resource_kind};
use rollora_api::rewrite::InferenceModelRewrite;
use std::collections::BTreeSet;

impl Caches {
    /// Marks the namespaces of these objects as dirty.
    pub(super) fn mark_dirty<'a>(&mut self, names: impl IntoIterator<Item = &'a NamespacedName>) {
        self.dirty_namespaces.extend(names.into_iter().map(|name| name.namespace.clone()));
    }

    /// Marks the namespaces of all rewrites as dirty.
    pub(super) fn mark_all_dirty(&mut self) {
        let each = REWRITE_GROUPS.into_iter().flat_map(|group| self.rewrites(group).iter());
        let names: BTreeSet<String> = each.map(|(name, ..)| name.namespace.clone()).collect();
        self.dirty_namespaces.extend(names);
    }
}

impl CachedClient {
    /// Waits until rewrites or pools have changed since the last call, and returns the affected namespaces.
    pub async fn next_dirty_namespaces(&self) -> BTreeSet<String> {
        let mut updates = self.0.updates.subscribe();
        loop {
            updates.mark_unchanged();
            let dirty = std::mem::take(&mut self.caches().dirty_namespaces);
            if !dirty.is_empty() {
                return dirty;
            }
            // The sender lives as long as this client.
            if updates.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Returns the names of all pools in a namespace.
    pub async fn pool_names(&self, namespace: &str) -> Result<BTreeSet<String>, ObjectReadError> {
        self.wait_for_sync(|caches| caches.pools.state(), &resource_kind::POOL.group_resource()).await?;
        let caches = self.caches();
        Ok(caches.pools.in_namespace(namespace).map(|(name, ..)| name.name.clone()).collect())
    }

    /// Writes the status of the rewrite that was read as `version`.
    pub async fn write_rewrite_status(&self, rewrite: &InferenceModelRewrite, version: &str) -> ObjectWriteOutcome {
        let Some(group) = rewrite.group() else {
            return ObjectWriteOutcome::Refused(format!("{} is not an API group of rewrites", rewrite.api_version));
        };
        let metadata = &rewrite.metadata;
        let name = NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone());
        let mut object = match write::to_dynamic_object(rewrite) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        object.metadata.resource_version = Some(version.to_owned());
        let kind = resource_kind::rewrite(group);
        let _permit = self.acquire_write_permit().await;
        let api = self.api(kind, &name.namespace);
        let resource = kind.status_subresource();
        let request = ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) };
        let call = async { api.replace_status(&name.name, &write::post_params(), &object).await };
        let result = write::with_write_timeout(call, request).await;
        self.finish_rewrite_write(group, &name, result)
    }
}
