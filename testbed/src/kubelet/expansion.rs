//! Expansion of the variables and mount paths in a container's environment, command and arguments. Pure.

use super::config_cache::{ConfigCache, ConfigKind};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// Why a container's configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum ContainerConfigError {
    #[error("the kubelet stand-in does not support the pod field {0:?}")]
    UnknownField(String),
    #[error("the kubelet stand-in does not support {0}")]
    Unsupported(&'static str),
    #[error("{kind} {name:?} does not exist or has no key {key:?}")]
    MissingKey { kind: ConfigKind, name: String, key: String },
}

/// What the expansion can refer to.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodContext<'a> {
    pub(super) pod: &'a Pod,
    pub(super) address: Ipv4Addr,
    pub(super) config: &'a ConfigCache,
}

impl PodContext<'_> {
    /// Returns a field by its path in the downward API.
    pub(super) fn field_value(&self, path: &str) -> Result<String, ContainerConfigError> {
        let metadata = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let text = |value: Option<&String>| Ok(value.cloned().unwrap_or_default());
        if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            let map = match map {
                "metadata.labels" => metadata.labels.as_ref(),
                "metadata.annotations" => metadata.annotations.as_ref(),
                _ => return Err(ContainerConfigError::UnknownField(path.to_owned())),
            };
            return text(map.and_then(|map| map.get(key)));
        }
        match path {
            "metadata.name" => text(metadata.name.as_ref()),
            "metadata.namespace" => text(metadata.namespace.as_ref()),
            "metadata.uid" => text(metadata.uid.as_ref()),
            "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
            "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
            "status.podIP" | "status.podIPs" => Ok(self.address.to_string()),
            "status.hostIP" | "status.hostIPs" => Ok(Ipv4Addr::LOCALHOST.to_string()),
            _ => Err(ContainerConfigError::UnknownField(path.to_owned())),
        }
    }

    /// Returns the environment of a container.
    pub(super) fn env(&self, container: &Container) -> Result<BTreeMap<String, String>, ContainerConfigError> {
        let mut env = BTreeMap::new();
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.as_deref().unwrap_or_default();
            let (kind, name) = match (&source.config_map_ref, &source.secret_ref) {
                (Some(config), _) => (ConfigKind::ConfigMap, &config.name),
                (None, Some(secret)) => (ConfigKind::Secret, &secret.name),
                (None, None) => return Err(ContainerConfigError::Unsupported("this kind of envFrom")),
            };
            for (key, value) in self.config.get(kind, name).unwrap_or_default() {
                env.insert(format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned());
            }
        }
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), _) => Some(expand_variables(value, &env)),
                (None, Some(source)) => self.resolve_value(source)?,
                (None, None) => Some(String::new()),
            };
            if let Some(value) = value {
                env.insert(variable.name.clone(), value);
            }
        }
        Ok(env)
    }

    /// Returns `None` if an optional source does not exist.
    fn resolve_value(&self, source: &EnvVarSource) -> Result<Option<String>, ContainerConfigError> {
        if let Some(field) = &source.field_ref {
            return self.field_value(&field.field_path).map(Some);
        }
        let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
            (Some(config), _) => (ConfigKind::ConfigMap, &config.name, &config.key, config.optional),
            (None, Some(secret)) => (ConfigKind::Secret, &secret.name, &secret.key, secret.optional),
            (None, None) => return Err(ContainerConfigError::Unsupported("this kind of valueFrom")),
        };
        let value = self.config.get(kind, name).and_then(|mut data| data.remove(key));
        match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
            None if optional == Some(true) => Ok(None),
            None => Err(ContainerConfigError::MissingKey { kind, name: name.clone(), key: key.clone() }),
        }
    }
}

/// Expands `$(NAME)`. Unknown variables stay as they are, and `$$` is an escaped `$`.
pub(super) fn expand_variables(text: &str, env: &BTreeMap<String, String>) -> String {
    let (mut rest, mut out) = (text, String::new());
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match env.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out + rest
}

/// Mount paths of a container and the host folders of their volumes.
#[derive(Debug, Clone, Default)]
pub(super) struct MountPaths(Vec<(String, PathBuf)>);

