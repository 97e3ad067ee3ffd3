//! The main loop of a sidecar: observe, decide, act.

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

/// Delay before the idle connection is opened again: some servers close it as soon as it is established.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);

/// Forces a re-read of the desired state. When its future completes, the channel holds what was desired at the call.
pub type RefreshCallback = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Receives every completed call about an adapter, whether or not vLLM answered it.
pub type CallObserver = Arc<dyn Fn(&CompletedCall<'_>) + Send + Sync>;

/// A completed call about an adapter, as a [`CallObserver`] receives it.
#[derive(Debug, Clone, Copy)]
pub struct CompletedCall<'a> {
    /// The kind: `load`, `probe` or `unload` of vLLM, or `fetch` of the adapter source.
    pub kind: &'static str,
    /// The id of the adapter.
    pub id: &'a AdapterId,
    /// `Success`, or the reason of the error.
    pub outcome: &'static str,
    /// How long the call took.
    pub duration: Duration,
}

/// Heartbeat of the main loop. The status is always published before the heartbeat that belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    /// When the last iteration of the loop began.
    pub last_iteration: Instant,
    /// When the last poll of the server ended; `None` before the first.
    pub last_poll: Option<Instant>,
    /// When the models of the server were last compared with the desired adapters; `None` before the first time.
    pub last_reconcile: Option<Instant>,
    /// [`SidecarStatus::usage_read_at`], which changes too often to be part of a watched status.
    pub usage_read_at: Option<Timestamp>,
}

/// Flag set by clients that wait for an unload; while it is set, usage is polled more often. Clones share the flag.
#[derive(Debug, Clone, Default)]
pub struct UsagePollBoost(Arc<AtomicBool>);

