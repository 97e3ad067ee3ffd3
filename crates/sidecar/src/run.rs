//! The loop: observe, decide, act.

use crate::{
    ask,
    clock::Clock,
    config::Config,
    decide::{Action, decide},
    memory::{CallKind, Ended, Kept, LookError, Memory, Seen, Ticket},
    report, sentinel,
    status::status,
    wish::{Goal, wishes},
};
use jiff::Timestamp;
use rollora_api::{adapters::DesiredAdapters, names::AdapterId, sidecar_status::SidecarStatus};
use rollora_vllm::{Client, ClientError, VllmError};
use std::{fmt, io, pin::Pin, sync::Arc, time::Duration};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::{JoinError, JoinSet},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};

/// The idle connection is made again after this time at the earliest: some servers close it as soon as it stands.
const RECONNECT: Duration = Duration::from_secs(1);
/// Calls under way are waited for this long at the end.
const LAST_CALLS: Duration = Duration::from_secs(1);

/// Has what is desired read again, to the end: what is in the channel afterwards is what was desired when it was called.
pub type Refresh = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Is told of every call about an adapter that was answered, or was not.
pub type Observer = Arc<dyn Fn(&Call<'_>) + Send + Sync>;

/// A call that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// What was asked.
    pub kind: CallKind,
    /// About which adapter.
    pub id: &'a AdapterId,
    /// What came of it.
    pub answer: Result<(), &'a VllmError>,
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
}

type Desired = watch::Receiver<Option<Arc<DesiredAdapters>>>;

/// Keeps one vLLM server at what is desired.
pub struct Sidecar {
    config: Config,
    client: Client,
    desired: Desired,
    refresh: Option<Refresh>,
    doubts: Arc<Notify>,
    file_errors: watch::Receiver<Option<String>>,
    status: watch::Sender<Arc<SidecarStatus>>,
    pulse: watch::Sender<Option<Pulse>>,
    observer: Option<Observer>,
    kept: Option<watch::Sender<Kept>>,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Something that was waited for.
enum Event {
    Looked(Ticket, Result<Seen, LookError>),
    Ended { id: AdapterId, epoch: u64, kind: CallKind, ended: Ended, took: Duration },
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
    pub fn new(config: Config, desired: Desired) -> Result<(Self, watch::Receiver<Arc<SidecarStatus>>), ClientError> {
        let client = Client::new(config.endpoint.clone(), config.timeouts)?;
        let (status, receiver) = watch::channel(Arc::default());
        let sidecar = Self {
            config,
            client,
            desired,
            refresh: None,
            doubts: Arc::default(),
            file_errors: watch::channel(None).1,
            status,
            pulse: watch::Sender::new(None),
            observer: None,
            kept: None,
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

    /// That it is at work; none before it runs.
    pub fn pulse(&self) -> watch::Receiver<Option<Pulse>> {
        self.pulse.subscribe()
    }

    /// Works until it is stopped. vLLM is left as it is.
    pub async fn run(self, stop: CancellationToken) {
        let span = info_span!("sidecar", server = %self.config.name);
        self.work(stop).instrument(span).await;
    }

    async fn work(mut self, stop: CancellationToken) {
        let clock = Clock::start();
        let mut memory = Memory::new(self.client.endpoint().base_url(), self.config.policy);
        let mut tasks = JoinSet::new();
        let mut sentinel = Sentinel::Absent(clock.now());
        let mut looked = None;
        if let Some(kept) = &self.kept {
            memory.recall(kept.borrow().clone());
        }
        self.take_desired(&mut memory, clock.now());
        self.take_file_error(&mut memory);
        loop {
            let now = clock.now();
            for action in decide(&memory, now) {
                memory.began(&action, now);
                self.call(&mut tasks, action, memory.epoch());
            }
            if let Some(look) = memory.look_due(now) {
                let (client, ticket) = (self.client.clone(), memory.look_began(look, now));
                tasks.spawn(async move { Event::Looked(ticket, ask::look(&client, look).await) }.in_current_span());
            }
            sentinel.reconnect(&self, now);
            self.publish(&mut memory, now);
            self.pulse.send_replace(Some(Pulse { turned: clock.instant(now), looked }));
            tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = self.desired.changed() => self.take_desired(&mut memory, clock.now()),
                Ok(()) = self.file_errors.changed() => self.take_file_error(&mut memory),
                () = self.doubts.notified() => memory.connection_broke(),
                Some(event) = tasks.join_next() => {
                    let now = clock.now();
                    // With all else that has ended by now: a turn goes through all adapters, and there may be thousands.
                    let mut ended = Some(event);
                    while let Some(event) = ended {
                        if self.take_event(&mut memory, event, now) {
                            looked = Some(clock.instant(now));
                        }
                        ended = tasks.try_join_next();
                    }
                }
                closed = sentinel.event() => sentinel.changed(closed, &mut memory, clock.now()),
                () = tokio::time::sleep_until(clock.instant(memory.wake(now))) => {}
            }
        }
        // A call that vLLM has begun is finished by it anyway; who restarts us should not find it half known.
        drop(timeout(LAST_CALLS, async { while tasks.join_next().await.is_some() {} }).await);
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

    fn call(&self, tasks: &mut JoinSet<Event>, action: Action, epoch: u64) {
        let (client, desired, refresh) = (self.client.clone(), self.desired.clone(), self.refresh.clone());
        let name = self.config.name.clone();
        let still_unwanted = async move |id: &AdapterId| {
            if let Some(refresh) = refresh {
                refresh().await;
            }
            is_unwanted(&desired, id, &name)
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

    /// Takes in what has ended; whether it was a look.
    fn take_event(&self, memory: &mut Memory, event: Result<Event, JoinError>, now: Timestamp) -> bool {
        match event {
            Ok(Event::Looked(ticket, seen)) => {
                memory.looked(ticket, seen, now);
                return true;
            }
            Ok(Event::Ended { id, epoch, kind, ended, took }) => {
                if let (Some(observer), Ended::Answered(answer)) = (&self.observer, &ended) {
                    observer(&Call { kind, id: &id, answer: answer.as_ref().copied(), took });
                }
                memory.ended(&id, epoch, ended, rand::random(), now);
            }
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => tracing::error!(%error, "a call was aborted, which nobody should do"),
            },
        }
        false
    }
}

/// Whether `id` is to be unloaded by what is desired at this moment.
fn is_unwanted(desired: &Desired, id: &AdapterId, name: &str) -> bool {
    let desired = desired.borrow().clone();
    desired.is_some_and(|desired| wishes(&desired, name).get(id).is_some_and(|wish| wish.goal() == Goal::Absent))
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

    fn changed(&mut self, event: Option<io::Result<TcpStream>>, memory: &mut Memory, now: Timestamp) {
        *self = match event {
            Some(Ok(connection)) => {
                // From here on its end is noticed; which process it is has to be known from before.
                memory.demand_metrics();
                Self::Watching(connection)
            }
            Some(Err(_)) => Self::Absent(now + RECONNECT),
            None => {
                memory.connection_closed();
                Self::Absent(now + RECONNECT)
            }
        };
    }
}
