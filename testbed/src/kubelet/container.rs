//! One container: its process, its reported state, and the ways in which a scenario can disturb it.

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

/// Interval at which a process is checked for its exit.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Handle of a container of a pod. Clones refer to the same container; they stay usable when the pod is gone.
#[derive(Debug, Clone)]
pub struct ContainerHandle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pod: String,
    name: String,
    address: Ipv4Addr,
    /// Folder of its log, which is appended across restarts.
    log_dir: PathBuf,
    state: Mutex<ProcessState>,
    /// Notified on every change; shared by all containers of the pod.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct ProcessState {
    process: Option<ChildProcess>,
    view: ContainerView,
    /// The container must not be started until a scenario releases it.
    held: bool,
    /// Whether the container becomes held when it exits by itself.
    hold_on_exit: bool,
    /// How many times a scenario released it.
    release_count: u64,
    /// The testbed ends: nothing may be started any more.
    closed: bool,
}

/// Observed state of a container, the input of its `ContainerStatus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerView {
    pub(super) state: RunState,
    pub(super) last_termination: Option<Termination>,
    pub(super) restart_count: i32,
    pub(super) id: Option<String>,
    /// Whether it has passed its startup probe.
    pub(super) started: bool,
    pub(super) ready: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunState {
    Waiting { reason: &'static str, message: String },
    Running { started_at: Timestamp },
    Terminated(Termination),
}

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

    /// Returns the name of the container's pod.
    pub fn pod(&self) -> &str {
        &self.inner.pod
    }

    /// Returns the name of the container.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns the IP address of the pod.
    pub fn address(&self) -> Ipv4Addr {
        self.inner.address
    }

    /// Kills the container with SIGKILL, with all of its child processes; it stays down until it is released.
    pub fn kill_and_hold(&self) {
        let mut state = self.state();
        state.held = true;
        self.kill_process(state);
    }

    /// Kills the container with SIGKILL; the kubelet restarts it.
    pub fn kill(&self) {
        self.kill_process(self.state());
    }

    /// Lets the kubelet start the container again, which it does immediately, without backoff.
    pub fn release(&self) {
        let mut state = self.state();
        state.held = false;
        state.release_count += 1;
        drop(state);
        self.notify();
    }

    /// Sets whether the container stays down, until it is released, when it next exits by itself.
    pub fn set_hold_on_exit(&self, hold: bool) {
        self.state().hold_on_exit = hold;
    }

    /// Stops the process (SIGSTOP): its connections stay open, and it does not respond.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Resumes the process after [`freeze`](Self::freeze).
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Returns whether the process is running.
    pub fn is_running(&self) -> bool {
        self.state().process.as_ref().is_some_and(|process| process.exit_reason().is_none())
    }

    /// Returns whether the container is running and ready, according to its readiness probe.
    pub fn is_ready(&self) -> bool {
        self.state().view.ready && self.is_running()
    }

    /// Returns whether the container is down and stays down until it is released.
    pub fn is_held(&self) -> bool {
        let state = self.state();
        match &state.process {
            // The process may have exited just now, before the supervisor noticed.
            Some(process) => state.hold_on_exit && process.exit_reason().is_some(),
            None => state.held,
        }
    }

    /// Returns how many times the container was restarted.
    pub fn restarts(&self) -> u32 {
        self.state().view.restart_count.unsigned_abs()
    }

    /// Returns how the container exited last, or `None` if it has not exited yet.
    pub fn last_exit(&self) -> Option<ExitReason> {
        match &self.state().view {
            ContainerView { state: RunState::Terminated(termination), .. } => Some(termination.exit),
            ContainerView { last_termination: last, .. } => last.as_ref().map(|termination| termination.exit),
        }
    }

    /// Returns the last lines of the container's output, across restarts.
    pub fn log_tail(&self, lines: usize) -> String {
        process::log_tail(&self.log_file(), lines)
    }

    /// Returns the whole output of the container, across restarts.
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

    /// Kills with SIGKILL; the process is dead when this returns.
    fn kill_process(&self, mut state: MutexGuard<'_, ProcessState>) {
        if let Some(process) = state.process.take() {
            let exit = process.exit_reason().unwrap_or(ExitReason::Signal(Signal::KILL.as_raw()));
            process.kill();
            state.record_exit(exit);
        }
        drop(state);
        self.notify();
    }
}

impl ProcessState {
    fn record_exit(&mut self, exit: ExitReason) {
        let now = clock::timestamp();
        let started_at = match &self.view.state {
            RunState::Running { started_at } => *started_at,
            RunState::Waiting { .. } | RunState::Terminated(_) => now,
        };
        self.view.started = false;
        self.view.ready = false;
        self.view.state =
            RunState::Terminated(Termination { exit, started_at, finished_at: now, id: self.view.id.clone() });
    }
}

/// Methods for the kubelet itself.
impl ContainerHandle {
    pub(super) fn view(&self) -> ContainerView {
        self.state().view.clone()
    }

    pub(super) fn update_view(&self, change: impl FnOnce(&mut ContainerView)) {
        let mut state = self.state();
        let previous = state.view.clone();
        change(&mut state.view);
        let is_new = state.view != previous;
        drop(state);
        if is_new {
            self.notify();
        }
    }

    /// Sets the state to waiting, and keeps a termination as the last one.
    pub(super) fn set_waiting(&self, reason: &'static str, message: String) {
        self.update_view(|view| {
            if let RunState::Terminated(termination) = &view.state {
                view.last_termination = Some(termination.clone());
            }
            view.state = RunState::Waiting { reason, message };
        });
    }

    /// Waits until the container is not held.
    pub(super) async fn wait_startable(&self) {
        let mut changes = self.inner.changed.subscribe();
        while self.state().held {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits until a scenario releases the container.
    pub(super) async fn wait_released(&self) {
        let (mut changes, previous) = (self.inner.changed.subscribe(), self.state().release_count);
        while self.state().release_count == previous {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    pub(super) fn start(&self, launch: super::programs::LaunchSpec, id: String) -> Result<()> {
        let mut state = self.state();
        if state.closed {
            bail!("the testbed is shutting down");
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

    /// Waits until the process has exited, by itself or because a scenario killed it.
    pub(super) async fn wait_exit(&self) -> ExitReason {
        loop {
            if let Some(exit) = self.poll_exit() {
                return exit;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn poll_exit(&self) -> Option<ExitReason> {
        let mut state = self.state();
        if let Some(process) = &state.process {
            let exit = process.exit_reason()?;
            // Child processes that it left are killed too, as all processes of a container are.
            let process = state.process.take();
            state.held |= state.hold_on_exit;
            state.record_exit(exit);
            drop(state);
            drop(process);
            self.notify();
            return Some(exit);
        }
        match &state.view.state {
            RunState::Terminated(termination) => Some(termination.exit),
            // The container never ran.
            RunState::Waiting { .. } | RunState::Running { .. } => Some(ExitReason::Exit(0)),
        }
    }

    /// Sends SIGTERM, and kills the process at the deadline.
    pub(super) async fn terminate(&self, deadline: Instant) -> ExitReason {
        if let Some(process) = &self.state().process {
            process.send_sigterm();
        }
        let remaining = deadline.saturating_duration_since(clock::now());
        if let Ok(exit) = tokio::time::timeout(remaining, self.wait_exit()).await {
            return exit;
        }
        self.kill();
        self.wait_exit().await
    }

    /// Stops the container permanently. SIGTERM is sent first only if the process has a termination grace period.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let process = state.process.take();
        drop(state);
        drop(process);
    }
}
