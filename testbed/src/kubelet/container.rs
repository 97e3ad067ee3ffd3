//! One container: its process, what is to be said of it, and what a scenario may do to it.

use crate::{
    clock,
    process::{self, ChildProcess, ExitReason},
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
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A container of a pod. All clones are the same container; they stay usable when the pod is gone.
#[derive(Debug, Clone)]
pub struct ContainerHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pod: String,
    name: String,
    address: Ipv4Addr,
    /// Where its output goes, appended over all restarts.
    log_dir: PathBuf,
    state: Mutex<ProcessState>,
    /// Told at every change, of all containers of the pod.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct ProcessState {
    process: Option<ChildProcess>,
    view: ContainerView,
    /// Nothing is started.
    held: bool,
    /// When it ends by itself it is held.
    hold_on_exit: bool,
    /// How often a scenario released it.
    release_count: u64,
    /// The bed ends: nothing is started ever again.
    closed: bool,
}

/// What is to be said of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerView {
    pub(super) state: RunState,
    pub(super) last_termination: Option<Termination>,
    pub(super) restart_count: i32,
    pub(super) id: Option<String>,
    /// It has passed its startup probe.
    pub(super) started: bool,
    pub(super) ready: bool,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunState {
    Waiting { reason: &'static str, message: String },
    Running { started_at: Timestamp },
    Terminated(Termination),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Termination {
    pub(super) exit: ExitReason,
    pub(super) started_at: Timestamp,
    pub(super) finished_at: Timestamp,
    pub(super) id: Option<String>,
}

impl ContainerHandle {
    pub(super) fn new(pod: &str, name: &str, address: Ipv4Addr, logs: &Path, changed: watch::Sender<()>) -> Self {
        let view = ContainerView {
            state: RunState::Waiting { reason: "PodInitializing", message: String::new() },
            last_termination: None,
            restart_count: 0,
            id: None,
            started: false,
            ready: false,
        };
        let state =
            ProcessState { process: None, view, held: false, hold_on_exit: false, release_count: 0, closed: false };
        let (pod, name, logs) = (pod.to_owned(), name.to_owned(), logs.to_owned());
        Self { inner: Arc::new(Inner { pod, name, address, log_dir: logs, state: Mutex::new(state), changed }) }
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
        self.kill_process(state);
    }

    /// Ends it as `kill -9` does; the kubelet starts it again.
    pub fn kill(&self) {
        self.kill_process(self.state());
    }

    /// The kubelet may start it (again), and does so at once.
    pub fn release(&self) {
        let mut state = self.state();
        state.held = false;
        state.release_count += 1;
        drop(state);
        self.notify();
    }

    /// From now on, when it ends by itself, it stays down until it is released.
    pub fn set_hold_on_exit(&self, stays_down: bool) {
        self.state().hold_on_exit = stays_down;
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
    pub fn is_running(&self) -> bool {
        self.state().process.as_ref().is_some_and(|process| process.exit_reason().is_none())
    }

    /// Whether it runs and its probe says that it may be asked.
    pub fn is_ready(&self) -> bool {
        self.state().view.ready && self.is_running()
    }

    /// Whether it is down and stays so until it is released.
    pub fn is_held(&self) -> bool {
        let state = self.state();
        match &state.process {
            // It ended a moment ago, and nobody has looked yet.
            Some(process) => state.hold_on_exit && process.exit_reason().is_some(),
            None => state.held,
        }
    }

    /// How often it was started again.
    pub fn restarts(&self) -> u32 {
        self.state().view.restart_count.unsigned_abs()
    }

    /// How it ended last, in words.
    pub fn last_exit(&self) -> Option<ExitReason> {
        match &self.state().view {
            ContainerView { state: RunState::Terminated(termination), .. } => Some(termination.exit),
            ContainerView { last_termination: last, .. } => last.as_ref().map(|termination| termination.exit),
        }
    }

    /// The end of its output, of all starts.
    pub fn log_tail(&self, lines: usize) -> String {
        process::log_tail(&self.log_file(), lines)
    }

    /// All of its output, of all starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.inner.log_dir.join(format!("{}.log", self.log_name()))
    }

    fn log_name(&self) -> String {
        format!("{}.{}", self.inner.pod, self.inner.name)
    }

    fn signal(&self, signal: Signal) {
        if let Some(process) = &self.state().process {
            process.signal(signal);
        }
    }

    fn state(&self) -> MutexGuard<'_, ProcessState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self) {
        self.inner.changed.send_replace(());
    }

    /// With SIGKILL; the process is dead when this returns.
    fn kill_process(&self, mut state: MutexGuard<'_, ProcessState>) {
        if let Some(process) = state.process.take() {
            let ending = process.exit_reason().unwrap_or(ExitReason::Signal(Signal::KILL.as_raw()));
            process.kill();
            state.record_exit(ending);
        }
        drop(state);
        self.notify();
    }
}

impl ProcessState {
    fn record_exit(&mut self, ending: ExitReason) {
        let now = clock::timestamp();
        let since = match &self.view.state {
            RunState::Running { started_at: since } => *since,
            RunState::Waiting { .. } | RunState::Terminated(_) => now,
        };
        self.view.started = false;
        self.view.ready = false;
        self.view.state = RunState::Terminated(Termination {
            exit: ending,
            started_at: since,
            finished_at: now,
            id: self.view.id.clone(),
        });
    }
}

/// What the kubelet does with it.
impl ContainerHandle {
    pub(super) fn view(&self) -> ContainerView {
        self.state().view.clone()
    }

    pub(super) fn update_view(&self, change: impl FnOnce(&mut ContainerView)) {
        let mut state = self.state();
        let before = state.view.clone();
        change(&mut state.view);
        let is_new = state.view != before;
        drop(state);
        if is_new {
            self.notify();
        }
    }

    /// It does not run, and why.
    pub(super) fn set_waiting(&self, reason: &'static str, message: String) {
        self.update_view(|view| {
            if let RunState::Terminated(termination) = &view.state {
                view.last_termination = Some(termination.clone());
            }
            view.state = RunState::Waiting { reason, message };
        });
    }

    /// Waits until it may be started.
    pub(super) async fn wait_startable(&self) {
        let mut changes = self.inner.changed.subscribe();
        while self.state().held {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until a scenario releases it.
    pub(super) async fn wait_released(&self) {
        let (mut changes, before) = (self.inner.changed.subscribe(), self.state().release_count);
        while self.state().release_count == before {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Starts its process.
    pub(super) fn start(&self, launch: super::programs::LaunchSpec, id: String) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            bail!("the bed ends");
        }
        let process = ChildProcess::start(&self.log_name(), launch.command, &self.inner.log_dir)?;
        state.process = Some(process.with_termination_grace(launch.termination_grace));
        let view = &mut state.view;
        if let RunState::Terminated(termination) = &view.state {
            view.last_termination = Some(termination.clone());
        }
        if view.id.is_some() {
            view.restart_count += 1;
        }
        view.id = Some(id);
        view.state = RunState::Running { started_at: clock::timestamp() };
        drop(state);
        self.notify();
        Ok(())
    }

    /// Waits until its process has ended, by itself or because a scenario killed it.
    pub(super) async fn wait_exit(&self) -> ExitReason {
        loop {
            if let Some(ending) = self.poll_exit() {
                return ending;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn poll_exit(&self) -> Option<ExitReason> {
        let mut state = self.state();
        if let Some(process) = &state.process {
            let ending = process.exit_reason()?;
            // What it left running ends with it, as all processes of a container do.
            let process = state.process.take();
            state.held |= state.hold_on_exit;
            state.record_exit(ending);
            drop(state);
            drop(process);
            self.notify();
            return Some(ending);
        }
        match &state.view.state {
            RunState::Terminated(termination) => Some(termination.exit),
            // It never ran.
            RunState::Waiting { .. } | RunState::Running { .. } => Some(ExitReason::Exit(0)),
        }
    }

    /// Asks it to end, waits until the deadline, and ends it then.
    pub(super) async fn terminate(&self, deadline: Instant) -> ExitReason {
        if let Some(process) = &self.state().process {
            process.send_sigterm();
        }
        let rest = deadline.saturating_duration_since(clock::now());
        if let Ok(ending) = tokio::time::timeout(rest, self.wait_exit()).await {
            return ending;
        }
        self.kill();
        self.wait_exit().await
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
