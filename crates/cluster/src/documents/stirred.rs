//! Rewrites and pools by namespace, for whoever tells which rewrites are in force: where something has changed, which
//! pools there are, and the write of a rewrite's status.

use super::{Books, Documents, ReadError, Written, write};
use crate::{answer::Request, groups::GROUPS, kinds, shelf::ObjectName};
use rollora_api::rewrite::InferenceModelRewrite;
use std::collections::BTreeSet;

impl Books {
    /// Something was changed in this namespace.
    pub(super) fn stir<'a>(&mut self, names: impl IntoIterator<Item = &'a ObjectName>) {
        self.stirred.extend(names.into_iter().map(|name| name.namespace.clone()));
    }

    /// Something was changed that concerns every rewrite.
    pub(super) fn stir_all(&mut self) {
        let each = GROUPS.into_iter().flat_map(|group| self.rewrites(group).iter());
        let names: BTreeSet<String> = each.map(|(name, ..)| name.namespace.clone()).collect();
        self.stirred.extend(names);
    }
}

impl Documents {
    /// Waits until rewrites or pools are other than they were when this last ended; the namespaces where that is so.
    pub async fn stirred(&self) -> BTreeSet<String> {
        let mut told = self.0.told.subscribe();
        loop {
            told.mark_unchanged();
            let stirred = std::mem::take(&mut self.books().stirred);
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
    pub async fn pool_names(&self, namespace: &str) -> Result<BTreeSet<String>, ReadError> {
        self.wait(|books| books.pools.state(), &kinds::POOL.resource()).await?;
        let books = self.books();
        Ok(books.pools.of_namespace(namespace).map(|(name, ..)| name.name.clone()).collect())
    }

    /// Writes the status of the rewrite that was read as `version`.
    pub async fn write_rewrite_status(&self, rewrite: &InferenceModelRewrite, version: &str) -> Written {
        let Some(group) = rewrite.group() else {
            return Written::Refused(format!("{} is no group of rewrites", rewrite.api_version));
        };
        let metadata = &rewrite.metadata;
        let name = ObjectName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone());
        let mut object = match write::dynamic(rewrite) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        object.metadata.resource_version = Some(version.to_owned());
        let kind = kinds::rewrite(group);
        let _place = self.place().await;
        let api = self.api(kind, &name.namespace);
        let resource = kind.status();
        let request = Request { verb: "update", resource: &resource, namespace: Some(&name.namespace) };
        let writing = async { api.replace_status(&name.name, &write::params(), &object).await };
        let written = write::write(writing, request).await;
        self.took_rewrite(group, &name, written)
    }
}
