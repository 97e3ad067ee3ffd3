//! One container: its process, what is to be said of it, and what a scenario may do to it.

use crate::{
    clock,
    process::{self, Ending, Process},
};
use anyhow::{Result, bail};
use k8s_openapi::jiff::Timestamp;
use rustix::process::Signal;
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(10);

/// A container of a pod. All clones are the same container; they stay usable when the pod is gone.
#[derive(Debug, Clone)]
pub struct Container {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pod: String,
    name: String,
    address: Ipv4Addr,
    /// Where its output goes, appended over all restarts.
    logs: PathBuf,
    state: Mutex<State>,
    /// Told at every change, of all containers of the pod.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    process: Option<Process>,
    view: View,
    /// Nothing is started.
    held: bool,
    /// When it ends by itself it is held.
    stays_down: bool,
    /// How often a scenario released it.
    releases: u64,
    /// The bed ends: nothing is started ever again.
    closed: bool,
}

/// What is to be said of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub(super) run: Run,
    pub(super) last: Option<Termination>,
    pub(super) restarts: i32,
    pub(super) id: Option<String>,
    /// It has passed its startup probe.
    pub(super) started: bool,
    pub(super) ready: bool,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Run {
    Waiting { reason: &'static str, message: String },
    Running { since: Timestamp },
    Ended(Termination),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Termination {
    pub(super) ending: Ending,
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    pub(super) id: Option<String>,
}

impl Container {
    pub(super) fn new(pod: &str, name: &str, address: Ipv4Addr, logs: &Path, changed: watch::Sender<()>) -> Self {
        let view = View {
            run: Run::Waiting { reason: "PodInitializing", message: String::new() },
            last: None,
            restarts: 0,
            id: None,
            started: false,
            ready: false,
        };
        let state = State { process: None, view, held: false, stays_down: false, releases: 0, closed: false };
        let (pod, name, logs) = (pod.to_owned(), name.to_owned(), logs.to_owned());
        Self { inner: Arc::new(Inner { pod, name, address, logs, state: Mutex::new(state), changed }) }
    }

    /// The name of its pod.
    pub fn pod(&self) -> &str {
        &self.inner.pod
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The address of its pod.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.address
    }

    /// Ends it as `kill -9` does, with everything it started; it stays down until it is released.
    pub fn kill_and_hold(&self) {
        let mut state = self.state();
        state.held = true;
        self.end(state);
    }

    /// Ends it as `kill -9` does; the kubelet starts it again.
    pub fn crash(&self) {
        self.end(self.state());
    }

    /// The kubelet may start it (again), and does so at once.
    pub fn release(&self) {
        let mut state = self.state();
        state.held = false;
        state.releases += 1;
        drop(state);
        self.tell();
    }

    /// From now on, when it ends by itself, it stays down until it is released.
    pub fn stays_down_when_it_ends(&self, stays_down: bool) {
        self.state().stays_down = stays_down;
    }

    /// It stands still: its connections stay open, and nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.state().process.as_ref().is_some_and(|process| process.ended().is_none())
    }

    /// Whether it runs and its probe says that it may be asked.
    pub fn is_ready(&self) -> bool {
        self.state().view.ready && self.runs()
    }

    /// Whether it is down and stays so until it is released.
    pub fn is_held(&self) -> bool {
        let state = self.state();
        match &state.process {
            // It ended a moment ago, and nobody has looked yet.
            Some(process) => state.stays_down && process.ended().is_some(),
            None => state.held,
        }
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.state().view.restarts.unsigned_abs()
    }

    /// How it ended last, in words.
    pub fn last_ending(&self) -> Option<Ending> {
        match &self.state().view {
            View { run: Run::Ended(termination), .. } => Some(termination.ending),
            View { last, .. } => last.as_ref().map(|termination| termination.ending),
        }
    }

    /// The end of its output, of all starts.
    pub fn log_tail(&self, lines: usize) -> String {
        process::tail(&self.log_file(), lines)
    }

    /// All of its output, of all starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.inner.logs.join(format!("{}.log", self.log_name()))
    }

    fn log_name(&self) -> String {
        format!("{}.{}", self.inner.pod, self.inner.name)
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.state().process {
            process.signal(signal);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.inner.changed.send_replace(());
    }

    /// With SIGKILL; the process is dead when this returns.
    fn end(&self, mut state: MutexGuard<'_, State>) {
        if let Some(process) = state.process.take() {
            let ending = process.ended().unwrap_or(Ending::Signal(Signal::KILL.as_raw()));
            process.kill();
            state.note_end(ending);
        }
        drop(state);
        self.tell();
    }
}

impl State {
    fn note_end(&mut self, ending: Ending) {
        let now = clock::timestamp();
        let since = match &self.view.run {
            Run::Running { since } => *since,
            Run::Waiting { .. } | Run::Ended(_) => now,
        };
        self.view.started = false;
        self.view.ready = false;
        self.view.run = Run::Ended(Termination { ending, since, until: now, id: self.view.id.clone() });
    }
}

/// What the kubelet does with it.
impl Container {
    pub(super) fn view(&self) -> View {
        self.state().view.clone()
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut View)) {
        let mut state = self.state();
        let before = state.view.clone();
        change(&mut state.view);
        let is_new = state.view != before;
        drop(state);
        if is_new {
            self.tell();
        }
    }

    /// It does not run, and why.
    pub(super) fn waits(&self, reason: &'static str, message: String) {
        self.set(|view| {
            if let Run::Ended(termination) = &view.run {
                view.last = Some(termination.clone());
            }
            view.run = Run::Waiting { reason, message };
        });
    }

    /// Waits until it may be started.
    pub(super) async fn may_start(&self) {
        let mut changes = self.inner.changed.subscribe();
        while self.state().held {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until a scenario releases it.
    pub(super) async fn released(&self) {
        let (mut changes, before) = (self.inner.changed.subscribe(), self.state().releases);
        while self.state().releases == before {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Starts its process.
    pub(super) fn start(&self, launch: super::programs::Launch, id: String) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            bail!("the bed ends");
        }
        let process = Process::start(&self.log_name(), launch.command, &self.inner.logs)?;
        state.process = Some(process.with_farewell(launch.farewell));
        let view = &mut state.view;
        if let Run::Ended(termination) = &view.run {
            view.last = Some(termination.clone());
        }
        if view.id.is_some() {
            view.restarts += 1;
        }
        view.id = Some(id);
        view.run = Run::Running { since: clock::timestamp() };
        drop(state);
        self.tell();
        Ok(())
    }

    /// Waits until its process has ended, by itself or because a scenario killed it.
    pub(super) async fn ended(&self) -> Ending {
        loop {
            if let Some(ending) = self.look() {
                return ending;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn look(&self) -> Option<Ending> {
        let mut state = self.state();
        if let Some(process) = &state.process {
            let ending = process.ended()?;
            // What it left running ends with it, as all processes of a container do.
            let process = state.process.take();
            state.held |= state.stays_down;
            state.note_end(ending);
            drop(state);
            drop(process);
            self.tell();
            return Some(ending);
        }
        match &state.view.run {
            Run::Ended(termination) => Some(termination.ending),
            // It never ran.
            Run::Waiting { .. } | Run::Running { .. } => Some(Ending::Exit(0)),
        }
    }

    /// Asks it to end, waits until the deadline, and ends it then.
    pub(super) async fn terminate(&self, deadline: Instant) -> Ending {
        if let Some(process) = &self.state().process {
            process.ask_to_end();
        }
        let rest = deadline.saturating_duration_since(clock::now());
        if let Ok(ending) = tokio::time::timeout(rest, self.ended()).await {
            return ending;
        }
        self.crash();
        self.ended().await
    }

    /// Ends it for good. Only who has a farewell is asked first.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let process = state.process.take();
        drop(state);
        drop(process);
    }
}
