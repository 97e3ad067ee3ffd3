//! Writes, each with the version that was read, and how they end.

use super::{Books, Documents, map_item, no_key, rewrite_item, rollout_item};
use crate::{
    answer::{ApiError, Request},
    kinds,
    shelf::ObjectName,
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
const LIMIT: Duration = Duration::from_secs(8);
/// Who writes, as managedFields show it.
const MANAGER: &str = "rollora-operator";

/// How a write ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// It is written, and this is the new version.
    Done(String),
    /// Somebody wrote in between: read again.
    Stale,
    /// It will not be taken as it is; the reason in words.
    Refused(String),
    /// It was not written; trying again may help.
    Unavailable(String),
    /// Nobody knows whether it was written.
    Unknown(String),
}

impl From<ApiError> for Written {
    fn from(error: ApiError) -> Self {
        match error {
            // Not there any more: reading again tells, as after somebody else's write.
            ApiError::Conflict(_) | ApiError::NotFound(_) => Self::Stale,
            ApiError::Forbidden(words) | ApiError::Refused(words) => Self::Refused(words),
            ApiError::Unavailable(words) => Self::Unavailable(words),
            ApiError::Unknown(words) => Self::Unknown(words),
        }
    }
}

impl Documents {
    /// Writes the status of the Rollout that was read as `version`.
    pub async fn write_status(&self, name: &ObjectName, version: &str, status: &RolloutStatus) -> Written {
        let Some(mut rollout) = self.rollout_at(name, version) else { return self.stale_rollout(name) };
        rollout.status = Some(status.clone());
        let object = match dynamic(&rollout) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        let _place = self.place_unless_wished(name).await;
        let api = self.api(kinds::ROLLOUT, &name.namespace);
        let writing = async { api.replace_status(&name.name, &params(), &object).await };
        let resource = kinds::ROLLOUT.status();
        let written = write(writing, Request { verb: "update", resource: &resource, namespace: Some(&name.namespace) });
        self.took_rollout(name, written.await)
    }

    /// Puts our finalizer on the Rollout that was read as `version`, or takes it off.
    pub async fn write_finalizer(&self, name: &ObjectName, version: &str, finalizer: &str, present: bool) -> Written {
        let Some(mut rollout) = self.rollout_at(name, version) else { return self.stale_rollout(name) };
        let finalizers = &mut rollout.metadata.finalizers;
        finalizers.retain(|other| other != finalizer);
        if present {
            finalizers.push(finalizer.to_owned());
        }
        let object = match dynamic(&rollout) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        // In no line: the weights wait for it.
        let api = self.api(kinds::ROLLOUT, &name.namespace);
        let writing = async { api.replace(&name.name, &params(), &object).await };
        let resource = kinds::ROLLOUT.resource();
        let written = write(writing, Request { verb: "update", resource: &resource, namespace: Some(&name.namespace) });
        self.took_rollout(name, written.await)
    }