impl UsagePollBoost {
    /// Requests frequent usage polls for the next seconds.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns whether there was a request since the last call, and clears the flag.
    fn take_request(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Returns the status with `usage_read_at`, which only the heartbeat holds.
pub fn full_status(
    status: &watch::Receiver<Arc<SidecarStatus>>,
    heartbeat: &watch::Receiver<Option<Heartbeat>>,
) -> SidecarStatus {
    // The heartbeat first: the status must contain all usage up to `usage_read_at`, and is published before it.
    let usage_read_at = heartbeat.borrow().and_then(|heartbeat| heartbeat.usage_read_at);
    SidecarStatus { usage_read_at, ..SidecarStatus::clone(&status.borrow()) }
}

type DesiredReceiver = watch::Receiver<Option<Arc<DesiredAdapters>>>;

/// Reconciles one vLLM server with the desired adapters.
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

/// Result of a task of the main loop.
enum LoopEvent {
    Poll(PendingPoll, Result<ServerObservation, PollError>),
    /// `result` is `None` if the fetch was canceled.
    Fetch {
        id: AdapterId,
        fetch_id: u64,
        progress: FetchProgress,
        result: Option<Result<FetchedAdapter, FetchError>>,
        duration: Duration,
    },
    Call {
        id: AdapterId,
        epoch: u64,
        kind: CallKind,
        outcome: CallOutcome,
        duration: Duration,
    },
}

/// A fetch in flight, with the means to follow and cancel it.
struct RunningFetch {
    id: AdapterId,
    fetch_id: u64,
    progress: watch::Receiver<FetchProgress>,
    cancel: CancellationToken,
}

/// State of the idle connection to the server.
enum ConnectionWatch {
    /// No new connection before this time.
    Disconnected(Timestamp),
    Connecting(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>),
    Connected(TcpStream),
}

impl Sidecar {
    /// Creates a sidecar that follows `desired` (`None` before the first valid file), and a receiver of its status.
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

    /// Sets the callback that re-reads the desired state before every unload.
    #[must_use]
    pub fn with_refresh(mut self, refresh: RefreshCallback) -> Self {
        self.refresh = Some(refresh);
        self
    }

    /// Sets the signal by which another client of the server reports that its connection broke. The server is then
    /// suspect until a poll has checked it.
    #[must_use]
    pub fn with_suspect_notify(mut self, suspect_notify: Arc<Notify>) -> Self {
        self.suspect_notify = suspect_notify;
        self
    }

    /// Sets the channel of the error that the status reports: why newer content of the file is not active.
    #[must_use]
    pub fn with_file_errors(mut self, file_errors: watch::Receiver<Option<String>>) -> Self {
        self.file_errors = file_errors;
        self
    }

    /// Sets the channel of the endpoint that new calls use. It must always be the same server; only its API key and its
    /// trusted CAs can change. Calls in flight are not affected.
    #[must_use]
    pub fn with_endpoint(mut self, endpoint: watch::Receiver<Endpoint>) -> Self {
        self.endpoint = endpoint;
        self
    }

    /// Sets the observer that receives every completed call about an adapter.
    #[must_use]
    pub fn with_observer(mut self, observer: CallObserver) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Sets the channel for the state that must survive a restart. Its initial value is the state that an earlier run
    /// persisted.
    #[must_use]
    pub fn with_persisted(mut self, persisted: watch::Sender<PersistedState>) -> Self {
        self.persisted = Some(persisted);
        self
    }

    /// Sets which sources are allowed and which are fetched. Without a policy, vLLM gets every source as the file names
    /// it.
    #[must_use]
    pub fn with_source_policy(mut self, source_policy: AdapterSourcePolicy) -> Self {
        self.source_policy = source_policy;
        self
    }

    /// Returns the heartbeat of the loop; `None` before it runs.
    pub fn heartbeat(&self) -> watch::Receiver<Option<Heartbeat>> {
        self.heartbeat.subscribe()
    }

    /// Returns the flag that requests frequent usage polls.
    pub fn usage_poll_boost(&self) -> UsagePollBoost {
        self.usage_poll_boost.clone()
    }

    /// Runs until `stop` is canceled. Then no new call is started, and calls in flight have
    /// [`SidecarConfig::shutdown_grace`] to finish. vLLM keeps its adapters.
    pub async fn run(self, stop: CancellationToken) {
        let span = info_span!("sidecar", server = %self.config.server_name);
        self.run_loop(stop).instrument(span).await;
    }

    async fn run_loop(mut self, stop: CancellationToken) {
        let clock = MonotonicClock::start();
        let mut state = SidecarState::new(self.client.endpoint().base_url(), self.config.policy);
        state.source_policy = self.source_policy.clone();
        let mut tasks = JoinSet::new();
        let mut fetches = Vec::new();
        let mut connection = ConnectionWatch::Disconnected(clock.now());
        let (mut last_poll, mut last_reconcile) = (None, None);
        let mut shutdown_deadline = None;
        // Whether the last iteration ended by a timer alone.
        let mut woken_by_timer = false;
        if let Some(persisted) = &self.persisted {
            state.restore(persisted.borrow().clone());
        }
        self.apply_desired(&mut state, clock.now());
        self.apply_file_error(&mut state);
        loop {
            let now = clock.now();
            if self.usage_poll_boost.take_request() {
                state.boost_usage_polls(now);
            }
            let actions = if shutdown_deadline.is_none() { decide(&state, now) } else { Vec::new() };
            let mut publish_needed = !woken_by_timer || !actions.is_empty();
            for action in actions {
                state.begin_call(&action, now);
                self.spawn_call(&mut tasks, action, state.epoch());
            }
            if let Some(request) = state.due_poll(now) {
                let (client, pending) = (self.client.clone(), state.begin_poll(request, now));
                tasks.spawn(
                    async move { LoopEvent::Poll(pending, execute::poll(&client, request).await) }.in_current_span(),
                );
            } else {
                publish_needed = true;
            }
            if shutdown_deadline.is_none() {
                publish_needed |= self.sync_fetches(&mut fetches, &mut tasks, &mut state, now);
            }
            connection.reconnect(&self, now);
            // The start of a poll alone changes nothing in the status, so the end of the poll publishes it.
            if publish_needed {
                self.publish(&mut state, now);
            }
            woken_by_timer = false;
            let (last_iteration, usage_read_at) = (clock.instant(now), state.usage_read_at());
            self.heartbeat.send_replace(Some(Heartbeat { last_iteration, last_poll, last_reconcile, usage_read_at }));
            if shutdown_deadline.is_some() && state.in_flight().next().is_none() {
                break;
            }
            tokio::select! {
                () = stop.cancelled(), if shutdown_deadline.is_none() => {
                    shutdown_deadline = Some(Instant::now() + self.config.shutdown_grace);
                }
                () = wait_until(shutdown_deadline) => {
                    transition_log::log_abandoned_calls(state.in_flight().map(|(id, _, call)| (id, call.kind)));
                    break;
                }
                Ok(()) = self.desired.changed() => self.apply_desired(&mut state, clock.now()),
                Ok(()) = self.file_errors.changed() => self.apply_file_error(&mut state),
                Ok(()) = self.endpoint.changed() => self.replace_client(&mut state),
                () = self.suspect_notify.notified() => state.client_connection_broke(),
                Some(event) = tasks.join_next() => {
                    let now = clock.now();
                    // Handle all results that are ready: an iteration visits all adapters, and there may be thousands.
                    let mut next = Some(event);
                    while let Some(event) = next {
                        if let Some(compared) = self.handle_task_result(&mut state, event, now) {
                            last_poll = Some(clock.instant(now));
                            last_reconcile = if compared { last_poll } else { last_reconcile };
                        }
                        next = tasks.try_join_next();
                    }
                }
                event = connection.next_event() => {
                    let secure = self.client.endpoint().is_https();
                    connection.handle_event(event, secure, &mut state, clock.now());
                }
                () = sleep_until(clock.instant(state.next_wakeup(now))) => woken_by_timer = true,
            }
        }
    }

    fn apply_desired(&mut self, state: &mut SidecarState, now: Timestamp) {
        let desired = self.desired.borrow_and_update().clone();
        if let Some(desired) = desired {
            state.set_desired(&desired, &self.config.server_name, now);
        }
    }

    fn apply_file_error(&mut self, state: &mut SidecarState) {
        state.file_error.clone_from(&self.file_errors.borrow_and_update());
    }

    /// Replaces the client by one with the new API key or CAs of the same server.
    fn replace_client(&mut self, state: &mut SidecarState) {
        let endpoint = self.endpoint.borrow_and_update().clone();
        match VllmClient::new(endpoint, self.config.timeouts) {
            Ok(client) => {
                self.client = client;
                state.endpoint_changed();
            }
            Err(error) => {
                tracing::error!("cannot apply the new API key or CA, keeping the previous one: {error}");
            }
        }
    }

    /// Starts due fetches and cancels fetches that are no longer wanted. Returns whether one is in flight.
    fn sync_fetches(
        &self,
        running: &mut Vec<RunningFetch>,
        tasks: &mut JoinSet<LoopEvent>,
        state: &mut SidecarState,
        now: Timestamp,
    ) -> bool {
        running.retain(|fetch| {
            state.set_fetch_progress(&fetch.id, fetch.fetch_id, *fetch.progress.borrow());
            let is_current = state.is_current_fetch(&fetch.id, fetch.fetch_id);
            if !is_current {
                fetch.cancel.cancel();
            }
            is_current
        });
        let Some(adapter_source) = &self.source_policy.adapter_source else { return false };
        for FetchRequest { id, source } in due_fetches(state, now) {
            let fetch_id = state.begin_fetch(&id, now);
            let (progress_tx, progress) = watch::channel(FetchProgress::default());
            let (adapter_source, cancel) = (Arc::clone(adapter_source), CancellationToken::new());
            running.push(RunningFetch { id: id.clone(), fetch_id, progress, cancel: cancel.clone() });
            let fetch = async move {
                let started = Instant::now();
                let on_progress = |progress| {
                    progress_tx.send_replace(progress);
                };
                let result = cancel.run_until_cancelled(adapter_source.fetch(&source, &on_progress)).await;
                // The last progress may not have been read before the end.
                let progress = *progress_tx.borrow();
                LoopEvent::Fetch { id, fetch_id, progress, result, duration: started.elapsed() }
            };
            tasks.spawn(fetch.in_current_span());
        }
        !running.is_empty()
    }

    fn spawn_call(&self, tasks: &mut JoinSet<LoopEvent>, action: AdapterCall, epoch: u64) {
        let (client, desired, refresh) = (self.client.clone(), self.desired.clone(), self.refresh.clone());
        let (server_name, source_policy) = (self.config.server_name.clone(), self.source_policy.clone());
        let still_unwanted = async move |id: &AdapterId| {
            if let Some(refresh) = refresh {
                refresh().await;
            }
            is_unwanted(&desired, id, &server_name, &source_policy)
        };
        let call = async move {
            let started = Instant::now();
            let outcome = execute::execute(&client, &action, still_unwanted).await;
            LoopEvent::Call {
                id: action.id().clone(),
                epoch,
                kind: action.kind(),
                outcome,
                duration: started.elapsed(),
            }
        };
        tasks.spawn(call.in_current_span());
    }

    /// Publishes the status and the persisted state, if they have changed.
    fn publish(&self, state: &mut SidecarState, now: Timestamp) {
        let updated = status(state, now);
        if updated.readiness.ready {
            state.latch_ready();
        }
        let current = self.status.borrow().clone();
        if *current != updated {
            transition_log::log_transitions(&current, &updated);
            self.status.send_replace(Arc::new(updated));
        }
        if let Some(persisted) = &self.persisted {
            let updated = state.to_persisted();
            persisted.send_if_modified(|current| {
                let changed = *current != updated;
                *current = updated;
                changed
            });
        }
    }

    /// Applies the result of a task. Returns for a poll whether it listed the models, and `None` for other tasks.
    fn handle_task_result(
        &self,
        state: &mut SidecarState,
        event: Result<LoopEvent, JoinError>,
        now: Timestamp,
    ) -> Option<bool> {
        match event {
            Ok(LoopEvent::Poll(pending, observation)) => {
                let compared = pending.request.models && observation.is_ok();
                state.finish_poll(pending, observation, now);
                return Some(compared);
            }
            Ok(LoopEvent::Call { id, epoch, kind, outcome, duration }) => {
                if let (Some(observer), CallOutcome::Executed(result)) = (&self.observer, &outcome) {
                    let reason = result.as_ref().map_or_else(VllmError::reason, |()| "Success");
                    observer(&CompletedCall { kind: kind.name(), id: &id, outcome: reason, duration });
                }
                state.finish_call(&id, epoch, outcome, rand::random(), now);
            }
            Ok(LoopEvent::Fetch { id, fetch_id, progress, result: Some(result), duration }) => {
                if let Some(observer) = &self.observer {
                    let outcome = result.as_ref().map_or_else(|error| error.reason.as_str(), |_| "Success");
                    observer(&CompletedCall { kind: "fetch", id: &id, outcome, duration });
                }
                state.set_fetch_progress(&id, fetch_id, progress);
                state.finish_fetch(&id, fetch_id, result, rand::random(), now);
            }
            Ok(LoopEvent::Fetch { result: None, .. }) => {}
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => tracing::error!(%error, "a task of the sidecar was aborted unexpectedly"),
            },
        }
        None
    }
}

/// Waits until `time`; without a time, it never returns.
async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Returns whether the current desired state requires that `id` is unloaded.
fn is_unwanted(
    desired: &DesiredReceiver,
    id: &AdapterId,
    server_name: &str,
    source_policy: &AdapterSourcePolicy,
) -> bool {
    let desired = desired.borrow().clone();
    desired.is_some_and(|desired| {
        adapter_specs(&desired, server_name, source_policy)
            .get(id)
            .is_some_and(|spec| spec.goal() == AdapterGoal::Absent)
    })
}

impl ConnectionWatch {
    /// Starts to connect if the delay is over.
    fn reconnect(&mut self, sidecar: &Sidecar, now: Timestamp) {
        if matches!(self, Self::Disconnected(not_before) if now >= *not_before) {
            let endpoint = sidecar.client.endpoint();
            let (host, port) = (endpoint.host().to_owned(), endpoint.port());
            let timeout = sidecar.client.timeouts().connect;
            *self = Self::Connecting(Box::pin(async move { connection_watch::connect(&host, port, timeout).await }));
        }
    }

    /// Waits for the result of connecting, or for the end of the connection (`None`).
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
        state: &mut SidecarState,
        now: Timestamp,
    ) {
        *self = match event {
            Some(Ok(connection)) => {
                // The end of the process is detected from now on, so its identity must be known before it can end.
                state.request_metrics_poll();
                Self::Connected(connection)
            }
            Some(Err(_)) => Self::Disconnected(now + RECONNECT_DELAY),
            None => {
                if secure {
                    // A TLS server closes a connection that sends no handshake, so the end may have no meaning; a poll
                    // is cheap.
                    state.request_metrics_poll();
                } else {
                    state.idle_connection_closed();
                }
                Self::Disconnected(now + RECONNECT_DELAY)
            }
        };
    }
}
