//! The loop: observe, decide, act.

use crate::{
    ask,
    clock::Clock,
    config::Config,
    decide::{Action, Fetch, decide, fetches},
    memory::{CallKind, Ended, Kept, LookError, Memory, Seen, Ticket},
    report, sentinel,
    source::Sources,
    status::status,
    wish::{Goal, wishes},
};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, names::AdapterId, sidecar_status::SidecarStatus};
use rollora_store::{FetchError, FetchProgress, FetchedAdapter};
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
const RECONNECT: Duration = Duration::from_secs(1);

/// Has what is desired read again, to the end: what is in the channel afterwards is what was desired when it was called.
pub type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Is told of every call about an adapter that was answered, or was not.
pub type Observer = Arc<dyn Fn(&Call<'_>) + Send + Sync>;

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// What was asked: `load`, `probe`, `unload`, or `fetch` of whoever keeps adapters.
    pub what: &'static str,
    /// About which adapter.
    pub id: &'a AdapterId,
    /// What came of it: `Success`, or the class of the error.
    pub outcome: &'static str,
    /// How long it took.
    pub took: Duration,
}

/// That a sidecar is at work. What it tells of its server is published before this.
#[derive(Debug, Clone, Copy)]
pub struct Pulse {
    /// When its loop last turned.
    pub turned: Instant,
    /// When the last look at the server ended; none before the first.
    pub looked: Option<Instant>,
    /// When what the server holds was last compared with what is desired; none before the first time.
    pub reconciled: Option<Instant>,
    /// [`SidecarStatus::uses_read_at`], which moves too often for a status that others watch.
    pub uses_read_at: Option<Timestamp>,
}

/// Where whoever waits for an adapter's end leaves word that they look: uses are read more often then. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Onlookers(Arc<AtomicBool>);

