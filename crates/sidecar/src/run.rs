//! The loop: observe, decide, act.

use crate::{
    clock::MonotonicClock,
    config::SidecarConfig,
    connection_watch,
    decide::{AdapterCall, FetchRequest, decide, due_fetches},
    execute,
    source::AdapterSourcePolicy,
    spec::{AdapterGoal, adapter_specs},
    state::{CallKind, CallOutcome, PendingPoll, PersistedState, PollError, ServerObservation, SidecarState},
    status::status,
    transition_log,
};
use jiff::Timestamp;
use rollora_adapter_source::{FetchError, FetchProgress, FetchedAdapter};
use rollora_api::{adapters::DesiredAdapters, names::AdapterId, sidecar_status::SidecarStatus};
use rollora_vllm::{Endpoint, VllmClient, VllmClientError, VllmError};
use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

/// The idle connection is made again after this time at the earliest: some servers close it as soon as it stands.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Has what is desired read again, to the end: what is in the channel afterwards is what was desired when it was called.
pub type RefreshCallback = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Is told of every call about an adapter that was answered, or was not.
pub type CallObserver = Arc<dyn Fn(&CompletedCall<'_>) + Send + Sync>;

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub struct CompletedCall<'a> {
    /// What was asked: `load`, `probe`, `unload`, or `fetch` of whoever keeps adapters.
    pub kind: &'static str,
    /// About which adapter.
    pub id: &'a AdapterId,
    /// What came of it: `Success`, or the class of the error.
    pub outcome: &'static str,
    /// How long it took.
    pub duration: Duration,
}

/// That a sidecar is at work. What it tells of its server is published before this.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    /// When its loop last turned.
    pub last_iteration: Instant,
    /// When the last look at the server ended; none before the first.
    pub last_poll: Option<Instant>,
    /// When what the server holds was last compared with what is desired; none before the first time.
    pub last_reconcile: Option<Instant>,
    /// [`SidecarStatus::uses_read_at`], which moves too often for a status that others watch.
    pub usage_read_at: Option<Timestamp>,
}

/// Where whoever waits for an adapter's end leaves word that they look: uses are read more often then. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct UsagePollBoost(Arc<AtomicBool>);

