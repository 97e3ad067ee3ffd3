//! One sidecar after the other: a new one whenever another server is meant than before. A new key or a new CA for the
//! same server is handed to the one at work.

use crate::{
    config_source::ConfigSource, metrics::SidecarMetrics, server_endpoint::ServerEndpoint, settings::Settings,
    state_file::StateFile, tls::TlsReceiver,
};
use rollora_api::{adapters::DesiredAdapters, sidecar_status::SidecarStatus};
use rollora_sidecar::{
    AdapterSourcePolicy, CallObserver, Heartbeat, RefreshCallback, Sidecar, SidecarConfig, SidecarPolicy,
    UsagePollBoost,
};
use rollora_vllm::{ApiKey, Endpoint, Timeouts, VllmClientError};
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// The first file is waited for this long; then vLLM is looked for where it usually is.
const FIRST_CONFIG_TIMEOUT: Duration = Duration::from_secs(1);
/// Calls to a server that is not meant any more are waited for this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What one sidecar tells.
#[derive(Debug, Clone)]
pub(crate) struct RunningSidecar {
    /// How its server is.
    pub(crate) status: watch::Receiver<Arc<SidecarStatus>>,
    /// That it is at work.
    pub(crate) heartbeat: watch::Receiver<Option<Heartbeat>>,
    /// Where to leave word that somebody looks.
    pub(crate) usage_poll_boost: UsagePollBoost,
}

/// Has a sidecar at work for the server that is meant.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pod_name: String,
    host_override: Option<String>,
    timeouts: Timeouts,
    policy: SidecarPolicy,
    source_policy: AdapterSourcePolicy,
    health_check_timeout: Duration,
    config_source: Arc<ConfigSource>,
    api_key: watch::Receiver<Option<ApiKey>>,
    tls: TlsReceiver,
    shutdown_grace: Duration,
    persisted: watch::Sender<rollora_sidecar::state::PersistedState>,
    metrics: Arc<SidecarMetrics>,
    running: watch::Sender<Option<RunningSidecar>>,
}

impl Supervisor {
    pub(crate) fn new(
        settings: &Settings,
        config_source: Arc<ConfigSource>,
        keep: &StateFile,
        metrics: Arc<SidecarMetrics>,
    ) -> Self {
        Self {
            pod_name: settings.pod_name.clone(),
            host_override: settings.vllm_host.clone(),
            timeouts: settings.timeouts,
            policy: settings.policy,
            source_policy: settings.source_policy.clone(),
            health_check_timeout: settings.health_check_timeout,
            config_source,
            api_key: settings.api_key.value(),
            tls: settings.tls.subscribe(),
            shutdown_grace: settings.stop_timeout,
            persisted: keep.state(),
            metrics,
            running: watch::Sender::new(None),
        }
    }

    /// What the sidecar at work tells; none while there is none.
    pub(crate) fn running(&self) -> watch::Receiver<Option<RunningSidecar>> {
        self.running.subscribe()
    }

    /// Works until it is stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut said = EndpointInputs {
            desired: self.config_source.desired(),
            api_key: self.api_key.clone(),
            tls: self.tls.clone(),
        };
        // The file says where vLLM is, and through the API it comes a moment later.
        drop(timeout(FIRST_CONFIG_TIMEOUT, stop.run_until_cancelled(said.desired.wait_for(Option::is_some))).await);
        while !stop.is_cancelled() {
            let Some(target) = self.server_endpoint(&mut said) else {
                tracing::error!("the file names no server");
                stop.run_until_cancelled(said.changed()).await;
                continue;
            };
            let endpoint = watch::Sender::new(target.endpoint().clone());
            match self.build_sidecar(&target, endpoint.subscribe()) {
                Ok(sidecar) => {
                    let another = async {
                        loop {
                            said.changed().await;
                            match self.server_endpoint(&mut said) {
                                // A server is not left over a new key: what is known of it stays known.
                                Some(fresh) if fresh.is_same_server(&target) => {
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
                            self.running.send_replace(None);
                            ended.cancel();
                            drop(timeout(DRAIN_TIMEOUT, running).await);
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
    fn server_endpoint(&self, said: &mut EndpointInputs) -> Option<ServerEndpoint> {
        let desired = said.desired.borrow_and_update().clone();
        let (key, tls) = (said.api_key.borrow_and_update().clone(), said.tls.current());
        // A file that does not pass here has not come into force.
        let file = desired.as_deref().map(|desired| &desired.file);
        ServerEndpoint::new(file, self.host_override.as_deref(), tls).map(|target| target.with_key(key)).ok()
    }

    fn build_sidecar(
        &self,
        target: &ServerEndpoint,
        endpoint: watch::Receiver<Endpoint>,
    ) -> Result<Sidecar, VllmClientError> {
        let mut config = SidecarConfig::new(self.pod_name.clone(), target.endpoint().clone());
        (config.timeouts, config.policy, config.shutdown_grace) = (self.timeouts, self.policy, self.shutdown_grace);
        let (sidecar, status) = Sidecar::new(config, self.config_source.desired())?;
        let sidecar = sidecar
            .with_refresh(refresh_callback(&self.config_source))
            .with_file_errors(self.config_source.error())
            .with_endpoint(endpoint)
            .with_observer(self.call_observer())
            .with_source_policy(self.source_policy.clone())
            .with_persisted(self.persisted.clone());
        self.running.send_replace(Some(RunningSidecar {
            status,
            heartbeat: sidecar.heartbeat(),
            usage_poll_boost: sidecar.usage_poll_boost(),
        }));
        tracing::info!(endpoint = target.endpoint().base_url(), "at work");
        Ok(sidecar)
    }

    fn call_observer(&self) -> CallObserver {
        let metrics = Arc::clone(&self.metrics);
        Arc::new(move |call| metrics.record_call(call))
    }

    /// Complains when vLLM is away for long.
    pub(crate) async fn log_outages(&self) {
        let mut view = self.running();
        loop {
            wait_for_status(&mut view, |status| status.server.is_none()).await;
            if timeout(self.health_check_timeout, wait_for_status(&mut view, |status| status.server.is_some()))
                .await
                .is_err()
            {
                let status = view.borrow().as_ref().map(|view| view.status.borrow().clone()).unwrap_or_default();
                tracing::error!(
                    "vLLM has been away for {:?} and is waited for: {}",
                    self.health_check_timeout,
                    status.readiness.message
                );
                wait_for_status(&mut view, |status| status.server.is_some()).await;
            }
        }
    }
}

/// Everything that says which server is meant, and how it is asked.
struct EndpointInputs {
    desired: watch::Receiver<Option<Arc<DesiredAdapters>>>,
    api_key: watch::Receiver<Option<ApiKey>>,
    tls: TlsReceiver,
}

impl EndpointInputs {
    async fn changed(&mut self) {
        tokio::select! {
            Ok(()) = self.desired.changed() => {}
            Ok(()) = self.api_key.changed() => {}
            Ok(()) = self.tls.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// Waits until the status of the sidecar at work is as `wanted`.
async fn wait_for_status(view: &mut watch::Receiver<Option<RunningSidecar>>, wanted: impl Fn(&SidecarStatus) -> bool) {
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

fn refresh_callback(feed: &Arc<ConfigSource>) -> RefreshCallback {
    let feed = Arc::clone(feed);
    Arc::new(move || -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let feed = Arc::clone(&feed);
        Box::pin(async move { feed.refresh().await })
    })
}
