//! The source of the adapters file: the mount, or the API with the mount as a fallback until the API has delivered.

use crate::{server_endpoint::ServerEndpoint, settings::ConfigLocation};
use rollora_api::{adapters::DesiredAdapters, names::DIRECTIVES_KEY};
use rollora_cluster::{
    Cluster, ConnectOptions,
    configmap::{ConfigMapContent, ConfigMapState, ConfigMapWatch},
};
use rollora_sidecar::{
    adapters_watch::read_texts,
    file_watch::FileWatch,
    last_good::{ConfigTexts, LastGoodConfig, ParsedConfig},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// The user agent of the client, which the API server's audit log shows.
const USER_AGENT: &str = "rollora-sidecar";

/// Delay after which the mount is used if the API has not answered.
const API_FALLBACK_DELAY: Duration = Duration::from_millis(750);

/// The adapters file from the mount or the API. The last good content is active.
#[derive(Debug)]
pub(crate) struct ConfigSource {
    last_good: LastGoodConfig,
    configmap_key: String,
    /// Host of vLLM, which overrides the one in the file.
    host_override: Option<String>,
    mounted_file: FileWatch<ConfigTexts>,
    configmap_watch: Option<ConfigMapWatch>,
    /// Whether the API has delivered valid content: from then on the mount, which lags behind, is ignored.
    api_synced: AtomicBool,
}

impl ConfigSource {
    /// Creates the source. Without a ConfigMap it reads the mounted file; the API is contacted only by [`Self::run`].
    pub(crate) async fn open(location: &ConfigLocation, host_override: Option<String>) -> anyhow::Result<Self> {
        let configmap = match &location.configmap {
            None => None,
            Some(name) => {
                let cluster = Cluster::connect(&ConnectOptions::default(), USER_AGENT).await;
                let cluster = cluster.map_err(|error| anyhow::anyhow!("--configmap: {error}"))?;
                let keys = [location.configmap_key.as_str(), DIRECTIVES_KEY];
                Some(ConfigMapWatch::new(&cluster, &name.namespace, &name.name, &keys))
            }
        };
        let config_source = Self {
            last_good: LastGoodConfig::default(),
            configmap_key: location.configmap_key.clone(),
            host_override,
            mounted_file: FileWatch::open(location.file.clone(), read_texts),
            configmap_watch: configmap,
            api_synced: AtomicBool::new(false),
        };
        if config_source.configmap_watch.is_none() {
            config_source.update();
        }
        Ok(config_source)
    }

    /// Returns the last good content; `None` before the first.
    pub(crate) fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.last_good.desired()
    }

    /// Returns why newer content is not active; `None` if the newest is.
    pub(crate) fn error(&self) -> watch::Receiver<Option<String>> {
        self.last_good.error()
    }

    /// Reads the source now. When this returns, the published content is not older than the call, or the error says
    /// why.
    pub(crate) async fn refresh(&self) {
        if let Some(configmap) = &self.configmap_watch {
            configmap.refresh().await;
        }
        if !self.has_synced() {
            self.mounted_file.refresh().await;
        }
        self.update();
    }

    /// Watches the source until `stop` is canceled.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(configmap) = &self.configmap_watch else {
            let mut texts = self.mounted_file.subscribe();
            let apply_changes = async {
                loop {
                    tokio::select! {
                        changed = texts.changed() => if changed.is_err() { return },
                        () = self.last_good.wait_for_deadline() => {}
                    }
                    self.update();
                }
            };
            tokio::select! {
                () = self.mounted_file.run(stop) => {}
                () = apply_changes => {}
            }
            return;
        };
        let (mut state, mut texts) = (configmap.subscribe(), self.mounted_file.subscribe());
        let stop_mount = stop.child_token();
        let apply_changes = async {
            loop {
                tokio::select! {
                    Ok(()) = state.changed() => {}
                    Ok(()) = texts.changed() => {}
                    () = self.last_good.wait_for_deadline() => {}
                }
                self.update();
                if self.has_synced() {
                    stop_mount.cancel();
                }
            }
        };
        let api_timeout = async {
            sleep(API_FALLBACK_DELAY).await;
            if *configmap.subscribe().borrow() == ConfigMapState::default() {
                self.fall_back_to_mount(Some("the API server has not answered yet".to_owned()));
            }
            std::future::pending::<()>().await;
        };
        let watches = async {
            tokio::join!(configmap.run(stop.clone()), self.mounted_file.run(stop_mount.clone()));
        };
        tokio::select! {
            () = watches => {}
            () = apply_changes => {}
            () = api_timeout => {}
        }
    }

    fn has_synced(&self) -> bool {
        self.configmap_watch.is_some() && self.api_synced.load(Ordering::Relaxed)
    }

    /// Applies the content that was read last.
    fn update(&self) {
        let Some(configmap) = &self.configmap_watch else {
            self.last_good.update(self.parse_mounted_file(), Instant::now());
            return;
        };
        let state = configmap.subscribe().borrow().clone();
        let content = state.content.map(|content| self.parse_configmap(configmap, &content)).transpose();
        match content {
            Ok(Some(content)) => {
                self.api_synced.store(true, Ordering::Relaxed);
                let pending = self.last_good.apply(content, Instant::now());
                self.last_good.publish_error(pending.or(state.problem));
            }
            Ok(None) => self.fall_back_to_mount(state.problem),
            Err(problem) => self.fall_back_to_mount(Some(problem)),
        }
    }

    /// Uses the mounted file because of `problem`; does nothing while that is `None`, because the API may still answer.
    fn fall_back_to_mount(&self, problem: Option<String>) {
        if self.has_synced() {
            self.last_good.publish_error(problem);
            return;
        }
        // The API usually answers within milliseconds, and the mount may be a minute old.
        let Some(problem) = problem else { return };
        let path = self.mounted_file.path().display();
        match self.parse_mounted_file() {
            Ok(content) => {
                let pending = self.last_good.apply(content, Instant::now());
                let fallback = || format!("{problem}; until then the mounted file {path} is used");
                self.last_good.publish_error(Some(pending.unwrap_or_else(fallback)));
            }
            Err(error) => self
                .last_good
                .publish_error(Some(format!("{problem}; the mounted file cannot be used either: {error}"))),
        }
    }

    fn parse_mounted_file(&self) -> Result<ParsedConfig, String> {
        let texts = self.mounted_file.subscribe().borrow().clone();
        let location = self.mounted_file.path().display();
        self.validate(&location, texts.parse(&location, &self.configmap_key)?)
    }

    fn parse_configmap(&self, configmap: &ConfigMapWatch, content: &ConfigMapContent) -> Result<ParsedConfig, String> {
        let user = content.texts.get(&self.configmap_key).cloned().ok_or_else(|| {
            let keys = content.keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let keys = if keys.is_empty() { "no text" } else { &keys };
            format!(
                "{configmap} has no text under `{}` and holds {keys}: put the file there, or give --configmap-key",
                self.configmap_key
            )
        });
        let operator = content.texts.get(DIRECTIVES_KEY).cloned().map(Ok);
        let location = format!("{configmap}, key {}", self.configmap_key);
        self.validate(&location, ConfigTexts { user, operator }.parse(&location, &self.configmap_key)?)
    }

    /// Rejects a file whose host or port is not valid.
    fn validate(&self, location: &dyn std::fmt::Display, content: ParsedConfig) -> Result<ParsedConfig, String> {
        match ServerEndpoint::new(Some(&content.desired.file), self.host_override.as_deref(), None) {
            Ok(_) => Ok(content),
            Err(problem) => Err(format!("{location}: {problem}")),
        }
    }
}
