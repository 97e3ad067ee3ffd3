//! What all connections of one simulated server share, and how that server ends.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::adapters::Adapters;
use super::clock;
use super::config::Config;
use super::knobs::{Death, Knobs, Mode};
use super::ledger::Ledger;
use super::metrics::Usage;
use super::refusal::Refusal;
use super::reply::Made;
use super::source::Judge;
use super::voice::{Voice, mix};

/// One simulated server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) config: Config,
    pub(super) judge: Judge,
    pub(super) base: Voice,
    pub(super) started: Timestamp,
    /// Taken while an adapter is loaded: an engine loads one after the other.
    pub(super) loading: tokio::sync::Semaphore,
    knobs: watch::Sender<Knobs>,
    adapters: Mutex<Adapters>,
    ledger: Mutex<Ledger>,
    usage: Mutex<Usage>,
    answers: AtomicU64,
    reason: OnceLock<String>,
    /// Cancelled when the engine has failed and the server is about to end.
    pub(super) engine_dead: CancellationToken,
    /// Cancelled when everything is to be cut.
    pub(super) cut: CancellationToken,
}

impl Server {
    pub(super) fn new(config: Config) -> Self {
        let judge =
            Judge { sources: config.sources, working_dir: config.working_dir.clone(), max_rank: config.max_lora_rank };
        Self {
            judge,
            base: Voice::of(config.model.as_bytes()),
            started: clock::now(),
            loading: tokio::sync::Semaphore::new(config.parallel_loads.max(1)),
            knobs: watch::Sender::new(config.knobs.clone()),
            adapters: Mutex::new(Adapters::new(config.max_cpu_loras)),
            ledger: Mutex::default(),
            usage: Mutex::default(),
            answers: AtomicU64::default(),
            reason: OnceLock::new(),
            engine_dead: CancellationToken::new(),
            cut: CancellationToken::new(),
            config,
        }
    }

    pub(super) fn knobs(&self) -> Knobs {
        self.knobs.borrow().clone()
    }

    /// Reads the knobs without copying them.
    pub(super) fn knob<T>(&self, read: impl FnOnce(&Knobs) -> T) -> T {
        read(&self.knobs.borrow())
    }

    pub(super) fn turn(&self, change: impl FnOnce(&mut Knobs)) {
        self.knobs.send_modify(change);
    }

    pub(super) fn adapters(&self) -> MutexGuard<'_, Adapters> {
        self.adapters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn usage(&self) -> MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Id and time of a new answer.
    pub(super) fn made(&self) -> Made {
        let number = self.answers.fetch_add(1, Ordering::Relaxed);
        let id = mix(self.started.as_microsecond().unsigned_abs() ^ mix(number));
        Made { id: format!("{id:016x}"), at: clock::now().as_second() }
    }

    /// Waits while nothing is answered.
    pub(super) async fn until_answering(&self) {
        self.while_mode(|mode| mode == Mode::Hangs).await;
    }

    /// Waits while the engine does nothing; fails when it is dead or shut down.
    pub(super) async fn until_engine_works(&self) -> Result<(), Refusal> {
        self.unless_dead(self.while_mode(|mode| matches!(mode, Mode::Hangs | Mode::EngineHangs))).await?;
        if self.knob(|knobs| knobs.mode == Mode::Draining) { Err(Refusal::ShuttingDown) } else { Ok(()) }
    }

    async fn while_mode(&self, hanging: impl Fn(Mode) -> bool) {
        if self.knob(|knobs| hanging(knobs.mode)) {
            let changed = self.knobs.subscribe().wait_for(|knobs| !hanging(knobs.mode)).await.is_ok();
            debug_assert!(changed, "the sender lives in self");
        }
    }

    /// Spends time in the engine.
    pub(super) async fn work(&self, time: Duration) -> Result<(), Refusal> {
        if time.is_zero() {
            return if self.engine_dead.is_cancelled() { Err(Refusal::EngineDead) } else { Ok(()) };
        }
        self.unless_dead(sleep(time)).await
    }

    async fn unless_dead(&self, work: impl Future<Output = ()>) -> Result<(), Refusal> {
        let work = pin!(work);
        tokio::select! {
            biased;
            () = self.engine_dead.cancelled() => Err(Refusal::EngineDead),
            () = work => Ok(()),
        }
    }

    /// Ends the server. What is still to be answered is answered with the refusal, or with nothing at all.
    pub(super) async fn die(&self, death: Death, reason: String) -> Refusal {
        let _first_reason_stays = self.reason.set(reason);
        match death {
            Death::Engine => {
                self.engine_dead.cancel();
                Refusal::EngineDead
            }
            Death::Cut => {
                self.cut.cancel();
                std::future::pending().await
            }
        }
    }

    /// Cuts everything now.
    pub(super) fn crash(&self, reason: &str) {
        let _first_reason_stays = self.reason.set(reason.to_owned());
        self.cut.cancel();
    }

    /// Why the server ended, if it did by itself.
    pub(super) fn reason(&self) -> Option<String> {
        self.reason.get().cloned()
    }
}
