//! Runs one sidecar at a time, and starts a new one whenever file or flags name another server. A new API key or CA for
//! the same server is passed to the running sidecar.

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

/// How long to wait for the first file, before the default address of vLLM is used.
const FIRST_CONFIG_TIMEOUT: Duration = Duration::from_secs(1);
/// How long to wait for calls to the previous server.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The receivers of one running sidecar.
#[derive(Debug, Clone)]
pub(crate) struct RunningSidecar {
    /// Status of its server, without `usage_read_at`.
    pub(crate) status: watch::Receiver<Arc<SidecarStatus>>,
    /// Heartbeat of its main loop.
    pub(crate) heartbeat: watch::Receiver<Option<Heartbeat>>,
    /// Flag that requests frequent usage polls.
    pub(crate) usage_poll_boost: UsagePollBoost,
}

/// Keeps a sidecar running for the configured server.
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
        state_file: &StateFile,
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
            persisted: state_file.state(),
            metrics,
            running: watch::Sender::new(None),
        }
    }

    /// Returns the receivers of the running sidecar; `None` while there is none.
    pub(crate) fn running(&self) -> watch::Receiver<Option<RunningSidecar>> {
        self.running.subscribe()
    }

    /// Runs until `stop` is canceled.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut inputs = EndpointInputs {
            desired: self.config_source.desired(),
            api_key: self.api_key.clone(),
            tls: self.tls.clone(),
        };
        // The file names the address of vLLM, and through the API it arrives a moment later.
        drop(timeout(FIRST_CONFIG_TIMEOUT, stop.run_until_cancelled(inputs.desired.wait_for(Option::is_some))).await);
        while !stop.is_cancelled() {
            let Some(server) = self.server_endpoint(&mut inputs) else {
                tracing::error!("the adapters file names no valid address of vLLM: correct its `host` and `port`");
                stop.run_until_cancelled(inputs.changed()).await;
                continue;
            };
            let endpoint = watch::Sender::new(server.endpoint().clone());
            match self.build_sidecar(&server, endpoint.subscribe()) {
                Ok(sidecar) => {
                    let server_changed = async {
                        loop {
                            inputs.changed().await;
                            match self.server_endpoint(&mut inputs) {
                                // A new API key or CA keeps the sidecar and its state.
                                Some(new_server) if new_server.is_same_server(&server) => {
                                    endpoint.send_if_modified(|current| {
                                        let changed = current != new_server.endpoint();
                                        current.clone_from(new_server.endpoint());
                                        changed
                                    });
                                }
                                _ => break,
                            }
                        }
                    };
                    let sidecar_stop = stop.child_token();
                    let mut sidecar_run = std::pin::pin!(sidecar.run(sidecar_stop.clone()));
                    tokio::select! {
                        () = &mut sidecar_run => break,
                        () = server_changed => {
                            tracing::info!("the address of vLLM changed, starting a new sidecar");
                            // The HTTP endpoints must not serve the status of the previous server.
                            self.running.send_replace(None);
                            sidecar_stop.cancel();
                            drop(timeout(DRAIN_TIMEOUT, sidecar_run).await);
                        }
                    }
                }
                Err(error) => {
                    tracing::error!("{error}");
                    stop.run_until_cancelled(inputs.changed()).await;
                }
            }
        }
    }

    /// Returns the server that file and flags name now.
    fn server_endpoint(&self, inputs: &mut EndpointInputs) -> Option<ServerEndpoint> {
        let desired = inputs.desired.borrow_and_update().clone();
        let (api_key, tls) = (inputs.api_key.borrow_and_update().clone(), inputs.tls.current());
        // An active file always names a valid server, because `ConfigSource` validates it.
        let file = desired.as_deref().map(|desired| &desired.file);
        ServerEndpoint::new(file, self.host_override.as_deref(), tls).map(|server| server.with_key(api_key)).ok()
    }

    fn build_sidecar(
        &self,
        server: &ServerEndpoint,
        endpoint: watch::Receiver<Endpoint>,
    ) -> Result<Sidecar, VllmClientError> {
        let mut config = SidecarConfig::new(self.pod_name.clone(), server.endpoint().clone());
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
        tracing::info!(endpoint = server.endpoint().base_url(), "sidecar started");
        Ok(sidecar)
    }

    fn call_observer(&self) -> CallObserver {
        let metrics = Arc::clone(&self.metrics);
        Arc::new(move |call| metrics.record_call(call))
    }

    /// Logs an error when vLLM is down for long. Never returns.
    pub(crate) async fn log_outages(&self) {
        let mut running = self.running();
        loop {
            wait_for_status(&mut running, |status| status.server.is_none()).await;
            if timeout(self.health_check_timeout, wait_for_status(&mut running, |status| status.server.is_some()))
                .await
                .is_err()
            {
                let status =
                    running.borrow().as_ref().map(|running| running.status.borrow().clone()).unwrap_or_default();
                tracing::error!(
                    "vLLM has been down for {:?}, still waiting: {}",
                    self.health_check_timeout,
                    status.readiness.message
                );
                wait_for_status(&mut running, |status| status.server.is_some()).await;
            }
        }
    }
}

/// The inputs that determine the server and the credentials for it.
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

/// Waits until the status of the running sidecar fulfills `reached`.
async fn wait_for_status(
    running: &mut watch::Receiver<Option<RunningSidecar>>,
    reached: impl Fn(&SidecarStatus) -> bool,
) {
    loop {
        let current = running.borrow_and_update().clone();
        let condition = async {
            match current {
                Some(mut current) => current.status.wait_for(|status| reached(status)).await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            true = condition => return,
            Ok(()) = running.changed() => {}
        }
    }
}

fn refresh_callback(config_source: &Arc<ConfigSource>) -> RefreshCallback {
    let config_source = Arc::clone(config_source);
    Arc::new(move || -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let config_source = Arc::clone(&config_source);
        Box::pin(async move { config_source.refresh().await })
    })
}
