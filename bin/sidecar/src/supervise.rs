//! One sidecar after the other: a new one whenever another server is meant than before. A new key or a new CA for the
//! same server is handed to the one at work.

use crate::{feed::Feed, keep::Keep, metrics::Metrics, settings::Settings, target::Target, trust::Following};
use rollora_api::{adapters::DesiredAdapters, sidecar_status::SidecarStatus};
use rollora_sidecar::{Config, Observer, Onlookers, Policy, Pulse, Refresh, Sidecar, Sources};
use rollora_vllm::{ApiKey, Endpoint, Timeouts, VllmClientError};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// The first file is waited for this long; then vLLM is looked for where it usually is.
const FIRST_WORDS: Duration = Duration::from_secs(1);
/// Calls to a server that is not meant any more are waited for this long.
const FAREWELL: Duration = Duration::from_secs(1);

/// What one sidecar tells.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// How its server is.
    pub(crate) status: watch::Receiver<Arc<SidecarStatus>>,
    /// That it is at work.
    pub(crate) pulse: watch::Receiver<Option<Pulse>>,
    /// Where to leave word that somebody looks.
    pub(crate) onlookers: Onlookers,
}

/// Has a sidecar at work for the server that is meant.
#[derive(Debug)]
pub(crate) struct Supervisor {
    name: String,
    host: Option<String>,
    timeouts: Timeouts,
    policy: Policy,
    sources: Sources,
    patience: Duration,
    feed: Arc<Feed>,
    key: watch::Receiver<Option<ApiKey>>,
    trust: Following,
    last_calls: Duration,
    keep: watch::Sender<rollora_sidecar::memory::Kept>,
    metrics: Arc<Metrics>,
    view: watch::Sender<Option<View>>,
}

impl Supervisor {
    pub(crate) fn new(settings: &Settings, feed: Arc<Feed>, keep: &Keep, metrics: Arc<Metrics>) -> Self {
        Self {
            name: settings.name.clone(),
            host: settings.vllm_host.clone(),
            timeouts: settings.timeouts,
            policy: settings.policy,
            sources: settings.sources.clone(),
            patience: settings.patience,
            feed,
            key: settings.key.value(),
            trust: settings.trust.following(),
            last_calls: settings.stop_timeout,
            keep: keep.kept(),
            metrics,
            view: watch::Sender::new(None),
        }
    }

    /// What the sidecar at work tells; none while there is none.
    pub(crate) fn view(&self) -> watch::Receiver<Option<View>> {
        self.view.subscribe()
    }

    /// Works until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut said = Said { desired: self.feed.desired(), key: self.key.clone(), trust: self.trust.clone() };
        // The file says where vLLM is, and through the API it comes a moment later.
        drop(timeout(FIRST_WORDS, stop.run_until_cancelled(said.desired.wait_for(Option::is_some))).await);
        while !stop.is_cancelled() {
            let Some(target) = self.target(&mut said) else {
                tracing::error!("the file names no server");
                stop.run_until_cancelled(said.changed()).await;
                continue;
            };
            let endpoint = watch::Sender::new(target.endpoint().clone());
            match self.sidecar(&target, endpoint.subscribe()) {
                Ok(sidecar) => {
                    let another = async {
                        loop {
                            said.changed().await;
                            match self.target(&mut said) {
                                // A server is not left over a new key: what is known of it stays known.
                                Some(fresh) if fresh.is_beside(&target) => {
                                    endpoint.send_if_modified(|current| {
                                        let changed = current != fresh.endpoint();
                                        current.clone_from(fresh.endpoint());
                                        changed
                                    });
                                }
                                _ => break,
                            }
                        }
                    };
                    let ended = stop.child_token();
                    let mut running = std::pin::pin!(sidecar.run(ended.clone()));
                    tokio::select! {
                        () = &mut running => break,
                        () = another => {
                            tracing::info!("another server: beginning afresh");
                            // Nobody sends requests to where the last words of the old one point.
                            self.view.send_replace(None);
                            ended.cancel();
                            drop(timeout(FAREWELL, running).await);
                        }
                    }
                }
                Err(error) => {
                    tracing::error!("{error}");
                    stop.run_until_cancelled(said.changed()).await;
                }
            }
        }
    }

    /// The server that is meant now.
    fn target(&self, said: &mut Said) -> Option<Target> {
        let desired = said.desired.borrow_and_update().clone();
        let (key, tls) = (said.key.borrow_and_update().clone(), said.trust.tls());
        // A file that does not pass here has not come into force.
        let file = desired.as_deref().map(|desired| &desired.file);
        Target::new(file, self.host.as_deref(), tls).map(|target| target.with_key(key)).ok()
    }

    fn sidecar(&self, target: &Target, endpoint: watch::Receiver<Endpoint>) -> Result<Sidecar, VllmClientError> {
        let mut config = Config::new(self.name.clone(), target.endpoint().clone());
        (config.timeouts, config.policy, config.last_calls) = (self.timeouts, self.policy, self.last_calls);
        let (sidecar, status) = Sidecar::new(config, self.feed.desired())?;
        let sidecar = sidecar
            .with_refresh(refresh(&self.feed))
            .with_file_errors(self.feed.error())
            .with_endpoint(endpoint)
            .with_observer(self.observer())
            .with_sources(self.sources.clone())
            .with_kept(self.keep.clone());
        self.view.send_replace(Some(View { status, pulse: sidecar.pulse(), onlookers: sidecar.onlookers() }));
        tracing::info!(endpoint = target.endpoint().base_url(), "at work");
        Ok(sidecar)
    }

    fn observer(&self) -> Observer {
        let metrics = Arc::clone(&self.metrics);
        Arc::new(move |call| metrics.observe(call))
    }

    /// Complains when vLLM is away for long.
    pub(crate) async fn complain(&self) {
        let mut view = self.view();
        loop {
            until(&mut view, |status| status.server.is_none()).await;
            if timeout(self.patience, until(&mut view, |status| status.server.is_some())).await.is_err() {
                let status = view.borrow().as_ref().map(|view| view.status.borrow().clone()).unwrap_or_default();
                tracing::error!(
                    "vLLM has been away for {:?} and is waited for: {}",
                    self.patience,
                    status.readiness.message
                );
                until(&mut view, |status| status.server.is_some()).await;
            }
        }
    }
}

/// Everything that says which server is meant, and how it is asked.
struct Said {
    desired: watch::Receiver<Option<Arc<DesiredAdapters>>>,
    key: watch::Receiver<Option<ApiKey>>,
    trust: Following,
}

impl Said {
    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.desired.changed() => {}
            Ok(()) = self.key.changed() => {}
            Ok(()) = self.trust.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// Waits until the status of the sidecar at work is as `wanted`.
async fn until(view: &mut watch::Receiver<Option<View>>, wanted: impl Fn(&SidecarStatus) -> bool) {
    loop {
        let current = view.borrow_and_update().clone();
        let reached = async {
            match current {
                Some(mut current) => current.status.wait_for(|status| wanted(status)).await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            true = reached => return,
            Ok(()) = view.changed() => {}
        }
    }
}

fn refresh(feed: &Arc<Feed>) -> Refresh {
    let feed = Arc::clone(feed);
    Arc::new(move || -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let feed = Arc::clone(&feed);
        Box::pin(async move { feed.refresh().await })
    })
}