impl UsagePollBoost {
    /// Somebody looks.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether anybody has looked since this was asked before.
    fn take_request(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// All that a sidecar tells of its server, from what it publishes.
pub fn full_status(
    status: &watch::Receiver<Arc<SidecarStatus>>,
    pulse: &watch::Receiver<Option<Heartbeat>>,
) -> SidecarStatus {
    // The pulse first: no reading may be told without the uses that it showed, and those are published before it.
    let uses_read_at = pulse.borrow().and_then(|pulse| pulse.usage_read_at);
    SidecarStatus { usage_read_at: uses_read_at, ..SidecarStatus::clone(&status.borrow()) }
}

type DesiredReceiver = watch::Receiver<Option<Arc<DesiredAdapters>>>;

/// Keeps one vLLM server at what is desired.
pub struct Sidecar {
    config: SidecarConfig,
    client: VllmClient,
    desired: DesiredReceiver,
    refresh: Option<RefreshCallback>,
    suspect_notify: Arc<Notify>,
    file_errors: watch::Receiver<Option<String>>,
    endpoint: watch::Receiver<Endpoint>,
    status: watch::Sender<Arc<SidecarStatus>>,
    heartbeat: watch::Sender<Option<Heartbeat>>,
    usage_poll_boost: UsagePollBoost,
    observer: Option<CallObserver>,
    persisted: Option<watch::Sender<PersistedState>>,
    source_policy: AdapterSourcePolicy,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Something that was waited for.
enum LoopEvent {
    PollFinished(PendingPoll, Result<ServerObservation, PollError>),
    /// None where nobody wanted it any more.
    FetchFinished {
        id: AdapterId,
        fetch_id: u64,
        progress: FetchProgress,
        result: Option<Result<FetchedAdapter, FetchError>>,
        duration: Duration,
    },
    CallFinished {
        id: AdapterId,
        epoch: u64,
        kind: CallKind,
        outcome: CallOutcome,
        duration: Duration,
    },
}

/// A fetch under way.
struct RunningFetch {
    id: AdapterId,
    fetch_id: u64,
    progress: watch::Receiver<FetchProgress>,
    cancel: CancellationToken,
}

/// The idle connection to the server.
enum ConnectionWatch {
    /// Not before this time.
    Disconnected(Timestamp),
    Connecting(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>),
    Connected(TcpStream),
}

impl Sidecar {
    /// A sidecar fed by `desired` (none before the first good file), and what it tells of its server.
    pub fn new(
        config: SidecarConfig,
        desired: DesiredReceiver,
    ) -> Result<(Self, watch::Receiver<Arc<SidecarStatus>>), VllmClientError> {
        let client = VllmClient::new(config.endpoint.clone(), config.timeouts)?;
        let (status, receiver) = watch::channel(Arc::default());
        let endpoint = watch::channel(config.endpoint.clone()).1;
        let sidecar = Self {
            config,
            client,
            desired,
            refresh: None,
            suspect_notify: Arc::default(),
            file_errors: watch::channel(None).1,
            endpoint,
            status,
            heartbeat: watch::Sender::new(None),
            usage_poll_boost: UsagePollBoost::default(),
            observer: None,
            persisted: None,
            source_policy: AdapterSourcePolicy::default(),
        };
        Ok((sidecar, receiver))
    }

    /// Before every unload, what is desired is read again by `refresh`.
    #[must_use]
    pub fn with_refresh(mut self, refresh: RefreshCallback) -> Self {
        self.refresh = Some(refresh);
        self
    }

    /// Whoever else talks to the server rings here when a connection broke. The server is suspect then, and whatever
    /// comes of that is told as a change of the status.
    #[must_use]
    pub fn with_suspect_notify(mut self, doubts: Arc<Notify>) -> Self {
        self.suspect_notify = doubts;
        self
    }

    /// The status tells what is said here: why newer content of the file is not in force.
    #[must_use]
    pub fn with_file_errors(mut self, file_errors: watch::Receiver<Option<String>>) -> Self {
        self.file_errors = file_errors;
        self
    }

    /// The same server is asked as it is said here: with another key, or trusted through somebody else. Calls under
    /// way end as they began.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: watch::Receiver<Endpoint>) -> Self {
        self.endpoint = endpoint;
        self
    }

    /// Every call about an adapter is told to `observer`.
    #[must_use]
    pub fn with_observer(mut self, observer: CallObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// What is worth keeping over a restart is published here, and what stands here at the start was kept by an
    /// earlier run.
    #[must_use]
    pub fn with_persisted(mut self, kept: watch::Sender<PersistedState>) -> Self {
        self.persisted = Some(kept);
        self
    }

    /// Sources are dealt with as it is said here. Without, vLLM is given every source as it is written.
    #[must_use]
    pub fn with_source_policy(mut self, sources: AdapterSourcePolicy) -> Self {
        self.source_policy = sources;
        self
    }

    /// That it is at work; none before it runs.
    pub fn heartbeat(&self) -> watch::Receiver<Option<Heartbeat>> {
        self.heartbeat.subscribe()
    }

    /// Where to leave word that somebody looks.
    pub fn usage_poll_boost(&self) -> UsagePollBoost {
        self.usage_poll_boost.clone()
    }

    /// Works until it is stopped. Then nothing new is begun, and calls under way are finished within
    /// [`Config::last_calls`]. vLLM is left as it is.
    pub async fn run(self, stop: CancellationToken) {
        let span = info_span!("sidecar", server = %self.config.server_name);
        self.run_loop(stop).instrument(span).await;
    }

    async fn run_loop(mut self, stop: CancellationToken) {
        let clock = MonotonicClock::start();
        let mut memory = SidecarState::new(self.client.endpoint().base_url(), self.config.policy);
        memory.source_policy = self.source_policy.clone();
        let mut tasks = JoinSet::new();
        let mut fetches = Vec::new();
        let mut sentinel = ConnectionWatch::Disconnected(clock.now());
        let (mut looked, mut reconciled) = (None, None);
        let mut last_calls_end = None;
        // Whether nothing but time has passed since the last turn.
        let mut only_time = false;
        if let Some(kept) = &self.persisted {
            memory.restore(kept.borrow().clone());
        }
        self.apply_desired(&mut memory, clock.now());
        self.apply_file_error(&mut memory);
        loop {
            let now = clock.now();
            if self.usage_poll_boost.take_request() {
                memory.boost_usage_polls(now);
            }
            let actions = if last_calls_end.is_none() { decide(&memory, now) } else { Vec::new() };
            let mut news = !only_time || !actions.is_empty();
            for action in actions {
                memory.begin_call(&action, now);
                self.spawn_call(&mut tasks, action, memory.epoch());
            }
            if let Some(look) = memory.due_poll(now) {
                let (client, ticket) = (self.client.clone(), memory.begin_poll(look, now));
                tasks.spawn(
                    async move { LoopEvent::PollFinished(ticket, execute::poll(&client, look).await) }
                        .in_current_span(),
                );
            } else {
                news = true;
            }
            if last_calls_end.is_none() {
                news |= self.sync_fetches(&mut fetches, &mut tasks, &mut memory, now);
            }
            sentinel.reconnect(&self, now);
            // The beginning of a look tells nothing that its end will not tell a moment later, or the next turn.
            if news {
                self.publish(&mut memory, now);
            }
            only_time = false;
            let (turned, uses_read_at) = (clock.instant(now), memory.usage_read_at());
            self.heartbeat.send_replace(Some(Heartbeat {
                last_iteration: turned,
                last_poll: looked,
                last_reconcile: reconciled,
                usage_read_at: uses_read_at,
            }));
            if last_calls_end.is_some() && memory.in_flight().next().is_none() {
                break;
            }
            tokio::select! {
                () = stop.cancelled(), if last_calls_end.is_none() => {
                    last_calls_end = Some(Instant::now() + self.config.shutdown_grace);
                }
                () = wait_until(last_calls_end) => {
                    transition_log::log_abandoned_calls(memory.in_flight().map(|(id, _, call)| (id, call.kind)));
                    break;
                }
                Ok(()) = self.desired.changed() => self.apply_desired(&mut memory, clock.now()),
                Ok(()) = self.file_errors.changed() => self.apply_file_error(&mut memory),
                Ok(()) = self.endpoint.changed() => self.replace_client(&mut memory),
                () = self.suspect_notify.notified() => memory.client_connection_broke(),
                Some(event) = tasks.join_next() => {
                    let now = clock.now();
                    // With all else that has ended by now: a turn goes through all adapters, and there may be thousands.
                    let mut ended = Some(event);
                    while let Some(event) = ended {
                        if let Some(compared) = self.handle_task_result(&mut memory, event, now) {
                            looked = Some(clock.instant(now));
                            reconciled = if compared { looked } else { reconciled };
                        }
                        ended = tasks.try_join_next();
                    }
                }
                closed = sentinel.next_event() => {
                    let secure = self.client.endpoint().is_https();
                    sentinel.handle_event(closed, secure, &mut memory, clock.now());
                }
                () = sleep_until(clock.instant(memory.next_wakeup(now))) => only_time = true,
            }
        }
    }

    fn apply_desired(&mut self, memory: &mut SidecarState, now: Timestamp) {
        let desired = self.desired.borrow_and_update().clone();
        if let Some(desired) = desired {
            memory.set_desired(&desired, &self.config.server_name, now);
        }
    }

    fn apply_file_error(&mut self, memory: &mut SidecarState) {
        memory.file_error.clone_from(&self.file_errors.borrow_and_update());
    }

    /// Asks the same server in another way from now on.
    fn replace_client(&mut self, memory: &mut SidecarState) {
        let endpoint = self.endpoint.borrow_and_update().clone();
        match VllmClient::new(endpoint, self.config.timeouts) {
            Ok(client) => {
                self.client = client;
                memory.endpoint_changed();
            }
            Err(error) => tracing::error!("vLLM is asked as before: {error}"),
        }
    }

    /// Begins the fetches that are due, and ends those that nobody wants any more. Whether one is under way.
    fn sync_fetches(
        &self,
        running: &mut Vec<RunningFetch>,
        tasks: &mut JoinSet<LoopEvent>,
        memory: &mut SidecarState,
        now: Timestamp,
    ) -> bool {
        running.retain(|fetch| {
            memory.set_fetch_progress(&fetch.id, fetch.fetch_id, *fetch.progress.borrow());
            let wanted = memory.is_current_fetch(&fetch.id, fetch.fetch_id);
            if !wanted {
                fetch.cancel.cancel();
            }
            wanted
        });
        let Some(store) = &self.source_policy.adapter_source else { return false };
        for FetchRequest { id, source } in due_fetches(memory, now) {
            let number = memory.begin_fetch(&id, now);
            let (told, progress) = watch::channel(FetchProgress::default());
            let (store, cancel) = (Arc::clone(store), CancellationToken::new());
            running.push(RunningFetch { id: id.clone(), fetch_id: number, progress, cancel: cancel.clone() });
            let fetch = async move {
                let began = Instant::now();
                let tell = |progress| {
                    told.send_replace(progress);
                };
                let ended = cancel.run_until_cancelled(store.fetch(&source, &tell)).await;
                // What was told last may not have been looked at before the end.
                let progress = *told.borrow();
                LoopEvent::FetchFinished { id, fetch_id: number, progress, result: ended, duration: began.elapsed() }
            };
            tasks.spawn(fetch.in_current_span());
        }
        !running.is_empty()
    }

    fn spawn_call(&self, tasks: &mut JoinSet<LoopEvent>, action: AdapterCall, epoch: u64) {
        let (client, desired, refresh) = (self.client.clone(), self.desired.clone(), self.refresh.clone());
        let (name, sources) = (self.config.server_name.clone(), self.source_policy.clone());
        let still_unwanted = async move |id: &AdapterId| {
            if let Some(refresh) = refresh {
                refresh().await;
            }
            is_unwanted(&desired, id, &name, &sources)
        };
        let call = async move {
            let began = Instant::now();
            let ended = execute::execute(&client, &action, still_unwanted).await;
            LoopEvent::CallFinished {
                id: action.id().clone(),
                epoch,
                kind: action.kind(),
                outcome: ended,
                duration: began.elapsed(),
            }
        };
        tasks.spawn(call.in_current_span());
    }

    /// Tells how the server is, where that has changed.
    fn publish(&self, memory: &mut SidecarState, now: Timestamp) {
        let fresh = status(memory, now);
        if fresh.readiness.ready {
            memory.latch_ready();
        }
        let current = self.status.borrow().clone();
        if *current != fresh {
            transition_log::log_transitions(&current, &fresh);
            self.status.send_replace(Arc::new(fresh));
        }
        if let Some(kept) = &self.persisted {
            let fresh = memory.to_persisted();
            kept.send_if_modified(|current| {
                let changed = *current != fresh;
                *current = fresh;
                changed
            });
        }
    }

    /// Takes in what has ended. Where it was a look: whether it showed what the server holds.
    fn handle_task_result(
        &self,
        memory: &mut SidecarState,
        event: Result<LoopEvent, JoinError>,
        now: Timestamp,
    ) -> Option<bool> {
        match event {
            Ok(LoopEvent::PollFinished(ticket, seen)) => {
                let compared = ticket.request.models && seen.is_ok();
                memory.finish_poll(ticket, seen, now);
                return Some(compared);
            }
            Ok(LoopEvent::CallFinished { id, epoch, kind, outcome: ended, duration: took }) => {
                if let (Some(observer), CallOutcome::Executed(answer)) = (&self.observer, &ended) {
                    let outcome = answer.as_ref().map_or_else(VllmError::reason, |()| "Success");
                    observer(&CompletedCall { kind: kind.name(), id: &id, outcome, duration: took });
                }
                memory.finish_call(&id, epoch, ended, rand::random(), now);
            }
            Ok(LoopEvent::FetchFinished { id, fetch_id: number, progress, result: Some(ended), duration: took }) => {
                if let Some(observer) = &self.observer {
                    let outcome = ended.as_ref().map_or_else(|error| error.reason.as_str(), |_| "Success");
                    observer(&CompletedCall { kind: "fetch", id: &id, outcome, duration: took });
                }
                memory.set_fetch_progress(&id, number, progress);
                memory.finish_fetch(&id, number, ended, rand::random(), now);
            }
            Ok(LoopEvent::FetchFinished { result: None, .. }) => {}
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => tracing::error!(%error, "a call was aborted, which nobody should do"),
            },
        }
        None
    }
}

/// Waits until then; without a time, for ever.
async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether `id` is to be unloaded by what is desired at this moment.
fn is_unwanted(desired: &DesiredReceiver, id: &AdapterId, name: &str, sources: &AdapterSourcePolicy) -> bool {
    let desired = desired.borrow().clone();
    desired.is_some_and(|desired| {
        adapter_specs(&desired, name, sources).get(id).is_some_and(|wish| wish.goal() == AdapterGoal::Absent)
    })
}

impl ConnectionWatch {
    /// Begins to connect when it is time.
    fn reconnect(&mut self, sidecar: &Sidecar, now: Timestamp) {
        if matches!(self, Self::Disconnected(not_before) if now >= *not_before) {
            let endpoint = sidecar.client.endpoint();
            let (host, port) = (endpoint.host().to_owned(), endpoint.port());
            let limit = sidecar.client.timeouts().connect;
            *self = Self::Connecting(Box::pin(async move { connection_watch::connect(&host, port, limit).await }));
        }
    }

    /// Waits for a connection, or for its end (none).
    async fn next_event(&mut self) -> Option<io::Result<TcpStream>> {
        match self {
            Self::Disconnected(_) => std::future::pending().await,
            Self::Connecting(connection) => Some(connection.await),
            Self::Connected(connection) => {
                connection_watch::wait_closed(connection).await;
                None
            }
        }
    }

    fn handle_event(
        &mut self,
        event: Option<io::Result<TcpStream>>,
        secure: bool,
        memory: &mut SidecarState,
        now: Timestamp,
    ) {
        *self = match event {
            Some(Ok(connection)) => {
                // From here on its end is noticed; which process it is has to be known from before.
                memory.request_metrics_poll();
                Self::Connected(connection)
            }
            Some(Err(_)) => Self::Disconnected(now + RECONNECT_DELAY),
            None => {
                if secure {
                    // A server with TLS closes a connection that never says hello: that tells nothing, and looking is
                    // cheap.
                    memory.request_metrics_poll();
                } else {
                    memory.idle_connection_closed();
                }
                Self::Disconnected(now + RECONNECT_DELAY)
            }
        };
    }
}
