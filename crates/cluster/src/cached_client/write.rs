//! Versioned writes and their outcomes.

use super::{CachedClient, Caches, config_map_item, missing_key_message, parse_rewrite_item, parse_rollout_item};
use crate::{
    api_error::{ApiError, ApiRequest},
    object_cache::NamespacedName,
    resource_kind,
};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::PostParams,
    core::{DynamicObject, Resource},
};
use rollora_api::{
    names::DIRECTIVES_KEY,
    rewrite::{InferenceModelRewrite, RewriteGroup},
    rollout::{Rollout, RolloutStatus},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{fmt::Debug, future::Future, time::Duration};
use tokio::time::timeout;

/// Timeout of one write, after which its outcome is unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// Field manager of all writes, as managed fields show it.
const FIELD_MANAGER: &str = "rollora-operator";

/// Outcome of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectWriteOutcome {
    /// The write succeeded; holds the new resource version.
    Done(String),
    /// The object changed since it was read; read it again before the next attempt.
    Conflict,
    /// The write will not be accepted as it is, for the given reason; retrying without a change does not help.
    Refused(String),
    /// The write did not happen, for the given reason; a retry may succeed.
    Unavailable(String),
    /// The write may or may not have happened, for the given reason.
    Unknown(String),
}

impl From<ApiError> for ObjectWriteOutcome {
    fn from(error: ApiError) -> Self {
        match error {
            // A deleted object is handled like one that another writer changed: it must be read again.
            ApiError::Conflict(_) | ApiError::NotFound(_) => Self::Conflict,
            ApiError::Forbidden(message) | ApiError::Refused(message) => Self::Refused(message),
            ApiError::Unavailable(message) => Self::Unavailable(message),
            ApiError::Unknown(message) => Self::Unknown(message),
        }
    }
}

