//! Writes, each with the version that was read, and how they end.

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

/// How long a write may take before nobody waits for it any more.
const WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// Who writes, as managedFields show it.
const FIELD_MANAGER: &str = "rollora-operator";

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectWriteOutcome {
    /// It is written, and this is the new version.
    Done(String),
    /// Somebody wrote in between: read again.
    Conflict,
    /// It will not be taken as it is; the reason in words.
    Refused(String),
    /// It was not written; trying again may help.
    Unavailable(String),
    /// Nobody knows whether it was written.
    Unknown(String),
}

impl From<ApiError> for ObjectWriteOutcome {
    fn from(error: ApiError) -> Self {
        match error {
            // Not there any more: reading again tells, as after somebody else's write.
            ApiError::Conflict(_) | ApiError::NotFound(_) => Self::Conflict,
            ApiError::Forbidden(words) | ApiError::Refused(words) => Self::Refused(words),
            ApiError::Unavailable(words) => Self::Unavailable(words),
            ApiError::Unknown(words) => Self::Unknown(words),
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
        let _place = self.acquire_write_permit_unless_intent(name).await;
        let api = self.api(resource_kind::ROLLOUT, &name.namespace);
        let writing = async { api.replace_status(&name.name, &post_params(), &object).await };
        let resource = resource_kind::ROLLOUT.status_subresource();
        let written = with_write_timeout(
            writing,
            ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) },
        );
        self.finish_rollout_write(name, written.await)
    }

    /// Puts our finalizer on the Rollout that was read as `version`, or takes it off.
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
        // In no line: the weights wait for it.
        let api = self.api(resource_kind::ROLLOUT, &name.namespace);
        let writing = async { api.replace(&name.name, &post_params(), &object).await };
        let resource = resource_kind::ROLLOUT.group_resource();
        let written = with_write_timeout(
            writing,
            ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) },
        );
        self.finish_rollout_write(name, written.await)
    }

    /// Makes a rewrite, or replaces the one that was read as `version`.
    pub async fn write_rewrite(&self, rewrite: &InferenceModelRewrite, version: Option<&str>) -> ObjectWriteOutcome {
        let Some(group) = rewrite.group() else {
            return ObjectWriteOutcome::Refused(format!("{} is no group of rewrites", rewrite.api_version));
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
        let written = if version.is_some() {
            with_write_timeout(async { api.replace(&name.name, &post_params(), &object).await }, request("update"))
                .await
        } else {
            object.metadata.uid = None;
            let made = with_write_timeout(async { api.create(&post_params(), &object).await }, request("create")).await;
            // It is the kind that is not there, or not any more.
            made.map_err(|error| match error {
                ApiError::NotFound(_) => ApiError::Unavailable(format!("the kind {resource} is not installed")),
                error => error,
            })
        };
        self.finish_rewrite_write(group, &name, written)
    }

    /// Writes keys of the ConfigMap that was read as `version`; what is none stays. It waits no longer than what somebody
    /// asks of `rollout`.
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
        let _place = match rollout {
            Some(rollout) => self.acquire_write_permit_unless_intent(rollout).await,
            None => self.acquire_write_permit().await,
        };
        let api: Api<ConfigMap> = Api::namespaced(self.0.cluster.kube_client(), &name.namespace);
        let resource = resource_kind::CONFIG_MAP.group_resource();
        let request = ApiRequest { verb: "update", resource: &resource, namespace: Some(&name.namespace) };
        let written = with_write_timeout(async { api.replace(&name.name, &post_params(), &map).await }, request).await;
        match written {
            Ok(map) => {
                let item = config_map_item(map);
                let version = item.version.clone();
                if let Some(shelf) = self.caches().config_maps.get_mut(name) {
                    shelf.apply_write(item);
                }
                ObjectWriteOutcome::Done(version)
            }
            Err(error) => {
                self.mark_config_map_stale(name);
                error.into()
            }
        }
    }

    /// This Rollout is to be looked at once more.
    pub fn enqueue(&self, name: &NamespacedName) {
        // Where nobody listens any more, nobody works any more.
        self.0.enqueue_tx.send(name.clone()).ok();
    }

    fn config_map_at_last_read(&self, name: &NamespacedName) -> Option<ConfigMap> {
        let mut books = self.caches();
        let abandoned = books.orphans.remove(name);
        match books.config_maps.get(name) {
            Some(watched) => watched.get(name).map(|(_, map)| map.clone()),
            None => abandoned,
        }
    }

    fn rollout_at_version(&self, name: &NamespacedName, version: &str) -> Option<Rollout> {
        let books = self.caches();
        let (found, rollout) = books.rollouts.get(name)?;
        let rollout = rollout.as_ref().ok()?;
        (found == version).then(|| Rollout::clone(rollout))
    }

    fn conflict_on_rollout(&self, name: &NamespacedName) -> ObjectWriteOutcome {
        self.caches().rollouts.mark_stale(name);
        ObjectWriteOutcome::Conflict
    }

    fn finish_rollout_write(
        &self,
        name: &NamespacedName,
        written: Result<DynamicObject, ApiError>,
    ) -> ObjectWriteOutcome {
        match written {
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
        written: Result<DynamicObject, ApiError>,
    ) -> ObjectWriteOutcome {
        match written {
            Ok(object) => {
                let version = object.metadata.resource_version.clone().unwrap_or_default();
                let books = &mut *self.caches();
                match parse_rewrite_item(group, object) {
                    Some(item) => books.rewrites_mut(group).apply_write(item),
                    None => books.rewrites_mut(group).mark_stale(name),
                }
                books.mark_dirty([name]);
                ObjectWriteOutcome::Done(version)
            }
            Err(error) => {
                self.caches().rewrites_mut(group).mark_stale(name);
                error.into()
            }
        }
    }

    fn mark_config_map_stale(&self, name: &NamespacedName) {
        let books: &mut Caches = &mut self.caches();
        if let Some(shelf) = books.config_maps.get_mut(name) {
            shelf.mark_stale(name);
        }
    }
}