impl MountPaths {
    /// Sorts by length, so that a path that is mounted inside another one is matched first.
    pub(super) fn new(mut mounts: Vec<(String, PathBuf)>) -> Self {
        for (path, _) in &mut mounts {
            path.truncate(path.trim_end_matches('/').len());
        }
        mounts.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self(mounts)
    }

    /// Replaces every path below a mount by its host path. A match must begin at a word boundary, and end at one or
    /// continue below the mount.
    pub(super) fn translate(&self, text: &str) -> String {
        let mut out = String::new();
        let mut rest = text;
        'text: while let Some(first) = rest.chars().next() {
            let begins = out.chars().next_back().is_none_or(|c| !(c.is_alphanumeric() || "/._-".contains(c)));
            for (path, real) in self.0.iter().filter(|_| begins && first == '/') {
                let after = rest.strip_prefix(path.as_str());
                let ends =
                    |after: &&str| after.chars().next().is_none_or(|c| !(c.is_alphanumeric() || "._-".contains(c)));
                if let Some(after) = after.filter(ends) {
                    out.push_str(&real.display().to_string());
                    rest = after;
                    continue 'text;
                }
            }
            out.push(first);
            rest = rest.get(first.len_utf8()..).unwrap_or_default();
        }
        out
    }

    /// Translates a path of the container, if it is below a mount.
    pub(super) fn host_path(&self, path: &Path) -> PathBuf {
        PathBuf::from(self.translate(&path.display().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn known_variables_are_expanded_and_unknown_ones_kept() {
        let env = env(&[("POD_IP", "127.64.0.1"), ("EMPTY", "")]);
        for (text, expected) in [
            ("--address=$(POD_IP)", "--address=127.64.0.1"),
            ("$(POD_IP):$(POD_IP)", "127.64.0.1:127.64.0.1"),
            ("a$(EMPTY)b", "ab"),
            ("$(OTHER)", "$(OTHER)"),
            ("$$(POD_IP)", "$(POD_IP)"),
            ("$$$(POD_IP)", "$127.64.0.1"),
            ("$(POD_IP", "$(POD_IP"),
            ("cost: 5$", "cost: 5$"),
            ("$POD_IP", "$POD_IP"),
        ] {
            assert_eq!(expand_variables(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn missing_key_is_an_error_unless_optional() {
        let (pod, sources) = (Pod::default(), ConfigCache::new());
        let address = Ipv4Addr::LOCALHOST;
        let container = |optional: bool| {
            let key = serde_json::json!({ "name": "keys", "key": "api-key", "optional": optional });
            let env = serde_json::json!([{ "name": "KEY", "valueFrom": { "secretKeyRef": key } }]);
            serde_json::from_value(serde_json::json!({ "name": "main", "env": env })).unwrap()
        };
        let read = |optional| PodContext { pod: &pod, address, config: &sources }.env(&container(optional));
        let missing = ContainerConfigError::MissingKey {
            kind: ConfigKind::Secret,
            name: "keys".to_owned(),
            key: "api-key".to_owned(),
        };
        assert_eq!((read(false), read(true)), (Err(missing), Ok(env(&[]))));
        sources.put(ConfigKind::Secret, "keys", &[("api-key", "secret")]);
        assert_eq!(read(false), Ok(env(&[("KEY", "secret")])));
    }

    #[test]
    fn paths_below_a_mount_become_host_paths() {
        let mounts = MountPaths::new(vec![
            ("/config".to_owned(), PathBuf::from("/tmp/a")),
            ("/config/deep/".to_owned(), PathBuf::from("/tmp/b")),
        ]);
        for (text, expected) in [
            ("/config", "/tmp/a"),
            ("--config=/config/configmap.yaml", "--config=/tmp/a/configmap.yaml"),
            ("cat /config/x /config/deep/y", "cat /tmp/a/x /tmp/b/y"),
            ("/config/deeper", "/tmp/a/deeper"),
            ("/configuration", "/configuration"),
            ("/etc/config/x", "/etc/config/x"),
            ("http://host/config", "http://host/config"),
            ("\"/config/x\"", "\"/tmp/a/x\""),
            ("a=/config:/config", "a=/tmp/a:/tmp/a"),
        ] {
            assert_eq!(mounts.translate(text), expected, "{text}");
        }
        assert_eq!(mounts.host_path(Path::new("/config/x")), Path::new("/tmp/a/x"));
    }
}