impl CachedClient {
    /// Writes the status of the Rollout that was read as `version`.
    pub async fn write_status(
        &self,
        name: &NamespacedName,
        version: &str,
        status: &RolloutStatus,
    ) -> ObjectWriteOutcome {
        let Some(mut rollout) = self.rollout_at_version(name, version) else { return self.conflict_on_rollout(name) };
        rollout.status = Some(status.clone());
        let object = match to_dynamic_object(&rollout) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        let _permit = self.acquire_write_permit_unless_intent(name).await;
        let api = self.api(resource_kind::ROLLOUT, &name.namespace);
        let call = async { api.replace_status(&name.name, &post_params(), &object).await };
        let resource = resource_kind::ROLLOUT.status_subresource();
        let result = with_write_timeout(
            call,
            ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) },
        );
        self.finish_rollout_write(name, result.await)
    }

    /// Adds or removes a finalizer of the Rollout that was read as `version`.
    pub async fn write_finalizer(
        &self,
        name: &NamespacedName,
        version: &str,
        finalizer: &str,
        present: bool,
    ) -> ObjectWriteOutcome {
        let Some(mut rollout) = self.rollout_at_version(name, version) else { return self.conflict_on_rollout(name) };
        let finalizers = &mut rollout.metadata.finalizers;
        finalizers.retain(|other| other != finalizer);
        if present {
            finalizers.push(finalizer.to_owned());
        }
        let object = match to_dynamic_object(&rollout) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        // Not rate limited: the write of the weights waits for it.
        let api = self.api(resource_kind::ROLLOUT, &name.namespace);
        let call = async { api.replace(&name.name, &post_params(), &object).await };
        let resource = resource_kind::ROLLOUT.group_resource();
        let result = with_write_timeout(
            call,
            ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) },
        );
        self.finish_rollout_write(name, result.await)
    }

    /// Creates a rewrite, or replaces the one that was read as `version`.
    pub async fn write_rewrite(&self, rewrite: &InferenceModelRewrite, version: Option<&str>) -> ObjectWriteOutcome {
        let Some(group) = rewrite.group() else {
            return ObjectWriteOutcome::Refused(format!("{} is not an API group of rewrites", rewrite.api_version));
        };
        let metadata = &rewrite.metadata;
        let name = NamespacedName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone());
        let mut object = match to_dynamic_object(rewrite) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        object.metadata.resource_version = version.map(str::to_owned);
        let kind = resource_kind::rewrite(group);
        let api = self.api(kind, &name.namespace);
        let resource = kind.group_resource();
        let request = |verb| ApiRequest { verb, resource: &resource, namespace: Some(&name.namespace) };
        let result = if version.is_some() {
            with_write_timeout(async { api.replace(&name.name, &post_params(), &object).await }, request("update"))
                .await
        } else {
            object.metadata.uid = None;
            let created =
                with_write_timeout(async { api.create(&post_params(), &object).await }, request("create")).await;
            // On a create, "not found" means that the kind is not installed.
            created.map_err(|error| match error {
                ApiError::NotFound(_) => {
                    ApiError::Unavailable(format!("the kind {resource} is not installed: install its CRD"))
                }
                error => error,
            })
        };
        self.finish_rewrite_write(group, &name, result)
    }

    /// Writes keys of the ConfigMap that was read as `version`; keys that are `None` stay unchanged.
    ///
    /// The write is rate limited, unless `rollout` has a pending intent.
    pub async fn write_adapters(
        &self,
        rollout: Option<&NamespacedName>,
        name: &NamespacedName,
        key: &str,
        version: &str,
        user_text: Option<&str>,
        directives_text: Option<&str>,
    ) -> ObjectWriteOutcome {
        let map = self.config_map_at_last_read(name);
        let Some(mut map) = map.filter(|map| map.meta().resource_version.as_deref() == Some(version)) else {
            self.mark_config_map_stale(name);
            return ObjectWriteOutcome::Conflict;
        };
        if user_text.is_some() && !map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            return ObjectWriteOutcome::Refused(missing_key_message(name, key, &map));
        }
        let data = map.data.get_or_insert_default();
        data.extend(user_text.map(|text| (key.to_owned(), text.to_owned())));
        data.extend(directives_text.map(|text| (DIRECTIVES_KEY.to_owned(), text.to_owned())));
        let _permit = match rollout {
            Some(rollout) => self.acquire_write_permit_unless_intent(rollout).await,
            None => self.acquire_write_permit().await,
        };
        let api: Api<ConfigMap> = Api::namespaced(self.0.cluster.kube_client(), &name.namespace);
        let resource = resource_kind::CONFIG_MAP.group_resource();
        let request = ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) };
        let result = with_write_timeout(async { api.replace(&name.name, &post_params(), &map).await }, request).await;
        match result {
            Ok(map) => {
                let item = config_map_item(map);
                let version = item.version.clone();
                if let Some(cache) = self.caches().config_maps.get_mut(name) {
                    cache.apply_write(item);
                }
                ObjectWriteOutcome::Done(version)
            }
            Err(error) => {
                self.mark_config_map_stale(name);
                error.into()
            }
        }
    }

    /// Enqueues a Rollout for another reconcile.
    pub fn enqueue(&self, name: &NamespacedName) {
        // Without a receiver there is no change stream, and nothing to enqueue for.
        self.0.enqueue_tx.send(name.clone()).ok();
    }

    fn config_map_at_last_read(&self, name: &NamespacedName) -> Option<ConfigMap> {
        let mut caches = self.caches();
        let orphan = caches.orphans.remove(name);
        match caches.config_maps.get(name) {
            Some(watched) => watched.get(name).map(|(_, map)| map.clone()),
            None => orphan,
        }
    }

    fn rollout_at_version(&self, name: &NamespacedName, version: &str) -> Option<Rollout> {
        let caches = self.caches();
        let (cached_version, rollout) = caches.rollouts.get(name)?;
        let rollout = rollout.as_ref().ok()?;
        (cached_version == version).then(|| Rollout::clone(rollout))
    }

    fn conflict_on_rollout(&self, name: &NamespacedName) -> ObjectWriteOutcome {
        self.caches().rollouts.mark_stale(name);
        ObjectWriteOutcome::Conflict
    }

    fn finish_rollout_write(
        &self,
        name: &NamespacedName,
        result: Result<DynamicObject, ApiError>,
    ) -> ObjectWriteOutcome {
        match result {
            Ok(object) => {
                let item = parse_rollout_item(object);
                let version = item.version.clone();
                self.caches().rollouts.apply_write(item);
                ObjectWriteOutcome::Done(version)
            }
            Err(error) => {
                self.caches().rollouts.mark_stale(name);
                error.into()
            }
        }
    }

    pub(super) fn finish_rewrite_write(
        &self,
        group: RewriteGroup,
        name: &NamespacedName,
        result: Result<DynamicObject, ApiError>,
    ) -> ObjectWriteOutcome {
        match result {
            Ok(object) => {
                let version = object.metadata.resource_version.clone().unwrap_or_default();
                let caches = &mut *self.caches();
                match parse_rewrite_item(group, object) {
                    Some(item) => caches.rewrites_mut(group).apply_write(item),
                    None => caches.rewrites_mut(group).mark_stale(name),
                }
                caches.mark_dirty([name]);
                ObjectWriteOutcome::Done(version)
            }
            Err(error) => {
                self.caches().rewrites_mut(group).mark_stale(name);
                error.into()
            }
        }
    }

    fn mark_config_map_stale(&self, name: &NamespacedName) {
        let caches: &mut Caches = &mut self.caches();
        if let Some(cache) = caches.config_maps.get_mut(name) {
            cache.mark_stale(name);
        }
    }
}

/// Applies the write timeout to one write; a timeout leaves its outcome unknown.
pub(crate) async fn with_write_timeout<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
    request: ApiRequest<'_>,
) -> Result<T, ApiError> {
    match timeout(WRITE_TIMEOUT, call).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(ApiError::of(&error, request)),
        Err(_) => Err(ApiError::Unknown(format!("{request}: no response within {WRITE_TIMEOUT:?}"))),
    }
}

pub(super) fn post_params() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) }
}

/// Converts one of our types into an API object.
pub(super) fn to_dynamic_object<T: Serialize + Debug>(value: &T) -> Result<DynamicObject, ObjectWriteOutcome> {
    fn from_value<D: DeserializeOwned>(value: serde_json::Value) -> Result<D, serde_json::Error> {
        serde_json::from_value(value)
    }
    serde_json::to_value(value)
        .and_then(from_value)
        .map_err(|error| ObjectWriteOutcome::Refused(format!("cannot serialize the object: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_errors_map_to_write_outcomes() {
        let message = || "w".to_owned();
        for (error, outcome) in [
            (ApiError::Conflict(message()), ObjectWriteOutcome::Conflict),
            (ApiError::NotFound(message()), ObjectWriteOutcome::Conflict),
            (ApiError::Forbidden(message()), ObjectWriteOutcome::Refused(message())),
            (ApiError::Refused(message()), ObjectWriteOutcome::Refused(message())),
            (ApiError::Unavailable(message()), ObjectWriteOutcome::Unavailable(message())),
            (ApiError::Unknown(message()), ObjectWriteOutcome::Unknown(message())),
        ] {
            assert_eq!(ObjectWriteOutcome::from(error), outcome);
        }
    }
}
