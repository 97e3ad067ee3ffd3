//! ConfigMaps that still have the key `rollora.yaml` although no Rollout references them, because the last one was
//! deleted while no operator ran. Sidecars would wait permanently for the admission of ids that no Rollout manages
//! anymore.

use super::{CachedClient, Caches, ObjectReadError, write::ObjectWriteOutcome};
use crate::{
    api_error::{ApiError, ApiRequest},
    object_cache::NamespacedName,
    resource_kind,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PartialObjectMeta},
};
use rollora_api::names::DIRECTIVES_KEY;
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// Number of objects in one page of the list, which contains only their metadata.
const PAGE_SIZE: u32 = 500;
/// Timeout of one page of the list.
const PAGE_TIMEOUT: Duration = Duration::from_secs(8);

impl CachedClient {
    /// Lists the orphaned ConfigMaps. Managed fields show which ones have the key, so that no data has to be read.
    pub async fn orphaned_config_maps(&self) -> Result<Vec<NamespacedName>, ObjectReadError> {
        let api: Api<ConfigMap> = self.0.scope.api(self.0.cluster.kube_client());
        let resource = resource_kind::CONFIG_MAP.group_resource();
        let request = ApiRequest { verb: "list", resource: &resource, namespace: self.0.scope.namespace() };
        let (mut with_key, mut params) = (Vec::new(), ListParams::default().limit(PAGE_SIZE));
        loop {
            let page = match timeout(PAGE_TIMEOUT, api.list_metadata(&params)).await {
                Ok(Ok(page)) => page,
                Ok(Err(error)) => return Err(ObjectReadError::Unavailable(ApiError::of(&error, request).to_string())),
                Err(_) => {
                    return Err(ObjectReadError::Unavailable(format!(
                        "{request}: no response within {PAGE_TIMEOUT:?}"
                    )));
                }
            };
            with_key.extend(page.items.iter().filter(|map| has_directives_key(map)).map(name_of));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        // Every Rollout must be known before any ConfigMap counts as orphaned.
        self.rollouts().await?;
        let caches = self.caches();
        with_key.retain(|name| !caches.may_reference(name));
        Ok(with_key)
    }

    /// Replaces the text of the key `rollora.yaml`. Returns `None` if nothing has to change, or if a Rollout references
    /// the ConfigMap now.
    pub async fn clear_orphan(
        &self,
        name: &NamespacedName,
        text: &str,
    ) -> Result<Option<ObjectWriteOutcome>, ObjectReadError> {
        let map: Option<ConfigMap> =
            self.get_live(resource_kind::CONFIG_MAP, name).await?.and_then(|map| map.try_parse().ok());
        // A replica that begins to use the ConfigMap writes it after this read, which makes this write conflict.
        let Some(map) = map.filter(|_| !self.caches().may_reference(name)) else { return Ok(None) };
        let version = map.resource_version().unwrap_or_default();
        let present = map.data.as_ref().and_then(|data| data.get(DIRECTIVES_KEY));
        if present.is_none_or(|present| present == text) {
            return Ok(None);
        }
        self.caches().orphans.insert(name.clone(), map);
        Ok(Some(self.write_adapters(None, name, DIRECTIVES_KEY, &version, None, Some(text)).await))
    }
}

impl Caches {
    /// Returns whether a Rollout references this ConfigMap, or might, because it cannot be parsed.
    fn may_reference(&self, map: &NamespacedName) -> bool {
        self.rollouts
            .in_namespace(&map.namespace)
            .any(|(_, _, rollout)| rollout.as_ref().map_or(true, |rollout| rollout.spec.adapters_ref.name == map.name))
    }
}

fn has_directives_key(map: &PartialObjectMeta<ConfigMap>) -> bool {
    let key = format!("f:{DIRECTIVES_KEY}");
    let owns = |fields: &Value| fields.get("f:data").is_some_and(|data| data.get(&key).is_some());
    map.managed_fields().iter().filter_map(|entry| entry.fields_v1.as_ref()).any(|fields| owns(&fields.0))
}

fn name_of(map: &PartialObjectMeta<ConfigMap>) -> NamespacedName {
    NamespacedName::new(map.namespace().unwrap_or_default(), map.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn managed_fields_show_which_maps_have_the_key() {
        let map = |key: &str| -> PartialObjectMeta<ConfigMap> {
            serde_json::from_value(json!({
                "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": { "name": "a", "namespace": "n", "managedFields": [
                    { "manager": "kubectl", "operation": "Update", "fieldsV1": { "f:data": { ".": {}, "f:configmap.yaml": {} } } },
                    { "manager": "anybody", "operation": "Update", "fieldsV1": { "f:data": { key: {} } } },
                ] },
            }))
            .unwrap()
        };
        assert!(has_directives_key(&map("f:rollora.yaml")));
        assert!(!has_directives_key(&map("f:other.yaml")));
        assert_eq!(name_of(&map("f:rollora.yaml")), NamespacedName::new("n", "a"));
    }
}
