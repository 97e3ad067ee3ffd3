//! State that all connections of a simulated server share, and the ways in which the server crashes.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::adapters::AdapterTable;
use super::clock;
use super::config::SimulatorConfig;
use super::knobs::{CrashMode, Knobs, ServingMode};
use super::metrics::MetricsState;
use super::request_log::RequestLog;
use super::response::ResponseMeta;
use super::source::SourceValidator;
use super::text::{TextGenerator, splitmix64};
use super::vllm_error::VllmError;

/// State of one simulated server.
#[derive(Debug)]
pub(super) struct SimulatedServer {
    pub(super) config: SimulatorConfig,
    pub(super) source_validator: SourceValidator,
    pub(super) base_text: TextGenerator,
    pub(super) started: Timestamp,
    /// Held while an adapter is loaded: an engine loads one after the other by default.
    pub(super) load_permits: tokio::sync::Semaphore,
    knobs: watch::Sender<Knobs>,
    adapters: Mutex<AdapterTable>,
    request_log: Mutex<RequestLog>,
    metrics: Mutex<MetricsState>,
    response_count: AtomicU64,
    end_reason: OnceLock<String>,
    /// Canceled when the engine has failed and the server is about to end.
    pub(super) engine_dead: CancellationToken,
    /// Canceled when all connections must be closed immediately.
    pub(super) killed: CancellationToken,
}

impl SimulatedServer {
    pub(super) fn new(config: SimulatorConfig) -> Self {
        let source_validator = SourceValidator {
            sources: config.sources,
            working_dir: config.working_dir.clone(),
            max_rank: config.max_lora_rank,
        };
        Self {
            source_validator,
            base_text: TextGenerator::from_weights(config.model.as_bytes()),
            started: clock::now(),
            load_permits: tokio::sync::Semaphore::new(config.parallel_loads.max(1)),
            knobs: watch::Sender::new(config.knobs.clone()),
            adapters: Mutex::new(AdapterTable::new(config.max_cpu_loras)),
            request_log: Mutex::default(),
            metrics: Mutex::default(),
            response_count: AtomicU64::default(),
            end_reason: OnceLock::new(),
            engine_dead: CancellationToken::new(),
            killed: CancellationToken::new(),
            config,
        }
    }

    pub(super) fn knobs(&self) -> Knobs {
        self.knobs.borrow().clone()
    }

    /// Reads the knobs without cloning them.
    pub(super) fn read_knobs<T>(&self, read: impl FnOnce(&Knobs) -> T) -> T {
        read(&self.knobs.borrow())
    }

    pub(super) fn update_knobs(&self, change: impl FnOnce(&mut Knobs)) {
        self.knobs.send_modify(change);
    }

    pub(super) fn adapters(&self) -> MutexGuard<'_, AdapterTable> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn request_log(&self) -> MutexGuard<'_, RequestLog> {
        self.request_log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn metrics(&self) -> MutexGuard<'_, MetricsState> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns id and time for a new response.
    pub(super) fn response_meta(&self) -> ResponseMeta {
        let number = self.response_count.fetch_add(1, Ordering::Relaxed);
        let id = splitmix64(self.started.as_microsecond().unsigned_abs() ^ splitmix64(number));
        ResponseMeta { id: format!("{id:016x}"), created: clock::now().as_second() }
    }

    /// Waits while the whole server hangs.
    pub(super) async fn wait_while_hanging(&self) {
        self.wait_mode_change(|mode| mode == ServingMode::Hangs).await;
    }

    /// Waits while the engine hangs; an error if it is dead or shutting down.
    pub(super) async fn wait_for_engine(&self) -> Result<(), VllmError> {
        self.or_engine_dead(
            self.wait_mode_change(|mode| matches!(mode, ServingMode::Hangs | ServingMode::EngineHangs)),
        )
        .await?;
        if self.read_knobs(|knobs| knobs.mode == ServingMode::Draining) { Err(VllmError::ShuttingDown) } else { Ok(()) }
    }

    async fn wait_mode_change(&self, hanging: impl Fn(ServingMode) -> bool) {
        if self.read_knobs(|knobs| hanging(knobs.mode)) {
            let changed = self.knobs.subscribe().wait_for(|knobs| !hanging(knobs.mode)).await.is_ok();
            debug_assert!(changed, "self owns the sender");
        }
    }

    /// Waits for `time`; an error if the engine fails meanwhile.
    pub(super) async fn spend_engine_time(&self, time: Duration) -> Result<(), VllmError> {
        if time.is_zero() {
            return if self.engine_dead.is_cancelled() { Err(VllmError::EngineDead) } else { Ok(()) };
        }
        self.or_engine_dead(sleep(time)).await
    }

    async fn or_engine_dead(&self, work: impl Future<Output = ()>) -> Result<(), VllmError> {
        let work = pin!(work);
        tokio::select! {
            biased;
            () = self.engine_dead.cancelled() => Err(VllmError::EngineDead),
            () = work => Ok(()),
        }
    }

    /// Crashes the server. Pending requests get the returned error, or no response if this never returns.
    pub(super) async fn crash_with(&self, mode: CrashMode, reason: String) -> VllmError {
        let _first_reason_stays = self.end_reason.set(reason);
        match mode {
            CrashMode::Engine => {
                self.engine_dead.cancel();
                VllmError::EngineDead
            }
            CrashMode::Cut => {
                self.killed.cancel();
                std::future::pending().await
            }
        }
    }

    /// Closes all connections immediately.
    pub(super) fn crash(&self, reason: &str) {
        let _first_reason_stays = self.end_reason.set(reason.to_owned());
        self.killed.cancel();
    }

    /// Returns why the server crashed, or `None` if it did not.
    pub(super) fn end_reason(&self) -> Option<String> {
        self.end_reason.get().cloned()
    }
}