    /// Makes a rewrite, or replaces the one that was read as `version`.
    pub async fn write_rewrite(&self, rewrite: &InferenceModelRewrite, version: Option<&str>) -> Written {
        let Some(group) = rewrite.group() else {
            return Written::Refused(format!("{} is no group of rewrites", rewrite.api_version));
        };
        let metadata = &rewrite.metadata;
        let name = ObjectName::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone());
        let mut object = match dynamic(rewrite) {
            Ok(object) => object,
            Err(refused) => return refused,
        };
        object.metadata.resource_version = version.map(str::to_owned);
        let kind = kinds::rewrite(group);
        let api = self.api(kind, &name.namespace);
        let resource = kind.resource();
        let request = |verb| Request { verb, resource: &resource, namespace: Some(&name.namespace) };
        let written = if version.is_some() {
            write(async { api.replace(&name.name, &params(), &object).await }, request("update")).await
        } else {
            object.metadata.uid = None;
            let made = write(async { api.create(&params(), &object).await }, request("create")).await;
            // It is the kind that is not there, or not any more.
            made.map_err(|error| match error {
                ApiError::NotFound(_) => ApiError::Unavailable(format!("the kind {resource} is not installed")),
                error => error,
            })
        };
        self.took_rewrite(group, &name, written)
    }

    /// Writes keys of the ConfigMap that was read as `version`; what is none stays. It waits no longer than what somebody
    /// asks of `rollout`.
    pub async fn write_adapters(
        &self,
        rollout: Option<&ObjectName>,
        name: &ObjectName,
        key: &str,
        version: &str,
        user_text: Option<&str>,
        key_text: Option<&str>,
    ) -> Written {
        let map = self.map_as_read(name);
        let Some(mut map) = map.filter(|map| map.meta().resource_version.as_deref() == Some(version)) else {
            self.doubt_map(name);
            return Written::Stale;
        };
        if user_text.is_some() && !map.data.as_ref().is_some_and(|data| data.contains_key(key)) {
            return Written::Refused(no_key(name, key, &map));
        }
        let data = map.data.get_or_insert_default();
        data.extend(user_text.map(|text| (key.to_owned(), text.to_owned())));
        data.extend(key_text.map(|text| (DIRECTIVES_KEY.to_owned(), text.to_owned())));
        let _place = match rollout {
            Some(rollout) => self.place_unless_wished(rollout).await,
            None => self.place().await,
        };
        let api: Api<ConfigMap> = Api::namespaced(self.0.cluster.client(), &name.namespace);
        let resource = kinds::CONFIG_MAP.resource();
        let request = Request { verb: "update", resource: &resource, namespace: Some(&name.namespace) };
        let written = write(async { api.replace(&name.name, &params(), &map).await }, request).await;
        match written {
            Ok(map) => {
                let item = map_item(map);
                let version = item.version.clone();
                if let Some(shelf) = self.books().config_maps.get_mut(name) {
                    shelf.wrote(item);
                }
                Written::Done(version)
            }
            Err(error) => {
                self.doubt_map(name);
                error.into()
            }
        }
    }

    /// This Rollout is to be looked at once more.
    pub fn ring(&self, name: &ObjectName) {
        // Where nobody listens any more, nobody works any more.
        self.0.rung.send(name.clone()).ok();
    }

    fn map_as_read(&self, name: &ObjectName) -> Option<ConfigMap> {
        let mut books = self.books();
        let abandoned = books.abandoned.remove(name);
        match books.config_maps.get(name) {
            Some(watched) => watched.get(name).map(|(_, map)| map.clone()),
            None => abandoned,
        }
    }

    fn rollout_at(&self, name: &ObjectName, version: &str) -> Option<Rollout> {
        let books = self.books();
        let (found, rollout) = books.rollouts.get(name)?;
        let rollout = rollout.as_ref().ok()?;
        (found == version).then(|| Rollout::clone(rollout))
    }

    fn stale_rollout(&self, name: &ObjectName) -> Written {
        self.books().rollouts.doubt(name);
        Written::Stale
    }

    fn took_rollout(&self, name: &ObjectName, written: Result<DynamicObject, ApiError>) -> Written {
        match written {
            Ok(object) => {
                let item = rollout_item(object);
                let version = item.version.clone();
                self.books().rollouts.wrote(item);
                Written::Done(version)
            }
            Err(error) => {
                self.books().rollouts.doubt(name);
                error.into()
            }
        }
    }

    pub(super) fn took_rewrite(
        &self,
        group: RewriteGroup,
        name: &ObjectName,
        written: Result<DynamicObject, ApiError>,
    ) -> Written {
        match written {
            Ok(object) => {
                let version = object.metadata.resource_version.clone().unwrap_or_default();
                let books = &mut *self.books();
                match rewrite_item(group, object) {
                    Some(item) => books.rewrites_mut(group).wrote(item),
                    None => books.rewrites_mut(group).doubt(name),
                }
                books.stir([name]);
                Written::Done(version)
            }
            Err(error) => {
                self.books().rewrites_mut(group).doubt(name);
                error.into()
            }
        }
    }

    fn doubt_map(&self, name: &ObjectName) {
        let books: &mut Books = &mut self.books();
        if let Some(shelf) = books.config_maps.get_mut(name) {
            shelf.doubt(name);
        }
    }
}

/// One write with its time limit.
pub(crate) async fn write<T>(
    writing: impl Future<Output = Result<T, kube::Error>>,
    request: Request<'_>,
) -> Result<T, ApiError> {
    match timeout(LIMIT, writing).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(error)) => Err(ApiError::of(&error, request)),
        Err(_) => Err(ApiError::Unknown(format!("{request}: no answer within {LIMIT:?}"))),
    }
}

pub(super) fn params() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) }
}

/// Our type as an object of the API.
pub(super) fn dynamic<T: Serialize + Debug>(value: &T) -> Result<DynamicObject, Written> {
    fn read<D: DeserializeOwned>(value: serde_json::Value) -> Result<D, serde_json::Error> {
        serde_json::from_value(value)
    }
    serde_json::to_value(value)
        .and_then(read)
        .map_err(|error| Written::Refused(format!("it cannot be written down: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_race_is_stale_and_only_an_open_end_is_unknown() {
        let words = || "w".to_owned();
        for (error, end) in [
            (ApiError::Conflict(words()), Written::Stale),
            (ApiError::NotFound(words()), Written::Stale),
            (ApiError::Forbidden(words()), Written::Refused(words())),
            (ApiError::Refused(words()), Written::Refused(words())),
            (ApiError::Unavailable(words()), Written::Unavailable(words())),
            (ApiError::Unknown(words()), Written::Unknown(words())),
        ] {
            assert_eq!(Written::from(error), end);
        }
    }
}
