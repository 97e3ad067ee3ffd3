//! Where the adapters file comes from: the mount, or the API with the mount as long as the API has said nothing.

use crate::{settings::Source, target::Target};
use rollora_api::{adapters::DesiredAdapters, names::DIRECTIVES_KEY};
use rollora_cluster::{
    Cluster, ConnectOptions,
    configmap::{ConfigMapContent, ConfigMapState, ConfigMapWatch},
};
use rollora_sidecar::{
    adapters_watch::read_texts,
    in_force::{InForce, Reading, Texts},
    watch_file::WatchFile,
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
const AGENT: &str = "rollora-sidecar";

/// The API is waited for this long before the mount has to do.
const FIRST_ANSWER: Duration = Duration::from_millis(750);

/// The adapters file, wherever it comes from: the last good one is in force.
#[derive(Debug)]
pub(crate) struct Feed {
    in_force: InForce,
    key: String,
    /// vLLM's host, over the one of the file.
    host: Option<String>,
    file: WatchFile<Texts>,
    configmap: Option<ConfigMapWatch>,
    /// Something good has come from the API: from then on the mount, which is older, is not looked at.
    spoken: AtomicBool,
}

impl Feed {
    /// Reads the file for the first time. The API is asked when it runs.
    pub(crate) async fn open(source: &Source, host: Option<String>) -> anyhow::Result<Self> {
        let configmap = match &source.configmap {
            None => None,
            Some(name) => {
                let cluster = Cluster::connect(&ConnectOptions::default(), AGENT).await;
                let cluster = cluster.map_err(|error| anyhow::anyhow!("--configmap: {error}"))?;
                let keys = [source.key.as_str(), DIRECTIVES_KEY];
                Some(ConfigMapWatch::new(&cluster, &name.namespace, &name.name, &keys))
            }
        };
        let feed = Self {
            in_force: InForce::default(),
            key: source.key.clone(),
            host,
            file: WatchFile::open(source.file.clone(), read_texts),
            configmap,
            spoken: AtomicBool::new(false),
        };
        if feed.configmap.is_none() {
            feed.take();
        }
        Ok(feed)
    }

    /// The last good content; none before the first.
    pub(crate) fn desired(&self) -> watch::Receiver<Option<Arc<DesiredAdapters>>> {
        self.in_force.desired()
    }

    /// Why newer content is not in force; none where the newest is.
    pub(crate) fn error(&self) -> watch::Receiver<Option<String>> {
        self.in_force.error()
    }

    /// Reads everything now. When this returns, what is published is not older than the call, or it is said why.
    pub(crate) async fn refresh(&self) {
        if let Some(configmap) = &self.configmap {
            configmap.refresh().await;
        }
        if !self.has_spoken() {
            self.file.refresh().await;
        }
        self.take();
    }

    /// Watches until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let Some(configmap) = &self.configmap else {
            let mut texts = self.file.subscribe();
            let follow = async {
                loop {
                    tokio::select! {
                        changed = texts.changed() => if changed.is_err() { return },
                        () = self.in_force.waited() => {}
                    }
                    self.take();
                }
            };
            tokio::select! {
                () = self.file.run(stop) => {}
                () = follow => {}
            }
            return;
        };
        let (mut seen, mut texts) = (configmap.subscribe(), self.file.subscribe());
        let mount = stop.child_token();
        let follow = async {
            loop {
                tokio::select! {
                    Ok(()) = seen.changed() => {}
                    Ok(()) = texts.changed() => {}
                    () = self.in_force.waited() => {}
                }
                self.take();
                if self.has_spoken() {
                    mount.cancel();
                }
            }
        };
        let silence = async {
            sleep(FIRST_ANSWER).await;
            if *configmap.subscribe().borrow() == ConfigMapState::default() {
                self.fall_back(Some("the API server has not answered yet".to_owned()));
            }
            std::future::pending::<()>().await;
        };
        let watched = async {
            tokio::join!(configmap.run(stop.clone()), self.file.run(mount.clone()));
        };
        tokio::select! {
            () = watched => {}
            () = follow => {}
            () = silence => {}
        }
    }

    fn has_spoken(&self) -> bool {
        self.configmap.is_some() && self.spoken.load(Ordering::Relaxed)
    }

    /// Takes what was read last.
    fn take(&self) {
        let Some(configmap) = &self.configmap else {
            self.in_force.take(self.read_file(), Instant::now());
            return;
        };
        let seen = configmap.subscribe().borrow().clone();
        let reading = seen.content.map(|content| self.read_content(configmap, &content)).transpose();
        match reading {
            Ok(Some(reading)) => {
                self.spoken.store(true, Ordering::Relaxed);
                let waits = self.in_force.adopt(reading, Instant::now());
                self.in_force.tell(waits.or(seen.problem));
            }
            Ok(None) => self.fall_back(seen.problem),
            Err(problem) => self.fall_back(Some(problem)),
        }
    }

    /// Does without the API, for this reason; none while nothing is known yet.
    fn fall_back(&self, problem: Option<String>) {
        if self.has_spoken() {
            self.in_force.tell(problem);
            return;
        }
        // The first answer is milliseconds away: what a mount says may be a minute old.
        let Some(problem) = problem else { return };
        let path = self.file.path().display();
        match self.read_file() {
            Ok(reading) => {
                let waits = self.in_force.adopt(reading, Instant::now());
                let mounted = || format!("{problem}; until then the mounted file {path} is in force");
                self.in_force.tell(Some(waits.unwrap_or_else(mounted)));
            }
            Err(error) => self.in_force.tell(Some(format!("{problem}; and no file in its place: {error}"))),
        }
    }

    fn read_file(&self) -> Result<Reading, String> {
        let texts = self.file.subscribe().borrow().clone();
        let place = self.file.path().display();
        self.check(&place, texts.read(&place, &self.key)?)
    }

    fn read_content(&self, configmap: &ConfigMapWatch, content: &ConfigMapContent) -> Result<Reading, String> {
        let user = content.texts.get(&self.key).cloned().ok_or_else(|| {
            let there = content.keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let there = if there.is_empty() { "no text" } else { &there };
            format!(
                "{configmap} has no text under `{}` and holds {there}: put it there, or give --configmap-key",
                self.key
            )
        });
        let operator = content.texts.get(DIRECTIVES_KEY).cloned().map(Ok);
        let place = format!("{configmap}, key {}", self.key);
        self.check(&place, Texts { user, operator }.read(&place, &self.key)?)
    }

    /// A file that names a server which cannot be one is no good one.
    fn check(&self, place: &dyn std::fmt::Display, reading: Reading) -> Result<Reading, String> {
        match Target::new(Some(&reading.desired.file), self.host.as_deref(), None) {
            Ok(_) => Ok(reading),
            Err(problem) => Err(format!("{place}: {problem}")),
        }
    }
}
