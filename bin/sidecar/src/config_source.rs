//! Where the adapters file comes from: the mount, or the API with the mount as long as the API has said nothing.

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

/// The program's name, as the API server's audit log shows it.
const USER_AGENT: &str = "rollora-sidecar";

/// The API is waited for this long before the mount has to do.
const API_FALLBACK_DELAY: Duration = Duration::from_millis(750);

/// The adapters file, wherever it comes from: the last good one is in force.
#[derive(Debug)]
pub(crate) struct ConfigSource {
    last_good: LastGoodConfig,
    configmap_key: String,
    /// vLLM's host, over the one of the file.
    host_override: Option<String>,
    mounted_file: FileWatch<ConfigTexts>,
    configmap_watch: Option<ConfigMapWatch>,
    /// Something good has come from the API: from then on the mount, which is older, is not looked at.
    api_synced: AtomicBool,
}

impl ConfigSource {
    /// Reads the file for the first time. The API is asked when it runs.
    pub(crate) async fn open(source: &ConfigLocation, host: Option<String>) -> anyhow::Result<Self> {
        let configmap = match &source.configmap {
            None => None,
            Some(name) => {
                let cluster = Cluster::connect(&ConnectOptions::default(), USER_AGENT).await;
                let cluster = cluster.map_err(|error| anyhow::anyhow!("--configmap: {error}"))?;
                let keys = [source.configmap_key.as_str(), DIRECTIVES_KEY];
                Some(ConfigMapWatch::new(&cluster, &name.namespace, &name.name, &keys))
            }
        };
        let feed = Self {
            last_good: LastGoodConfig::default(),
            configmap_key: source.configmap_key.clone(),
            host_override: host,
            mounted_file: FileWatch::open(source.file.clone(), read_texts),
            configmap_watch: configmap,
            api_synced: AtomicBool::new(false),
        };
        if feed.configmap_watch.is_none() {
            feed.update();
        }
        Ok(feed)
    }

    /// The last good content; none before the first.
    pub(crate) fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.last_good.desired()
    }

    /// Why newer content is not in force; none where the newest is.
    pub(crate) fn error(&self) -> watch::Receiver<Option<String>> {
        self.last_good.error()
    }

    /// Reads everything now. When this returns, what is published is not older than the call, or it is said why.
    pub(crate) async fn refresh(&self) {
        if let Some(configmap) = &self.configmap_watch {
            configmap.refresh().await;
        }
        if !self.has_synced() {
            self.mounted_file.refresh().await;
        }
        self.update();
    }

    /// Watches until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(configmap) = &self.configmap_watch else {
            let mut texts = self.mounted_file.subscribe();
            let follow = async {
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
                () = follow => {}
            }
            return;
        };
        let (mut seen, mut texts) = (configmap.subscribe(), self.mounted_file.subscribe());
        let mount = stop.child_token();
        let follow = async {
            loop {
                tokio::select! {
                    Ok(()) = seen.changed() => {}
                    Ok(()) = texts.changed() => {}
                    () = self.last_good.wait_for_deadline() => {}
                }
                self.update();
                if self.has_synced() {
                    mount.cancel();
                }
            }
        };
        let silence = async {
            sleep(API_FALLBACK_DELAY).await;
            if *configmap.subscribe().borrow() == ConfigMapState::default() {
                self.fall_back_to_mount(Some("the API server has not answered yet".to_owned()));
            }
            std::future::pending::<()>().await;
        };
        let watched = async {
            tokio::join!(configmap.run(stop.clone()), self.mounted_file.run(mount.clone()));
        };
        tokio::select! {
            () = watched => {}
            () = follow => {}
            () = silence => {}
        }
    }

    fn has_synced(&self) -> bool {
        self.configmap_watch.is_some() && self.api_synced.load(Ordering::Relaxed)
    }

    /// Takes what was read last.
    fn update(&self) {
        let Some(configmap) = &self.configmap_watch else {
            self.last_good.update(self.parse_mounted_file(), Instant::now());
            return;
        };
        let seen = configmap.subscribe().borrow().clone();
        let reading = seen.content.map(|content| self.parse_configmap(configmap, &content)).transpose();
        match reading {
            Ok(Some(reading)) => {
                self.api_synced.store(true, Ordering::Relaxed);
                let waits = self.last_good.apply(reading, Instant::now());
                self.last_good.publish_error(waits.or(seen.problem));
            }
            Ok(None) => self.fall_back_to_mount(seen.problem),
            Err(problem) => self.fall_back_to_mount(Some(problem)),
        }
    }

    /// Does without the API, for this reason; none while nothing is known yet.
    fn fall_back_to_mount(&self, problem: Option<String>) {
        if self.has_synced() {
            self.last_good.publish_error(problem);
            return;
        }
        // The first answer is milliseconds away: what a mount says may be a minute old.
        let Some(problem) = problem else { return };
        let path = self.mounted_file.path().display();
        match self.parse_mounted_file() {
            Ok(reading) => {
                let waits = self.last_good.apply(reading, Instant::now());
                let mounted = || format!("{problem}; until then the mounted file {path} is in force");
                self.last_good.publish_error(Some(waits.unwrap_or_else(mounted)));
            }
            Err(error) => self.last_good.publish_error(Some(format!("{problem}; and no file in its place: {error}"))),
        }
    }

    fn parse_mounted_file(&self) -> Result<ParsedConfig, String> {
        let texts = self.mounted_file.subscribe().borrow().clone();
        let place = self.mounted_file.path().display();
        self.validate(&place, texts.parse(&place, &self.configmap_key)?)
    }

    fn parse_configmap(&self, configmap: &ConfigMapWatch, content: &ConfigMapContent) -> Result<ParsedConfig, String> {
        let user = content.texts.get(&self.configmap_key).cloned().ok_or_else(|| {
            let there = content.keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let there = if there.is_empty() { "no text" } else { &there };
            format!(
                "{configmap} has no text under `{}` and holds {there}: put it there, or give --configmap-key",
                self.configmap_key
            )
        });
        let operator = content.texts.get(DIRECTIVES_KEY).cloned().map(Ok);
        let place = format!("{configmap}, key {}", self.configmap_key);
        self.validate(&place, ConfigTexts { user, operator }.parse(&place, &self.configmap_key)?)
    }

    /// A file that names a server which cannot be one is no good one.
    fn validate(&self, place: &dyn std::fmt::Display, reading: ParsedConfig) -> Result<ParsedConfig, String> {
        match ServerEndpoint::new(Some(&reading.desired.file), self.host_override.as_deref(), None) {
            Ok(_) => Ok(reading),
            Err(problem) => Err(format!("{place}: {problem}")),
        }
    }
}
