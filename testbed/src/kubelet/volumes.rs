//! The volumes of a pod, each a folder of this machine.
//!
//! A volume whose content comes from the API server is created before any container starts, and is updated whenever its
//! sources change, after the configured projection delay. An error keeps the pod from starting; once the pod runs, the
//! files stay as they were. In addition, every pod whose service account has a token gets the volume [`TOKEN_VOLUME`].

use super::{
    NodeContext,
    config_cache::ConfigKind,
    expansion::{MountPaths, PodContext},
    projection::{self, ProjectedFile, ProjectedFiles},
    token::{self, BoundToken},
};
use crate::clock;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::{
    api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection},
    jiff::Timestamp,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
    time::Duration,
};

/// Name of the volume with the token, and the path where a kubelet mounts it.
const TOKEN_VOLUME: &str = "kube-api-access";
const TOKEN_MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// The volumes of one pod.
#[derive(Debug)]
pub(super) struct Volumes {
    folder: PathBuf,
    sources: Vec<(String, VolumeContent)>,
    /// By volume and index in it; a token is requested again only when its renewal is due.
    tokens: Mutex<Vec<((String, usize), BoundToken)>>,
}

/// Content of a volume.
#[derive(Debug, Clone)]
enum VolumeContent {
    EmptyDir,
    Projected { parts: Vec<VolumeProjection>, mode: Option<i32> },
    ServiceAccountToken,
}

impl Volumes {
    /// Plans the volumes that the pod asks for, in folders below `folder`.
    pub(super) fn new(pod: &Pod, folder: &Path) -> Result<Self> {
        let spec = pod.spec.as_ref().context("a pod without spec")?;
        let mut contents = Vec::new();
        for volume in spec.volumes.iter().flatten() {
            contents.push((volume.name.clone(), VolumeContent::from_volume(volume)?));
        }
        if spec.automount_service_account_token != Some(false) {
            contents.push((TOKEN_VOLUME.to_owned(), VolumeContent::ServiceAccountToken));
        }
        Ok(Self { folder: folder.join("volumes"), sources: contents, tokens: Mutex::default() })
    }

    /// Returns the mount paths of a container.
    pub(super) fn mounts(&self, container: &k8s_openapi::api::core::v1::Container) -> Result<MountPaths> {
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let whole_volume = mount.sub_path.is_none() && mount.sub_path_expr.is_none();
            ensure!(whole_volume, "the kubelet stand-in does not support subPath (volume mount {:?})", mount.name);
            let known = self.sources.iter().any(|(name, _)| *name == mount.name);
            ensure!(known, "the pod has no volume {:?}", mount.name);
            mounts.push((mount.mount_path.clone(), self.folder.join(&mount.name)));
        }
        mounts.push((TOKEN_MOUNT_PATH.to_owned(), self.folder.join(TOKEN_VOLUME)));
        Ok(MountPaths::new(mounts))
    }

    /// Returns the kubeconfig file next to the token, or `None` if the pod has no token.
    pub(super) fn kubeconfig(&self) -> Option<PathBuf> {
        let has_one = self.sources.iter().any(|(name, _)| name == TOKEN_VOLUME);
        has_one.then(|| self.folder.join(TOKEN_VOLUME).join("kubeconfig"))
    }

    /// Updates all volumes to their desired content.
    pub(super) async fn sync(&self, context: &NodeContext, pod_context: PodContext<'_>) -> Result<()> {
        for (name, content) in &self.sources {
            let folder = self.folder.join(name);
            let result = match content {
                VolumeContent::EmptyDir => fs::create_dir_all(&folder).map_err(Into::into),
                VolumeContent::Projected { parts, mode } => {
                    self.sync_projected(context, pod_context, name, parts, *mode).await
                }
                VolumeContent::ServiceAccountToken => self.sync_service_account(context, pod_context, &folder).await,
            };
            result.with_context(|| format!("volume {name:?}"))?;
        }
        Ok(())
    }

    /// Returns when the next token must be renewed.
    pub(super) fn next_renewal(&self) -> Option<Timestamp> {
        let tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.iter().map(|(_, token)| token.renew_at).min()
    }

    async fn sync_projected(
        &self,
        context: &NodeContext,
        pod_context: PodContext<'_>,
        volume: &str,
        parts: &[VolumeProjection],
        mode: Option<i32>,
    ) -> Result<()> {
        let mut files = ProjectedFiles::new();
        for (index, part) in parts.iter().enumerate() {
            if let Some(token) = &part.service_account_token {
                let lifetime = token.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let lifetime = Duration::from_secs(lifetime.unwrap_or_default());
                let key = (volume.to_owned(), index);
                let text =
                    self.cached_token(context, pod_context.pod, key, token.audience.as_deref(), lifetime).await?;
                files.insert(token.path.clone(), ProjectedFile { content: text.into_bytes(), mode: 0o600 });
            } else {
                files.extend(projection_files(pod_context, part, mode)?);
            }
        }
        projection::project(&self.folder.join(volume), &files)?;
        Ok(())
    }

    async fn sync_service_account(
        &self,
        context: &NodeContext,
        pod_context: PodContext<'_>,
        folder: &Path,
    ) -> Result<()> {
        let text =
            self.cached_token(context, pod_context.pod, (TOKEN_VOLUME.to_owned(), 0), None, Duration::ZERO).await?;
        let namespace = pod_context.field_value("metadata.namespace")?;
        let kubeconfig = context.api_server.kubeconfig(&namespace, &folder.join("token"))?;
        let file = |content: Vec<u8>| ProjectedFile { content, mode: 0o600 };
        let files = ProjectedFiles::from([
            ("token".to_owned(), file(text.into_bytes())),
            ("ca.crt".to_owned(), file(context.api_server.ca_certificate().as_bytes().to_vec())),
            ("namespace".to_owned(), file(namespace.into_bytes())),
            ("kubeconfig".to_owned(), file(kubeconfig)),
        ]);
        projection::project(folder, &files)?;
        Ok(())
    }

    async fn cached_token(
        &self,
        context: &NodeContext,
        pod: &Pod,
        key: (String, usize),
        audience: Option<&str>,
        lifetime: Duration,
    ) -> Result<String> {
        let known = |tokens: &[((String, usize), BoundToken)]| {
            let token = tokens.iter().find(|(known, token)| *known == key && token.renew_at > clock::timestamp());
            token.map(|(_, token)| token.value.clone())
        };
        if let Some(text) = known(&self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner)) {
            return Ok(text);
        }
        let token =
            token::request_token(&context.client, pod, audience, lifetime, context.token_renewal_interval).await?;
        let text = token.value.clone();
        let mut tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.retain(|(known, _)| *known != key);
        tokens.push((key, token));
        Ok(text)
    }
}

