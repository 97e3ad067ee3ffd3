//! The volumes of a pod, each a folder of this machine.
//!
//! A volume that the API server has to be asked for is made before any container starts, and is made again whenever its
//! sources change, so long after the change as the bed says. What cannot be made keeps the pod from starting; once the
//! pod runs, the files stay as they were. Besides, every pod whose service account has a token gets the folder of
//! [`ACCOUNT`].

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

/// The volume with the token, and where a kubelet mounts it.
const TOKEN_VOLUME: &str = "kube-api-access";
const TOKEN_MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// All volumes of one pod.
#[derive(Debug)]
pub(super) struct Volumes {
    folder: PathBuf,
    sources: Vec<(String, VolumeContent)>,
    /// By volume and place in it; a token is asked for again only when it is due.
    tokens: Mutex<Vec<((String, usize), BoundToken)>>,
}

/// What a volume is made of.
#[derive(Debug, Clone)]
enum VolumeContent {
    EmptyDir,
    Projected { parts: Vec<VolumeProjection>, mode: Option<i32> },
    ServiceAccountToken,
}

impl Volumes {
    /// The volumes that the pod asks for, below `folder`.
    pub(super) fn new(pod: &Pod, folder: &Path) -> Result<Self> {
        let spec = pod.spec.as_ref().context("a pod without spec")?;
        let mut plans = Vec::new();
        for volume in spec.volumes.iter().flatten() {
            plans.push((volume.name.clone(), VolumeContent::from_volume(volume)?));
        }
        if spec.automount_service_account_token != Some(false) {
            plans.push((TOKEN_VOLUME.to_owned(), VolumeContent::ServiceAccountToken));
        }
        Ok(Self { folder: folder.join("volumes"), sources: plans, tokens: Mutex::default() })
    }

    /// Where a container has them.
    pub(super) fn mounts(&self, container: &k8s_openapi::api::core::v1::Container) -> Result<MountPaths> {
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let no_part = mount.sub_path.is_none() && mount.sub_path_expr.is_none();
            ensure!(no_part, "this kubelet knows no subPath (mount {:?})", mount.name);
            let known = self.sources.iter().any(|(name, _)| *name == mount.name);
            ensure!(known, "the pod has no volume {:?}", mount.name);
            mounts.push((mount.mount_path.clone(), self.folder.join(&mount.name)));
        }
        mounts.push((TOKEN_MOUNT_PATH.to_owned(), self.folder.join(TOKEN_VOLUME)));
        Ok(MountPaths::new(mounts))
    }

    /// The kubeconfig beside the token.
    pub(super) fn kubeconfig(&self) -> Option<PathBuf> {
        let has_one = self.sources.iter().any(|(name, _)| name == TOKEN_VOLUME);
        has_one.then(|| self.folder.join(TOKEN_VOLUME).join("kubeconfig"))
    }

    /// Makes all of them hold what they should hold now.
    pub(super) async fn sync(&self, context: &NodeContext, facts: PodContext<'_>) -> Result<()> {
        for (name, plan) in &self.sources {
            let folder = self.folder.join(name);
            let made = match plan {
                VolumeContent::EmptyDir => fs::create_dir_all(&folder).map_err(Into::into),
                VolumeContent::Projected { parts, mode } => {
                    self.sync_projected(context, facts, name, parts, *mode).await
                }
                VolumeContent::ServiceAccountToken => self.sync_service_account(context, facts, &folder).await,
            };
            made.with_context(|| format!("volume {name:?}"))?;
        }
        Ok(())
    }

    /// When a token is due.
    pub(super) fn next_renewal(&self) -> Option<Timestamp> {
        let tokens = self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.iter().map(|(_, token)| token.renew_at).min()
    }

    async fn sync_projected(
        &self,
        context: &NodeContext,
        facts: PodContext<'_>,
        volume: &str,
        parts: &[VolumeProjection],
        mode: Option<i32>,
    ) -> Result<()> {
        let mut files = ProjectedFiles::new();
        for (index, part) in parts.iter().enumerate() {
            if let Some(token) = &part.service_account_token {
                let life = token.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
                let life = Duration::from_secs(life.unwrap_or_default());
                let key = (volume.to_owned(), index);
                let text = self.cached_token(context, facts.pod, key, token.audience.as_deref(), life).await?;
                files.insert(token.path.clone(), ProjectedFile { content: text.into_bytes(), mode: 0o600 });
            } else {
                files.extend(projection_files(facts, part, mode)?);
            }
        }
        projection::project(&self.folder.join(volume), &files)?;
        Ok(())
    }

    async fn sync_service_account(&self, context: &NodeContext, facts: PodContext<'_>, folder: &Path) -> Result<()> {
        let text = self.cached_token(context, facts.pod, (TOKEN_VOLUME.to_owned(), 0), None, Duration::ZERO).await?;
        let namespace = facts.field_value("metadata.namespace")?;
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
        life: Duration,
    ) -> Result<String> {
        let known = |tokens: &[((String, usize), BoundToken)]| {
            let token = tokens.iter().find(|(known, token)| *known == key && token.renew_at > clock::timestamp());
            token.map(|(_, token)| token.value.clone())
        };
        if let Some(text) = known(&self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner)) {
            return Ok(text);
        }
        let token = token::request_token(&context.client, pod, audience, life, context.token_renewal_interval).await?;
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
            bail!("this kubelet knows no volume of the kind of {:?}", volume.name)
        }
    }
}

fn projection_files(facts: PodContext<'_>, part: &VolumeProjection, mode: Option<i32>) -> Result<ProjectedFiles> {
    let (kind, name, items, optional) = if let Some(map) = &part.config_map {
        (ConfigKind::ConfigMap, &map.name, &map.items, map.optional)
    } else if let Some(secret) = &part.secret {
        (ConfigKind::Secret, &secret.name, &secret.items, secret.optional)
    } else if let Some(api) = &part.downward_api {
        return api.items.iter().flatten().map(|item| downward_api_file(facts, item, mode)).collect();
    } else {
        bail!("this kubelet does not know this kind of projection");
    };
    config_files(facts, kind, name, items.as_deref(), optional == Some(true), mode)
}

fn config_files(
    facts: PodContext<'_>,
    kind: ConfigKind,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: Option<i32>,
) -> Result<ProjectedFiles> {
    let Some(mut data) = facts.config.get(kind, name) else {
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
    facts: PodContext<'_>,
    item: &DownwardAPIVolumeFile,
    mode: Option<i32>,
) -> Result<(String, ProjectedFile)> {
    let field = item.field_ref.as_ref().context("this kubelet knows no resourceFieldRef")?;
    let content = facts.field_value(&field.field_path)?.into_bytes();
    Ok((item.path.clone(), ProjectedFile { content, mode: mode_bits(item.mode.or(mode)) }))
}

fn mode_bits(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(0o644)
}