impl Onlookers {
    /// Somebody looks.
    pub fn look(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether anybody has looked since this was asked before.
    fn have_looked(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// All that a sidecar tells of its server, from what it publishes.
pub fn whole_status(
    status: &watch::Receiver<Arc<SidecarStatus>>,
    pulse: &watch::Receiver<Option<Pulse>>,
) -> SidecarStatus {
    // The pulse first: no reading may be told without the uses that it showed, and those are published before it.
    let uses_read_at = pulse.borrow().and_then(|pulse| pulse.uses_read_at);
    SidecarStatus { usage_read_at: uses_read_at, ..SidecarStatus::clone(&status.borrow()) }
}

type Desired = watch::Receiver<Option<Arc<DesiredAdapters>>>;

/// Keeps one vLLM server at what is desired.
pub struct Sidecar {
    config: Config,
    client: VllmClient,
    desired: Desired,
    refresh: Option<Refresh>,
    doubts: Arc<Notify>,
    file_errors: watch::Receiver<Option<String>>,
    endpoint: watch::Receiver<Endpoint>,
    status: watch::Sender<Arc<SidecarStatus>>,
    pulse: watch::Sender<Option<Pulse>>,
    onlookers: Onlookers,
    observer: Option<Observer>,
    kept: Option<watch::Sender<Kept>>,
    sources: Sources,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Something that was waited for.
enum Event {
    Looked(Ticket, Result<Seen, LookError>),
    /// None where nobody wanted it any more.
    Fetched {
        id: AdapterId,
        number: u64,
        progress: FetchProgress,
        ended: Option<Result<FetchedAdapter, FetchError>>,
        took: Duration,
    },
    Ended {
        id: AdapterId,
        epoch: u64,
        kind: CallKind,
        ended: Ended,
        took: Duration,
    },
}

/// A fetch under way.
struct RunningFetch {
    id: AdapterId,
    number: u64,
    progress: watch::Receiver<FetchProgress>,
    cancel: CancellationToken,
}

/// The idle connection to the server.
enum Sentinel {
    /// Not before this time.
    Absent(Timestamp),
    Connecting(Pin<Box<dyn Future<Output = io::Result<TcpStream>> + Send>>),
    Watching(TcpStream),
}

impl Sidecar {
    /// A sidecar fed by `desired` (none before the first good file), and what it tells of its server.
    pub fn new(
        config: Config,
        desired: Desired,
    ) -> Result<(Self, watch::Receiver<Arc<SidecarStatus>>), VllmClientError> {
        let client = VllmClient::new(config.endpoint.clone(), config.timeouts)?;
        let (status, receiver) = watch::channel(Arc::default());
        let endpoint = watch::channel(config.endpoint.clone()).1;
        let sidecar = Self {
            config,
            client,
            desired,
            refresh: None,
            doubts: Arc::default(),
            file_errors: watch::channel(None).1,
            endpoint,
            status,
            pulse: watch::Sender::new(None),
            onlookers: Onlookers::default(),
            observer: None,
            kept: None,
            sources: Sources::default(),
        };
        Ok((sidecar, receiver))
    }

    /// Before every unload, what is desired is read again by `refresh`.
    #[must_use]
    pub fn with_refresh(mut self, refresh: Refresh) -> Self {
        self.refresh = Some(refresh);
        self
    }

    /// Whoever else talks to the server rings here when a connection broke. The server is suspect then, and whatever
    /// comes of that is told as a change of the status.
    #[must_use]
    pub fn with_doubts(mut self, doubts: Arc<Notify>) -> Self {
        self.doubts = doubts;
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
    pub fn with_observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// What is worth keeping over a restart is published here, and what stands here at the start was kept by an
    /// earlier run.
    #[must_use]
    pub fn with_kept(mut self, kept: watch::Sender<Kept>) -> Self {
        self.kept = Some(kept);
        self
    }

    /// Sources are dealt with as it is said here. Without, vLLM is given every source as it is written.
    #[must_use]
    pub fn with_sources(mut self, sources: Sources) -> Self {
        self.sources = sources;
        self
    }

    /// That it is at work; none before it runs.
    pub fn pulse(&self) -> watch::Receiver<Option<Pulse>> {
        self.pulse.subscribe()
    }

    /// Where to leave word that somebody looks.
    pub fn onlookers(&self) -> Onlookers {
        self.onlookers.clone()
    }

    /// Works until it is stopped. Then nothing new is begun, and calls under way are finished within
    /// [`Config::last_calls`]. vLLM is left as it is.
    pub async fn run(self, stop: CancellationToken) {
        let span = info_span!("sidecar", server = %self.config.name);
        self.work(stop).instrument(span).await;
    }

    async fn work(mut self, stop: CancellationToken) {
        let clock = Clock::start();
        let mut memory = Memory::new(self.client.endpoint().base_url(), self.config.policy);
        memory.sources = self.sources.clone();
        let mut tasks = JoinSet::new();
        let mut fetches = Vec::new();
        let mut sentinel = Sentinel::Absent(clock.now());
        let (mut looked, mut reconciled) = (None, None);
        let mut last_calls_end = None;
        // Whether nothing but time has passed since the last turn.
        let mut only_time = false;
        if let Some(kept) = &self.kept {
            memory.recall(kept.borrow().clone());
        }
        self.take_desired(&mut memory, clock.now());
        self.take_file_error(&mut memory);
        loop {
            let now = clock.now();
            if self.onlookers.have_looked() {
                memory.looked_at(now);
            }
            let actions = if last_calls_end.is_none() { decide(&memory, now) } else { Vec::new() };
            let mut news = !only_time || !actions.is_empty();
            for action in actions {
                memory.began(&action, now);
                self.call(&mut tasks, action, memory.epoch());
            }
            if let Some(look) = memory.look_due(now) {
                let (client, ticket) = (self.client.clone(), memory.look_began(look, now));
                tasks.spawn(async move { Event::Looked(ticket, ask::look(&client, look).await) }.in_current_span());
            } else {
                news = true;
            }
            if last_calls_end.is_none() {
                news |= self.fetch(&mut fetches, &mut tasks, &mut memory, now);
            }
            sentinel.reconnect(&self, now);
            // The beginning of a look tells nothing that its end will not tell a moment later, or the next turn.
            if news {
                self.publish(&mut memory, now);
            }
            only_time = false;
            let (turned, uses_read_at) = (clock.instant(now), memory.uses_read_at());
            self.pulse.send_replace(Some(Pulse { turned, looked, reconciled, uses_read_at }));
            if last_calls_end.is_some() && memory.in_flight().next().is_none() {
                break;
            }
            tokio::select! {
                () = stop.cancelled(), if last_calls_end.is_none() => {
                    last_calls_end = Some(Instant::now() + self.config.last_calls);
                }
                () = at(last_calls_end) => {
                    report::given_up(memory.in_flight().map(|(id, _, call)| (id, call.kind)));
                    break;
                }
                Ok(()) = self.desired.changed() => self.take_desired(&mut memory, clock.now()),
                Ok(()) = self.file_errors.changed() => self.take_file_error(&mut memory),
                Ok(()) = self.endpoint.changed() => self.renew(&mut memory),
                () = self.doubts.notified() => memory.connection_broke(),
                Some(event) = tasks.join_next() => {
                    let now = clock.now();
                    // With all else that has ended by now: a turn goes through all adapters, and there may be thousands.
                    let mut ended = Some(event);
                    while let Some(event) = ended {
                        if let Some(compared) = self.take_event(&mut memory, event, now) {
                            looked = Some(clock.instant(now));
                            reconciled = if compared { looked } else { reconciled };
                        }
                        ended = tasks.try_join_next();
                    }
                }
                closed = sentinel.event() => {
                    let secure = self.client.endpoint().is_https();
                    sentinel.changed(closed, secure, &mut memory, clock.now());
                }
                () = sleep_until(clock.instant(memory.wake(now))) => only_time = true,
            }
        }
    }

    fn take_desired(&mut self, memory: &mut Memory, now: Timestamp) {
        let desired = self.desired.borrow_and_update().clone();
        if let Some(desired) = desired {
            memory.desire(&desired, &self.config.name, now);
        }
    }

    fn take_file_error(&mut self, memory: &mut Memory) {
        memory.file_error.clone_from(&self.file_errors.borrow_and_update());
    }

    /// Asks the same server in another way from now on.
    fn renew(&mut self, memory: &mut Memory) {
        let endpoint = self.endpoint.borrow_and_update().clone();
        match VllmClient::new(endpoint, self.config.timeouts) {
            Ok(client) => {
                self.client = client;
                memory.is_asked_anew();
            }
            Err(error) => tracing::error!("vLLM is asked as before: {error}"),
        }
    }

    /// Begins the fetches that are due, and ends those that nobody wants any more. Whether one is under way.
    fn fetch(
        &self,
        running: &mut Vec<RunningFetch>,
        tasks: &mut JoinSet<Event>,
        memory: &mut Memory,
        now: Timestamp,
    ) -> bool {
        running.retain(|fetch| {
            memory.fetch_progressed(&fetch.id, fetch.number, *fetch.progress.borrow());
            let wanted = memory.is_fetching(&fetch.id, fetch.number);
            if !wanted {
                fetch.cancel.cancel();
            }
            wanted
        });
        let Some(store) = &self.sources.store else { return false };
        for Fetch { id, source } in fetches(memory, now) {
            let number = memory.fetch_began(&id, now);
            let (told, progress) = watch::channel(FetchProgress::default());
            let (store, cancel) = (Arc::clone(store), CancellationToken::new());
            running.push(RunningFetch { id: id.clone(), number, progress, cancel: cancel.clone() });
            let fetch = async move {
                let began = Instant::now();
                let tell = |progress| {
                    told.send_replace(progress);
                };
                let ended = cancel.run_until_cancelled(store.fetch(&source, &tell)).await;
                // What was told last may not have been looked at before the end.
                let progress = *told.borrow();
                Event::Fetched { id, number, progress, ended, took: began.elapsed() }
            };
            tasks.spawn(fetch.in_current_span());
        }
        !running.is_empty()
    }

    fn call(&self, tasks: &mut JoinSet<Event>, action: Action, epoch: u64) {
        let (client, desired, refresh) = (self.client.clone(), self.desired.clone(), self.refresh.clone());
        let (name, sources) = (self.config.name.clone(), self.sources.clone());
        let still_unwanted = async move |id: &AdapterId| {
            if let Some(refresh) = refresh {
                refresh().await;
            }
            is_unwanted(&desired, id, &name, &sources)
        };
        let call = async move {
            let began = Instant::now();
            let ended = ask::act(&client, &action, still_unwanted).await;
            Event::Ended { id: action.id().clone(), epoch, kind: action.kind(), ended, took: began.elapsed() }
        };
        tasks.spawn(call.in_current_span());
    }

    /// Tells how the server is, where that has changed.
    fn publish(&self, memory: &mut Memory, now: Timestamp) {
        let fresh = status(memory, now);
        if fresh.readiness.ready {
            memory.latch_ready();
        }
        let current = self.status.borrow().clone();
        if *current != fresh {
            report::transitions(&current, &fresh);
            self.status.send_replace(Arc::new(fresh));
        }
        if let Some(kept) = &self.kept {
            let fresh = memory.to_keep();
            kept.send_if_modified(|current| {
                let changed = *current != fresh;
                *current = fresh;
                changed
            });
        }
    }

    /// Takes in what has ended. Where it was a look: whether it showed what the server holds.
    fn take_event(&self, memory: &mut Memory, event: Result<Event, JoinError>, now: Timestamp) -> Option<bool> {
        match event {
            Ok(Event::Looked(ticket, seen)) => {
                let compared = ticket.look.models && seen.is_ok();
                memory.looked(ticket, seen, now);
                return Some(compared);
            }
            Ok(Event::Ended { id, epoch, kind, ended, took }) => {
                if let (Some(observer), Ended::Answered(answer)) = (&self.observer, &ended) {
                    let outcome = answer.as_ref().map_or_else(VllmError::reason, |()| "Success");
                    observer(&Call { what: kind.name(), id: &id, outcome, took });
                }
                memory.ended(&id, epoch, ended, rand::random(), now);
            }
            Ok(Event::Fetched { id, number, progress, ended: Some(ended), took }) => {
                if let Some(observer) = &self.observer {
                    let outcome = ended.as_ref().map_or_else(|error| error.reason.as_str(), |_| "Success");
                    observer(&Call { what: "fetch", id: &id, outcome, took });
                }
                memory.fetch_progressed(&id, number, progress);
                memory.fetch_ended(&id, number, ended, rand::random(), now);
            }
            Ok(Event::Fetched { ended: None, .. }) => {}
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => tracing::error!(%error, "a call was aborted, which nobody should do"),
            },
        }
        None
    }
}

/// Waits until then; without a time, for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Whether `id` is to be unloaded by what is desired at this moment.
fn is_unwanted(desired: &Desired, id: &AdapterId, name: &str, sources: &Sources) -> bool {
    let desired = desired.borrow().clone();
    desired
        .is_some_and(|desired| wishes(&desired, name, sources).get(id).is_some_and(|wish| wish.goal() == Goal::Absent))
}

impl Sentinel {
    /// Begins to connect when it is time.
    fn reconnect(&mut self, sidecar: &Sidecar, now: Timestamp) {
        if matches!(self, Self::Absent(not_before) if now >= *not_before) {
            let endpoint = sidecar.client.endpoint();
            let (host, port) = (endpoint.host().to_owned(), endpoint.port());
            let limit = sidecar.client.timeouts().connect;
            *self = Self::Connecting(Box::pin(async move { sentinel::connect(&host, port, limit).await }));
        }
    }

    /// Waits for a connection, or for its end (none).
    async fn event(&mut self) -> Option<io::Result<TcpStream>> {
        match self {
            Self::Absent(_) => std::future::pending().await,
            Self::Connecting(connection) => Some(connection.await),
            Self::Watching(connection) => {
                sentinel::closed(connection).await;
                None
            }
        }
    }

    fn changed(&mut self, event: Option<io::Result<TcpStream>>, secure: bool, memory: &mut Memory, now: Timestamp) {
        *self = match event {
            Some(Ok(connection)) => {
                // From here on its end is noticed; which process it is has to be known from before.
                memory.demand_metrics();
                Self::Watching(connection)
            }
            Some(Err(_)) => Self::Absent(now + RECONNECT),
            None => {
                if secure {
                    // A server with TLS closes a connection that never says hello: that tells nothing, and looking is
                    // cheap.
                    memory.demand_metrics();
                } else {
                    memory.connection_closed();
                }
                Self::Absent(now + RECONNECT)
            }
        };
    }
}