/// One write with its time limit.
pub(crate) async fn with_write_timeout<T>(
    writing: impl Future<Output = Result<T, kube::Error>>,
    request: ApiRequest<'_>,
) -> Result<T, ApiError> {
    match timeout(WRITE_TIMEOUT, writing).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(ApiError::of(&error, request)),
        Err(_) => Err(ApiError::Unknown(format!("{request}: no answer within {WRITE_TIMEOUT:?}"))),
    }
}

pub(super) fn post_params() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(FIELD_MANAGER.to_owned()) }
}

/// Our type as an object of the API.
pub(super) fn to_dynamic_object<T: Serialize + Debug>(value: &T) -> Result<DynamicObject, ObjectWriteOutcome> {
    fn from_value<D: DeserializeOwned>(value: serde_json::Value) -> Result<D, serde_json::Error> {
        serde_json::from_value(value)
    }
    serde_json::to_value(value)
        .and_then(from_value)
        .map_err(|error| ObjectWriteOutcome::Refused(format!("it cannot be written down: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_race_is_stale_and_only_an_open_end_is_unknown() {
        let words = || "w".to_owned();
        for (error, end) in [
            (ApiError::Conflict(words()), ObjectWriteOutcome::Conflict),
            (ApiError::NotFound(words()), ObjectWriteOutcome::Conflict),
            (ApiError::Forbidden(words()), ObjectWriteOutcome::Refused(words())),
            (ApiError::Refused(words()), ObjectWriteOutcome::Refused(words())),
            (ApiError::Unavailable(words()), ObjectWriteOutcome::Unavailable(words())),
            (ApiError::Unknown(words()), ObjectWriteOutcome::Unknown(words())),
        ] {
            assert_eq!(ObjectWriteOutcome::from(error), end);
        }
    }
}