impl VolumeContent {
    fn from_volume(volume: &Volume) -> Result<Self> {
        let one = |part: VolumeProjection, mode| Ok(Self::Projected { parts: vec![part], mode });
        if volume.empty_dir.is_some() {
            Ok(Self::EmptyDir)
        } else if let Some(map) = &volume.config_map {
            one(
                VolumeProjection {
                    config_map: Some(k8s_openapi::api::core::v1::ConfigMapProjection {
                        items: map.items.clone(),
                        name: map.name.clone(),
                        optional: map.optional,
                    }),
                    ..VolumeProjection::default()
                },
                map.default_mode,
            )
        } else if let Some(secret) = &volume.secret {
            one(
                VolumeProjection {
                    secret: Some(k8s_openapi::api::core::v1::SecretProjection {
                        items: secret.items.clone(),
                        name: secret.secret_name.clone().unwrap_or_default(),
                        optional: secret.optional,
                    }),
                    ..VolumeProjection::default()
                },
                secret.default_mode,
            )
        } else if let Some(api) = &volume.downward_api {
            one(
                VolumeProjection {
                    downward_api: Some(k8s_openapi::api::core::v1::DownwardAPIProjection { items: api.items.clone() }),
                    ..VolumeProjection::default()
                },
                api.default_mode,
            )
        } else if let Some(projected) = &volume.projected {
            Ok(Self::Projected { parts: projected.sources.clone().unwrap_or_default(), mode: projected.default_mode })
        } else {
            bail!("the kubelet stand-in does not support the type of volume {:?}", volume.name)
        }
    }
}

fn projection_files(pod_context: PodContext<'_>, part: &VolumeProjection, mode: Option<i32>) -> Result<ProjectedFiles> {
    let (kind, name, items, optional) = if let Some(map) = &part.config_map {
        (ConfigKind::ConfigMap, &map.name, &map.items, map.optional)
    } else if let Some(secret) = &part.secret {
        (ConfigKind::Secret, &secret.name, &secret.items, secret.optional)
    } else if let Some(api) = &part.downward_api {
        return api.items.iter().flatten().map(|item| downward_api_file(pod_context, item, mode)).collect();
    } else {
        bail!("the kubelet stand-in does not support this type of projected volume source");
    };
    config_files(pod_context, kind, name, items.as_deref(), optional == Some(true), mode)
}

fn config_files(
    pod_context: PodContext<'_>,
    kind: ConfigKind,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
) -> Result<ProjectedFiles> {
    let Some(mut data) = pod_context.config.get(kind, name) else {
        ensure!(optional, "{kind} {name:?} not found");
        return Ok(ProjectedFiles::new());
    };
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let file = |(key, content)| (key, ProjectedFile { content, mode: mode_bits(mode) });
        return Ok(data.into_iter().map(file).collect());
    };
    let mut files = ProjectedFiles::new();
    for item in items {
        match data.remove(&item.key) {
            Some(content) => {
                files.insert(item.path.clone(), ProjectedFile { content, mode: mode_bits(item.mode.or(mode)) });
            }
            None => ensure!(optional, "{kind} {name:?} references non-existent config key: {}", item.key),
        }
    }
    Ok(files)
}

fn downward_api_file(
    pod_context: PodContext<'_>,
    item: &DownwardAPIVolumeFile,
    mode: Option<i32>,
) -> Result<(String, ProjectedFile)> {
    let field = item.field_ref.as_ref().context("the kubelet stand-in does not support resourceFieldRef")?;
    let content = pod_context.field_value(&field.field_path)?.into_bytes();
    Ok((item.path.clone(), ProjectedFile { content, mode: mode_bits(item.mode.or(mode)) }))
}

fn mode_bits(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}
